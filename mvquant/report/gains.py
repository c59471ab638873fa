"""Where a variant differs from its controls: in reading, in recall, or nowhere.

Tested is what the tables show, the mean gain of each group, and not the items of all tasks together: reading that was
gained and recall that was lost would cancel there. Holm's adjustment is over both groups of all contrasts.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from mvquant.comparison import ComparisonResults, Contrast
from mvquant.evaluation import Knowledge
from mvquant.evaluation.paired_tests import SIGNIFICANCE, holm, interval_p


@dataclass(frozen=True)
class JudgedGains:
    """A contrast with the adjusted p-value of each of its gains."""

    contrast: Contrast
    p: dict[Knowledge, float]

    def clear(self, group: Knowledge) -> Literal["", "better", "worse"]:
        """Whether the variant kept clearly more of a group than the control, or clearly less."""
        if self.p.get(group, 1.0) >= SIGNIFICANCE:
            return ""
        return "better" if self.contrast.gains[group].value > 0 else "worse"

    @property
    def differs(self) -> bool:
        """Whether anything is clearly better or worse."""
        return any(self.clear(group) for group in self.p)

    @property
    def in_doubt(self) -> int:
        """How many intervals exclude zero by themselves, but not after the adjustment."""
        return sum(not gain.includes_zero and not self.clear(group) for group, gain in self.contrast.gains.items())


def judged_gains(results: ComparisonResults) -> list[JudgedGains]:
    """Return all contrasts, in their order."""
    p_values = [interval_p(gain) for contrast in results.contrasts for gain in contrast.gains.values()]
    adjusted = iter(holm(p_values))
    return [JudgedGains(contrast, _next(contrast, adjusted)) for contrast in results.contrasts]


def _next(contrast: Contrast, adjusted: Iterator[float]) -> dict[Knowledge, float]:
    return {group: next(adjusted) for group in contrast.gains}
