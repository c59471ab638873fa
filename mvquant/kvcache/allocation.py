"""Spending a budget of bits where it removes the most error."""

import heapq
import math
from collections.abc import Sequence

from mvquant.errors import PlanError


def least_error_bits(errors: Sequence[Sequence[float]], widths: Sequence[int], budget: float) -> list[int]:
    """Choose a width for every item so that the sum of errors is small and that of widths within the budget.

    Starts from the smallest width everywhere and always takes the step that removes the most error per bit, over
    several widths at once where a single one gains little (the lower convex hull of the item's errors). Steps that
    no longer fit are passed over for smaller ones.

    Args:
        errors: of every item (row) at every width (column).
        widths: rising.
        budget: for the widths of all items together.

    Raises:
        PlanError: the budget is less than the smallest width everywhere.

    >>> least_error_bits([[8.0, 2.0, 0.5], [1.0, 0.25, 0.06]], widths=[1, 2, 3], budget=4.0)
    [3, 1]
    """
    left = budget - widths[0] * len(errors)
    if left < 0:
        average = budget / len(errors)
        message = f"a budget of {average:g} bits is below what {widths[0]} bit(s) per pair need"
        raise PlanError(f"{message}: raise average_bits to {widths[0]} or more")
    levels = [0] * len(errors)
    steps = [step for item in range(len(errors)) if (step := _best_step(item, 0, errors[item], widths))]
    heapq.heapify(steps)
    while steps:
        _, item, level = heapq.heappop(steps)
        cost = widths[level] - widths[levels[item]]
        if cost > left and level > levels[item] + 1:
            level = levels[item] + 1
            cost = widths[level] - widths[levels[item]]
        if cost > left:
            continue
        left -= cost
        levels[item] = level
        if step := _best_step(item, level, errors[item], widths):
            heapq.heappush(steps, step)
    return [widths[level] for level in levels]


def _best_step(item: int, level: int, errors: Sequence[float], widths: Sequence[int]) -> tuple[float, int, int] | None:
    """The step up that gains most per bit, as (minus its gain, item, new level); None if none gains."""
    gains = [
        ((errors[level] - errors[higher]) / (widths[higher] - widths[level]), -higher)
        for higher in range(level + 1, len(widths))
    ]
    gain, higher = max(gains, default=(0.0, 0))
    return (-gain, item, -higher) if gain > 0 else None


def ranked_bits(ranking: Sequence[int], average: float, protected: float, most: int) -> list[int]:
    """Give whole bits to all pairs, and what is left of the budget to the first in a ranking.

    The first `protected` share of the ranking gets bit after bit in turn; what that cannot hold goes to the next. Each
    of the share gets one bit more at least: what the budget has not left for it, as at a whole average, the last in the
    ranking give up, a bit each, as long as they keep one.

    Args:
        ranking: pairs of a head, most wanted first.
        average: bits of a pair on average.
        protected: share of the pairs that are protected together; 1 to prefer nobody.
        most: bits that no pair exceeds.

    >>> ranked_bits([2, 0, 1, 3], average=2.5, protected=0.25, most=8)
    [2, 2, 4, 2]
    >>> ranked_bits([2, 0, 1, 3], average=2.0, protected=0.25, most=8)
    [2, 2, 3, 1]
    """
    base = min(math.floor(average), most)
    bits = [base] * len(ranking)
    left = math.floor((average - base) * len(ranking) + 1e-9)
    size = max(1, round(protected * len(ranking)))
    lacking = max(size - left, 0) if 1 < base < most else 0
    for pair in ranking[size:][::-1][:lacking]:
        bits[pair] -= 1
        left += 1
    for start in range(0, len(ranking), size):
        together = ranking[start : start + size]
        for _ in range(base, most):
            for pair in together[:left]:
                bits[pair] += 1
            left -= min(left, len(together))
    return bits


def even_ranking(pairs: int, average: float) -> list[int]:
    """Rank pairs so that the first few lie evenly over the head: no pair is preferred.

    >>> even_ranking(6, 2.5)[:3]
    [0, 2, 4]
    """
    extra = math.floor((average - math.floor(average)) * pairs + 1e-9)
    first = [index * pairs // extra for index in range(extra)]
    return first + [pair for pair in range(pairs) if pair not in first]
