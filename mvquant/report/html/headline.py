"""The verdict in sentences: what reading lost beyond recall, and what the same bytes do elsewhere."""

from collections.abc import Sequence
from dataclasses import dataclass

from mvquant.comparison import ComparisonResults, Contrast, VariantResult
from mvquant.evaluation import Estimate
from mvquant.evaluation.paired_tests import SIGNIFICANCE
from mvquant.report.findings import Finding, guessed, headline_parts, spending, verdict
from mvquant.report.html.marks import SIGNS
from mvquant.report.html.words import MINUS, limits, points

_READING, _RECALL = "reading (answers in the prompt)", "recall (answers in the weights)"

_WORDS: dict[Finding, tuple[str, str]] = {
    "nothing": ("loses", "nothing that these items show"),
    "alike": ("loses", "some, reading and recall alike as far as these items tell"),
    "reading": ("loses", "more reading than recall"),
    "recall": ("loses", "more recall than reading"),
    "most": ("loses", "most of both"),
}

_NAMED = 4


def headline(results: ComparisonResults) -> str:
    """Say at the top, for a reader who knows nothing of it yet, what the variants lost."""
    baseline = results.variants[0]
    if found := guessed(baseline):
        return (
            f"Full precision itself is no better than a guess at {_both(found)}: what is lost of that cannot be told."
        )
    parts = list(headline_parts(results))
    count = sum(len(chosen) for chosen, _ in parts)
    if not parts:
        return _without_gaps(results)
    if count == 1:
        (only,) = parts[0][0]
        return _explained(f"{only.name} {_signed(verdict(only, baseline))}.", only.name)
    said = "; ".join(_part(chosen, word) for chosen, word in parts)
    return _explained(f"Of {count} variants, {said}.", *(each.name for chosen, _ in parts for each in chosen))


def _part(chosen: Sequence[VariantResult], word: Finding) -> str:
    names = [each.name for each in chosen]
    shown = ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")
    verb, what = _WORDS[word]
    said = f"{len(names)} ({shown}) {verb if len(names) == 1 else verb.removesuffix('s')} {what}"
    gaps = [gap for each in chosen if (gap := each.contextual_minus_parametric) is not None]
    if word not in ("reading", "recall"):
        return said
    widest = _turned(max(gaps, key=lambda gap: abs(gap.value)))
    by = "by" if len(names) == 1 else "by up to"
    return f"{said}, {by} {points(widest.value)} points ({limits(widest)})"


def _explained(sentence: str, *names: str) -> str:
    """Say of reading and recall what they are, where they are named first; names of variants stay as they are."""
    holders = {f"\0{index}\0": name for index, name in enumerate(names)}
    for holder, name in sorted(holders.items(), key=lambda pair: -len(pair[1])):
        sentence = sentence.replace(name, holder)
    sentence = sentence.replace("reading", _READING, 1).replace("recall", _RECALL, 1)
    for holder, name in holders.items():
        sentence = sentence.replace(holder, name)
    return sentence


def _both(words: Sequence[str]) -> str:
    return " and ".join({"reading": _READING, "recall": _RECALL}[word] for word in words)


def _signed(text: str) -> str:
    """Write minus signs as such; verdicts have no other hyphens."""
    return text.replace("-", MINUS)


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
    baseline = results.variants[0]
    return [_sentence(each, baseline) for each in results.variants if each.role == "variant" and each.groups]


def _sentence(variant: VariantResult, baseline: VariantResult) -> Sentence:
    groups = variant.groups
    drops = {sign: groups[group].drop for group, sign in SIGNS.items() if group in groups}
    losses = [f"{sign} {_changed(drop)}" for sign, drop in drops.items() if drop is not None]
    return Sentence(variant.name, _signed(verdict(variant, baseline)), "; ".join(losses))


def _changed(drop: Estimate) -> str:
    doubt = ", no clear change" if drop.includes_zero else ""
    if points(drop.value).startswith(MINUS):
        return f"gained {points(-drop.value)} points ({limits(_turned(drop))}{doubt})"
    return f"lost {points(drop.value)} points ({limits(drop)}{doubt})"


def _turned(estimate: Estimate) -> Estimate:
    """Turn a loss below zero into a gain."""
    if estimate.value >= 0:
        return estimate
    return Estimate(value=-estimate.value, low=-estimate.high, high=-estimate.low)


def control_sentences(results: ComparisonResults) -> list[str]:
    """For each variant with controls: which of them it beats, and which beat it, at the same bytes."""
    names = dict.fromkeys(contrast.variant for contrast in results.contrasts)
    return [_against(name, results) for name in names]


def _against(name: str, results: ComparisonResults) -> str:
    contrasts = [each for each in results.contrasts if each.variant == name]
    clear = [each for each in contrasts if each.p_holm < SIGNIFICANCE]
    better = [_control(each, results) for each in clear if each.better > each.worse]
    worse = [_control(each, results) for each in clear if each.better < each.worse]
    unequal = any(spending(each, results) for each in contrasts)
    many = f"{len(contrasts)} {'controls' if unequal else 'other ways to spend its bytes'}"
    ways = many if len(contrasts) > 1 else "its control"
    if not better and not worse:
        return f"Against {ways}, {name} answers no differently, as far as these items tell."
    parts = [f"better than {', '.join(better)}"] if better else []
    parts += [f"worse than {', '.join(worse)}"] if worse else []
    rest = len(contrasts) - len(better) - len(worse)
    alike = f"; {rest} cannot be told apart" if rest else ""
    return f"Against {ways}, {name} answers {' and '.join(parts)}{alike}."


def _control(contrast: Contrast, results: ComparisonResults) -> str:
    spent = spending(contrast, results)
    return f"{contrast.control} (at {spent} bytes)" if spent else contrast.control
