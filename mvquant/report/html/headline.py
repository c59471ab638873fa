"""The verdict in sentences: what reading lost beyond recall, and what the same bytes do elsewhere."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mvquant.comparison import ComparisonResults, Contrast, VariantResult
from mvquant.evaluation import Estimate
from mvquant.evaluation.paired_tests import SIGNIFICANCE
from mvquant.report.html.marks import SIGNS
from mvquant.report.html.words import MINUS, limits, points


def headline(results: ComparisonResults) -> str:
    """One sentence: does any variant lose clearly more reading than recall, or the other way round?"""
    gaps = {
        each.name: each.contextual_minus_parametric
        for each in results.variants
        if each.role == "variant" and each.contextual_minus_parametric is not None
    }
    if not gaps:
        return _without_gaps(results)
    widest = max(gaps, key=lambda name: abs(gaps[name].value))
    if len(gaps) == 1:
        return f"{widest} {_loses(gaps[widest])}."
    clear = {name: gap for name, gap in gaps.items() if not gap.includes_zero}
    if not clear:
        none = "Neither variant" if len(gaps) == 2 else f"None of {len(gaps)} variants"
        most = f"The widest gap: {widest}, {_more(gaps[widest])} ({limits(_turned(gaps[widest]))})"
        return f"{none} clearly loses more reading than recall, or the reverse. {most}."
    reading = [name for name, gap in clear.items() if gap.value > 0]
    recall = [name for name, gap in clear.items() if gap.value < 0]
    parts = [*_counted(reading, len(gaps), "reading than recall"), *_counted(recall, len(gaps), "recall than reading")]
    most = max(clear, key=lambda name: abs(clear[name].value))
    return f"{'; '.join(parts)}. The widest gap: {most} {_loses(clear[most])}."


def _counted(names: Sequence[str], of: int, what: str) -> Iterator[str]:
    if names:
        which = "every one" if len(names) == of else str(len(names))
        yield f"{which} of {of} variants {'loses' if len(names) == 1 or len(names) == of else 'lose'} more {what}"


def _without_gaps(results: ComparisonResults) -> str:
    groups = {group for each in results.variants for group in each.groups}
    if groups == {"contextual"}:
        return "Only reading was asked for: what it lost beyond recall is not known."
    if groups == {"parametric"}:
        return "Only recall was asked for: what reading lost beyond it is not known."
    return "No variant has answers to both reading and recall: there is no verdict."


@dataclass(frozen=True)
class Sentence:
    """What one variant lost: `verdict` is reading against recall, `losses` are the two by themselves."""

    name: str
    verdict: str
    losses: str


def verdict_sentences(results: ComparisonResults) -> list[Sentence]:
    """Return a sentence for every variant that answered anything; controls have a chart and a table."""
    return [_sentence(each) for each in results.variants if each.role == "variant" and each.groups]


def _sentence(variant: VariantResult) -> Sentence:
    gap, groups = variant.contextual_minus_parametric, variant.groups
    drops = {sign: groups[group].drop for group, sign in SIGNS.items() if group in groups}
    losses = [f"{sign} {_changed(drop)}" for sign, drop in drops.items() if drop is not None]
    return Sentence(variant.name, "" if gap is None else _loses(gap), "; ".join(losses))


def _changed(drop: Estimate) -> str:
    doubt = ", no clear change" if drop.includes_zero else ""
    if points(drop.value).startswith(MINUS):
        return f"gained {points(-drop.value)} points ({limits(_turned(drop))}{doubt})"
    return f"lost {points(drop.value)} points ({limits(drop)}{doubt})"


def _loses(gap: Estimate) -> str:
    if gap.includes_zero:
        return f"may lose reading and recall alike: the difference is {points(gap.value)} points ({limits(gap)})"
    return f"loses {_more(gap)} ({limits(_turned(gap))})"


def _more(gap: Estimate) -> str:
    order = "recall than reading" if gap.value < 0 else "reading than recall"
    return f"{points(abs(gap.value))} points more {order}"


def _turned(estimate: Estimate) -> Estimate:
    """Turn a loss below zero into a gain."""
    if estimate.value >= 0:
        return estimate
    return Estimate(value=-estimate.value, low=-estimate.high, high=-estimate.low)


def control_sentences(results: ComparisonResults) -> list[str]:
    """For each variant with controls: which of them it beats, and which beat it, at the same bytes."""
    names = dict.fromkeys(contrast.variant for contrast in results.contrasts)
    return [_against(name, [each for each in results.contrasts if each.variant == name]) for name in names]


def _against(name: str, contrasts: Sequence[Contrast]) -> str:
    better = [_control(each) for each in contrasts if each.p_holm < SIGNIFICANCE and each.better > each.worse]
    worse = [_control(each) for each in contrasts if each.p_holm < SIGNIFICANCE and each.better < each.worse]
    many = f"{len(contrasts)} {'controls' if any(map(_is_dearer, contrasts)) else 'other ways to spend its bytes'}"
    ways = many if len(contrasts) > 1 else "its control"
    if not better and not worse:
        return f"Against {ways}, {name} answers no differently, as far as these items tell."
    parts = [f"better than {', '.join(better)}"] if better else []
    parts += [f"worse than {', '.join(worse)}"] if worse else []
    rest = len(contrasts) - len(better) - len(worse)
    alike = f"; {rest} cannot be told apart" if rest else ""
    return f"Against {ways}, {name} answers {' and '.join(parts)}{alike}."


def _control(contrast: Contrast) -> str:
    return f"{contrast.control} (at more bytes)" if _is_dearer(contrast) else contrast.control


def _is_dearer(contrast: Contrast) -> bool:
    return contrast.extra_bytes is not None and contrast.extra_bytes < 0
