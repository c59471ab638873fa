"""The headline of a comparison, with its interval: what reading lost beyond what recall lost.

Items are drawn again with replacement, inside each task, and each with its answer before and after (a paired
bootstrap, stratified by task; Efron & Tibshirani 1993, chapter 8). A paired item can only be lost, gained or
unchanged, so a draw of n items is a draw from a multinomial distribution, and all draws are made at once.

As in `paired_drop`, half an item is added to each cell first (Agresti & Min 2005): otherwise the interval would be a
point wherever no answer changed.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mvquant.evaluation.statistics import LEVEL, Estimate

RESAMPLES = 10_000


@dataclass(frozen=True)
class Change:
    """What became of one task's `n` items: `lost` were right before only, `gained` are right now only."""

    lost: int
    gained: int
    n: int
    chance: float

    @property
    def drop(self) -> float:
        """The chance-corrected drop."""
        return (self.lost - self.gained) / self.n / (1 - self.chance)

    def resampled(self, generator: np.random.Generator, resamples: int) -> NDArray[np.float64]:
        """Chance-corrected drops of so many draws of `n` items."""
        cells = [self.lost + 0.5, self.gained + 0.5, self.n - self.lost - self.gained + 1]
        draws = generator.multinomial(self.n, np.array(cells) / (self.n + 2), size=resamples)
        return (draws[:, 0] - draws[:, 1]) / self.n / (1 - self.chance)


def drop_difference(
    first: Sequence[Change], second: Sequence[Change], *, seed: int = 0, resamples: int = RESAMPLES
) -> Estimate:
    """Mean drop over the first tasks minus mean drop over the second, with its percentile interval.

    Args:
        first: contextual tasks, say; at least one.
        second: parametric tasks, say; at least one.
        seed: of the draws.
        resamples: number of draws.

    >>> round(drop_difference([Change(30, 0, 100, 0.0)], [Change(5, 0, 100, 0.5)]).value, 9)
    0.2
    """
    generator = np.random.default_rng(seed)
    drawn = [
        np.mean([change.resampled(generator, resamples) for change in changes], axis=0) for changes in (first, second)
    ]
    low, high = np.quantile(drawn[0] - drawn[1], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    value = float(np.mean([change.drop for change in first]) - np.mean([change.drop for change in second]))
    return Estimate(value=value, low=float(low), high=float(high))
