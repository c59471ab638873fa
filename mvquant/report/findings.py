"""What a comparison found about each variant, in a word and in a sentence that needs no statistics to be read."""

from collections.abc import Iterator, Sequence
from typing import Literal

from mvquant.comparison import ComparisonResults, Contrast, VariantResult
from mvquant.comparison.cache_controls import EQUAL
from mvquant.evaluation import Estimate, Knowledge
from mvquant.report.verdict import percent

Finding = Literal["nothing", "alike", "reading", "recall", "most", "unknown"]
"""Lost: nothing that shows; something, both alike; more reading; more recall; most of both; or nobody knows."""

_GROUPS: dict[Knowledge, str] = {"contextual": "reading", "parametric": "recall"}

_HALF = 0.5
"""A model that keeps less than this share of both has broken: which of them it lost more of says little."""


def finding(variant: VariantResult, baseline: VariantResult) -> Finding:
    """Say in a word what a variant lost against full precision."""
    gap = variant.contextual_minus_parametric
    if gap is None or guessed(baseline):
        return "unknown"
    if all(_keeps(variant, baseline, group) < _HALF for group in _GROUPS):
        return "most"
    if not gap.includes_zero:
        return "reading" if gap.value > 0 else "recall"
    drops = (variant.groups[group].drop for group in _GROUPS)
    return "nothing" if all(drop is None or drop.low <= 0 for drop in drops) else "alike"


def guessed(baseline: VariantResult) -> list[str]:
    """What full precision itself does no better than by guessing, so that nothing of it can be lost."""
    return [
        word
        for group, word in _GROUPS.items()
        if group in baseline.groups and baseline.groups[group].corrected.low <= 0
    ]


def _keeps(variant: VariantResult, baseline: VariantResult, group: Knowledge) -> float:
    return variant.groups[group].corrected.value / baseline.groups[group].corrected.value


def verdict(variant: VariantResult, baseline: VariantResult) -> str:
    """Say what a variant lost, after its name; nothing where nobody knows."""
    found, gap = finding(variant, baseline), variant.contextual_minus_parametric
    if found == "unknown" or gap is None:
        return ""
    if found == "nothing":
        return f"loses nothing that these items show ({_losses(variant)})"
    if found == "most":
        return f"loses most of both ({_losses(variant)})"
    if found == "alike":
        return (
            "loses some, reading and recall alike as far as these items tell: the difference is "
            f"{percent(gap.value)} points ({limits_of(gap)})"
        )
    return f"loses {more(gap)}"


def _losses(variant: VariantResult) -> str:
    drops = ((word, variant.groups[group].drop) for group, word in _GROUPS.items())
    return ", ".join(f"{word} {percent(drop.value)} points" for word, drop in drops if drop is not None)


def more(gap: Estimate) -> str:
    """Say by how much more is lost of one than of the other.

    >>> more(Estimate(value=-0.124, low=-0.143, high=-0.103))
    '12.4 points more recall than reading (10.3 to 14.3)'
    """
    order = "recall than reading" if gap.value < 0 else "reading than recall"
    size = gap if gap.value >= 0 else Estimate(value=-gap.value, low=-gap.high, high=-gap.low)
    return f"{percent(size.value)} points more {order} ({limits_of(size)})"


def limits_of(estimate: Estimate) -> str:
    """Write an interval in points."""
    return f"{percent(estimate.low)} to {percent(estimate.high)}"


def headline_parts(results: ComparisonResults) -> Iterator[tuple[Sequence[VariantResult], Finding]]:
    """Group the variants that were asked for by what was found, the harmless first."""
    order: tuple[Finding, ...] = ("nothing", "alike", "reading", "recall", "most")
    baseline = results.variants[0]
    asked = [each for each in results.variants if each.role == "variant"]
    for word in order:
        chosen = [each for each in asked if finding(each, baseline) == word]
        if chosen:
            yield chosen, word


def spending(contrast: Contrast, results: ComparisonResults) -> Literal["", "more", "fewer"]:
    """Whether a control takes more bytes than its variant, or clearly fewer; on disk, or of a cached key."""
    control = next(each for each in results.variants if each.name == contrast.control)
    disk, keys = contrast.extra_bytes or 0, contrast.extra_cached_bits or 0.0
    share = keys / control.bits_per_cached_key if control.bits_per_cached_key else 0.0
    if disk < 0 or share < -EQUAL:
        return "more"
    return "fewer" if share > EQUAL or disk > EQUAL * (control.bytes or disk) else ""
