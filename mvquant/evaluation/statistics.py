"""Accuracies and differences of accuracies with their 95 % intervals, in closed form.

    one task          Wilson's score interval
    paired drop       Agresti & Min, Stat. Med. 24 (2005) 729: Wald's after adding half an item to each cell
    mean over tasks   Zou, Huang & Zhang, Comput. Stat. Data Anal. 53 (2009) 1080 (Newcombe's "square and add"):
                      the tasks' own limits, recovered into one for a linear function of independent parts

None of them collapses to a point at 0 % or 100 %, or when no answer changed, as the bootstrap and the plain
Wald interval do: 512 right answers out of 512 do not prove an accuracy of exactly 1.
"""

import math
from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict
from scipy.stats import binomtest, norm

LEVEL = 0.95


class Estimate(BaseModel):
    """A value and its 95 % interval, all as fractions (not per cent)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    value: float
    low: float
    high: float

    def scaled(self, factor: float, offset: float = 0.0) -> "Estimate":
        """The estimate of `factor * x + offset`, for a positive factor."""
        return Estimate(
            value=factor * self.value + offset, low=factor * self.low + offset, high=factor * self.high + offset
        )

    @property
    def includes_zero(self) -> bool:
        """Whether the data leave it open if there is any difference."""
        return self.low <= 0 <= self.high


def accuracy(correct: int, n: int) -> Estimate:
    """The fraction right, with Wilson's interval.

    >>> found = accuracy(8, 10)
    >>> found.value, round(found.low, 4), round(found.high, 4)
    (0.8, 0.4902, 0.9433)
    """
    interval = binomtest(correct, n).proportion_ci(confidence_level=LEVEL, method="wilson")
    return Estimate(value=correct / n, low=float(interval.low), high=float(interval.high))


def chance_corrected(estimate: Estimate, chance: float) -> Estimate:
    """Stretch accuracy so that 0 is guessing and 1 is perfect: (accuracy - chance) / (1 - chance).

    >>> chance_corrected(Estimate(value=0.75, low=0.5, high=1.0), chance=0.5)
    Estimate(value=0.5, low=0.0, high=1.0)
    """
    return estimate.scaled(1 / (1 - chance), offset=-chance / (1 - chance))


def paired_drop(lost: int, gained: int, n: int) -> Estimate:
    """The accuracy lost on the same `n` items, with the interval of Agresti & Min.

    Args:
        lost: items right before and wrong now.
        gained: items wrong before and right now.
        n: all items.

    >>> paired_drop(lost=0, gained=0, n=512).value
    0.0
    """
    size = n + 2
    centre = (lost - gained) / size
    spread = math.sqrt((lost + gained + 1) / size - centre**2)
    reach = float(norm.ppf((1 + LEVEL) / 2)) * spread / math.sqrt(size)
    return Estimate(value=(lost - gained) / n, low=max(-1.0, centre - reach), high=min(1.0, centre + reach))


def mean(estimates: Sequence[Estimate]) -> Estimate:
    """The plain mean of estimates from different items (every task counts the same).

    >>> mean([Estimate(value=0.5, low=0.2, high=0.9), Estimate(value=0.7, low=0.3, high=0.7)]).value
    0.6
    """
    count = len(estimates)
    value = math.fsum(estimate.value for estimate in estimates) / count
    below = math.hypot(*(estimate.value - estimate.low for estimate in estimates)) / count
    above = math.hypot(*(estimate.high - estimate.value for estimate in estimates)) / count
    return Estimate(value=value, low=value - below, high=value + above)
