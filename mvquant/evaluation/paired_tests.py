"""Whether a difference between two models on the same items is real, and which ones could have been seen at all.

one task        McNemar's exact test (Psychometrika 12 (1947) 153): of the items on which only one of the two
                models is right, is the share of each 1/2?
a mean gain     the two-sided test whose 95 % acceptance is that the gain's interval includes zero: its distance from
                zero over the reach of that interval towards zero, as a normal deviate
several tests   Holm's step-down adjustment (Scand. J. Stat. 6 (1979) 65)
power           Connor (Biometrics 43 (1987) 207): the drop that n paired items show with 80 % probability
"""

import math
from collections.abc import Sequence

import numpy as np
from scipy.optimize import root_scalar
from scipy.stats import binomtest, norm

from mvquant.evaluation.statistics import LEVEL, Estimate

SIGNIFICANCE = 0.05
POWER = 0.8


def mcnemar_p(lost: int, gained: int) -> float:
    """The two-sided p-value of McNemar's exact test.

    Args:
        lost: items right before and wrong now.
        gained: items wrong before and right now.

    >>> round(mcnemar_p(lost=1, gained=7), 7)
    0.0703125
    >>> mcnemar_p(lost=0, gained=0)
    1.0
    """
    return float(binomtest(lost, lost + gained).pvalue) if lost + gained else 1.0


def interval_p(estimate: Estimate) -> float:
    """The two-sided p-value of no difference that belongs to an estimate's 95 % interval.

    Below 0.05 exactly where the interval excludes zero, so that no test contradicts an interval beside it. Far from
    there it takes the interval for a normal one, with the reach on the side of zero.

    >>> round(interval_p(Estimate(value=0.2, low=0.0, high=0.3)), 9)
    0.05
    >>> interval_p(Estimate(value=0.0, low=-0.1, high=0.1))
    1.0
    """
    if estimate.value == 0:
        return 1.0
    reach = estimate.value - estimate.low if estimate.value > 0 else estimate.high - estimate.value
    if reach <= 0:
        return 0.0
    return float(2 * norm.sf(norm.ppf((1 + LEVEL) / 2) * abs(estimate.value) / reach))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values of several tests so that the chance of any false alarm stays at the level of one.

    >>> holm([0.5, 0.01])
    [0.5, 0.02]
    """
    order = np.argsort(p_values)
    factors = np.arange(len(p_values), 0, -1)
    adjusted = np.maximum.accumulate(np.asarray(p_values, dtype=np.float64)[order] * factors).clip(max=1.0)
    return [float(p) for p in adjusted[np.argsort(order)]]


def minimum_detectable_drop(n: int, discordant: float) -> float:
    """The smallest drop that a two-sided test at 5 % on `n` paired items finds with 80 % probability.

    The root of `sqrt(n) d = z_a sqrt(psi) + z_b sqrt(psi - d^2)`, where psi is the discordant share, which is at
    least the drop itself. 1 where even the loss of every item would not be found.

    Args:
        n: items.
        discordant: the share of items on which only one of the two models is right.

    >>> round(minimum_detectable_drop(200, discordant=0.1), 4), round(minimum_detectable_drop(1319, 0.1), 4)
    (0.0623, 0.0244)
    """
    level, power = float(norm.isf(SIGNIFICANCE / 2)), float(norm.ppf(POWER))

    def excess(drop: float) -> float:
        share = max(discordant, drop)
        return math.sqrt(n) * drop - level * math.sqrt(share) - power * math.sqrt(share - drop**2)

    return float(root_scalar(excess, bracket=(1e-12, 1.0)).root) if excess(1.0) > 0 else 1.0
