"""What a comparison found about each variant, in a word and in a sentence that needs no statistics to be read."""

from collections.abc import Iterator, Sequence
from typing import Literal, get_args

from mvquant.comparison import ComparisonResults, Contrast, VariantResult
from mvquant.comparison.cache_controls import EQUAL
from mvquant.evaluation import Estimate, Knowledge
from mvquant.report.partial import full_precision
from mvquant.report.verdict import percent

Finding = Literal[
    "nothing", "recall gained", "reading gained", "apart", "alike", "reading", "recall", "most", "unknown"
]
"""What was lost, the harmless first: nothing that shows; nothing, and one of them gained; the two differ, but neither
changed clearly; something, both alike; more reading; more recall; most of both; or nobody knows."""

_GROUPS: dict[Knowledge, str] = {"contextual": "reading", "parametric": "recall"}

_HALF = 0.5
"""A model that keeps less than this share of both has broken: which of them it lost more of says little."""


def finding(variant: VariantResult, baseline: VariantResult) -> Finding:
    """Say in a word what a variant lost against full precision."""
    gap = variant.contextual_minus_parametric
    before = [full_precision(variant, baseline, group) for group in _GROUPS]
    if gap is None or guessed(baseline) or any(score is None or score.low <= 0 for score in before):
        return "unknown"
    if all(_keeps(variant, baseline, group) < _HALF for group in _GROUPS):
        return "most"
    if not gap.includes_zero:
        return _clearly_apart(variant, gap)
    drops = (variant.groups[group].drop for group in _GROUPS)
    return "nothing" if all(drop is None or drop.low <= 0 for drop in drops) else "alike"


def _clearly_apart(variant: VariantResult, gap: Estimate) -> Finding:
    """A clear difference is a loss only where the one that fared worse was clearly lost: the other may have gained."""
    reading, recall = (variant.groups[group].drop for group in _GROUPS)
    worse, better = (reading, recall) if gap.value > 0 else (recall, reading)
    if worse is None or better is None or worse.low > 0:
        return "reading" if gap.value > 0 else "recall"
    if better.high >= 0:
        return "apart"
    return "recall gained" if gap.value > 0 else "reading gained"


def guessed(baseline: VariantResult) -> list[str]:
    """What full precision itself is not clearly better at than a guess, so that no loss of it can be told."""
    return [
        word
        for group, word in _GROUPS.items()
        if group in baseline.groups and baseline.groups[group].corrected.low <= 0
    ]


def _keeps(variant: VariantResult, baseline: VariantResult, group: Knowledge) -> float:
    """The share of full precision's score that is left, over the tasks that both answered."""
    before, drop = full_precision(variant, baseline, group), variant.groups[group].drop
    return 1.0 if before is None or drop is None else 1 - drop.value / before.value


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
    if found in ("reading", "recall"):
        return f"loses {more(gap)}"
    return _without_loss(variant, gap)


def _without_loss(variant: VariantResult, gap: Estimate) -> str:
    order: tuple[Knowledge, Knowledge] = ("contextual", "parametric")
    worse, better = order if gap.value > 0 else order[::-1]
    gained = variant.groups[better].drop
    if gained is not None and gained.high < 0:
        size = turned(gained)
        return (
            f"gains {percent(size.value)} points of {_GROUPS[better]} ({limits_of(size)}) without a loss of "
            f"{_GROUPS[worse]} that these items show"
        )
    size = turned(gap)
    return (
        f"does {percent(size.value)} points better at {_GROUPS[better]} than at {_GROUPS[worse]} ({limits_of(size)}), "
        f"but neither changes clearly by itself ({_losses(variant)} lost)"
    )


def _losses(variant: VariantResult) -> str:
    drops = ((word, variant.groups[group].drop) for group, word in _GROUPS.items())
    return ", ".join(f"{word} {percent(drop.value)} points" for word, drop in drops if drop is not None)


def more(gap: Estimate) -> str:
    """Say by how much more is lost of one than of the other.

    >>> more(Estimate(value=-0.124, low=-0.143, high=-0.103))
    '12.4 points more recall than reading (10.3 to 14.3)'
    """
    order = "recall than reading" if gap.value < 0 else "reading than recall"
    size = turned(gap)
    return f"{percent(size.value)} points more {order} ({limits_of(size)})"


def turned(estimate: Estimate) -> Estimate:
    """Turn a loss below zero into a gain."""
    if estimate.value >= 0:
        return estimate
    return Estimate(value=-estimate.value, low=-estimate.high, high=-estimate.low)


def limits_of(estimate: Estimate) -> str:
    """Write an interval in points."""
    return f"{percent(estimate.low)} to {percent(estimate.high)}"


def headline_parts(results: ComparisonResults) -> Iterator[tuple[Sequence[VariantResult], Finding]]:
    """Group the variants that were asked for by what was found, the harmless first."""
    baseline = results.variants[0]
    asked = [each for each in results.variants if each.role == "variant"]
    for word in get_args(Finding):
        chosen = [each for each in asked if finding(each, baseline) == word]
        if chosen and word != "unknown":
            yield chosen, word


def spending(contrast: Contrast, results: ComparisonResults) -> Literal["", "more", "fewer"]:
    """Whether a control takes more bytes than its variant, or clearly fewer; on disk, or of a cached key."""
    control = next(each for each in results.variants if each.name == contrast.control)
    disk, keys = contrast.extra_bytes or 0, contrast.extra_cached_bits or 0.0
    share = keys / control.bits_per_cached_key if control.bits_per_cached_key else 0.0
    if disk < 0 or share < -EQUAL:
        return "more"
    return "fewer" if share > EQUAL or disk > EQUAL * (control.bytes or disk) else ""
