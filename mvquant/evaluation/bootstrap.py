"""The headline of a comparison, with its interval: what reading lost beyond what recall lost.

Items are drawn again with replacement, inside each task, and each with its answer before and after (a paired
bootstrap, stratified by task; Efron & Tibshirani 1993, chapter 8). A paired item can only be lost, gained or
unchanged, so a draw of n items is a draw from a multinomial distribution, and all draws are made at once.

Tasks that ask the same items, such as a conflict of text and memory that is scored both ways, are drawn together: an
item that is drawn counts in each of them. What one of them loses on an item, the other may gain, so their drops are
not independent. Items that only one of them holds are a stratum of their own.

As in `paired_drop`, half an item is added to each cell first (Agresti & Min 2005): otherwise the interval would be a
point wherever no answer changed. Of items that tasks share, the cells of each task have these halves, independently.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from mvquant.evaluation.statistics import LEVEL, Estimate

RESAMPLES = 10_000

_ADDED = 2.0
"""Items that are added to those of a task: half a lost one, half a gained one, and one unchanged."""

Net = NDArray[np.int64]
"""Items lost less items gained, by draw."""


@dataclass(frozen=True)
class Change:
    """What became of one task's `n` items: `lost` were right before only, `gained` are right now only.

    `items` is what became of each, by a key that the same item has in every task: 1 lost, -1 gained, 0 unchanged. It
    may be left out where no other task asks the same.
    """

    lost: int
    gained: int
    n: int
    chance: float
    items: Mapping[str, int] = field(default_factory=dict[str, int], repr=False, compare=False)

    @property
    def drop(self) -> float:
        """The chance-corrected drop."""
        return (self.lost - self.gained) / self.n / (1 - self.chance)

    def corrected(self, net: Net) -> NDArray[np.float64]:
        """Chance-corrected drops of draws of `n` items."""
        return net / self.n / (1 - self.chance)


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
    changes = [*first, *second]
    nets = _resampled(changes, np.random.default_rng(seed), resamples)
    drawn = [change.corrected(net) for change, net in zip(changes, nets, strict=True)]
    means = [np.mean(side, axis=0) for side in (drawn[: len(first)], drawn[len(first) :])]
    low, high = np.quantile(means[0] - means[1], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    value = float(np.mean([change.drop for change in first]) - np.mean([change.drop for change in second]))
    return Estimate(value=value, low=float(low), high=float(high))


def _resampled(changes: Sequence[Change], generator: np.random.Generator, resamples: int) -> list[Net]:
    """Draw the items of every task so often, those of tasks that share items together."""
    shared = _shared_strata(changes)
    joint = {task for tasks in shared for task in tasks}
    nets: list[Net] = [
        np.zeros(resamples, dtype=np.int64) if task in joint else _alone(change, generator, resamples)
        for task, change in enumerate(changes)
    ]
    for tasks, patterns in shared.items():
        for task, net in zip(tasks, _together(patterns, len(tasks), generator, resamples), strict=True):
            nets[task] += net
    return nets


def _alone(change: Change, generator: np.random.Generator, resamples: int) -> Net:
    cells = [change.lost + 0.5, change.gained + 0.5, change.n - change.lost - change.gained + 1]
    draws = generator.multinomial(change.n, np.array(cells) / (change.n + _ADDED), size=resamples)
    return draws[:, 0] - draws[:, 1]


Tasks = tuple[int, ...]
Patterns = Counter[tuple[int, ...]]
"""How many items fared so, a number for each task that holds them."""


def _shared_strata(changes: Sequence[Change]) -> dict[Tasks, Patterns]:
    """Sort the items of tasks that share any by the tasks that hold them, and count how they fared there."""
    holders: dict[str, list[int]] = {}
    for task, change in enumerate(changes):
        for item in change.items:
            holders.setdefault(item, []).append(task)
    joint = {task for tasks in holders.values() if len(tasks) > 1 for task in tasks}
    strata: dict[Tasks, Patterns] = {}
    for item, tasks in holders.items():
        if tasks[0] in joint:
            pattern = tuple(changes[task].items[item] for task in tasks)
            strata.setdefault(tuple(tasks), Counter())[pattern] += 1
    return strata


def _together(patterns: Patterns, tasks: int, generator: np.random.Generator, resamples: int) -> list[Net]:
    """Draw the items of one stratum: each is one of those that there are, or, seldom, one of those that are added."""
    count = patterns.total()
    added = generator.binomial(count, _ADDED / (count + _ADDED), size=resamples)
    shares = np.array(list(patterns.values())) / count
    draws = generator.multinomial(count - added, shares)
    outcomes = np.array(list(patterns))
    return [draws @ outcomes[:, task] + _of_added(added, generator) for task in range(tasks)]


def _of_added(added: Net, generator: np.random.Generator) -> Net:
    """Draw what became of added items in one task."""
    draws = generator.multinomial(added, [0.25, 0.25, 0.5])
    return draws[:, 0] - draws[:, 1]
