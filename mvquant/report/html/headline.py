"""The verdict in sentences: what reading lost beyond recall, and what the same bytes do elsewhere."""

from collections.abc import Sequence
from dataclasses import dataclass

from mvquant.comparison import ComparisonResults, Contrast, VariantResult
from mvquant.evaluation import Estimate, Knowledge
from mvquant.report.findings import Finding, guessed, headline_parts, spending, turned, verdict
from mvquant.report.gains import JudgedGains, judged_gains
from mvquant.report.html.marks import SIGNS
from mvquant.report.html.words import MINUS, limits, points

_READING, _RECALL = "reading (answers in the prompt)", "recall (answers in the weights)"

_WORDS: dict[Finding, tuple[str, str]] = {
    "nothing": ("loses", "nothing that these items show"),
    "recall gained": ("gains", "recall without a loss of reading that these items show"),
    "reading gained": ("gains", "reading without a loss of recall that these items show"),
    "apart": ("does", "better at one of reading and recall than at the other, but neither changes clearly by itself"),
    "alike": ("loses", "some, reading and recall alike as far as these items tell"),
    "reading": ("loses", "more reading than recall"),
    "recall": ("loses", "more recall than reading"),
    "most": ("loses", "most of both"),
}

_PLURAL = {"loses": "lose", "gains": "gain", "does": "do"}

_NAMED = 4


def headline(results: ComparisonResults) -> str:
    """Say at the top, for a reader who knows nothing of it yet, what the variants lost."""
    baseline = results.variants[0]
    if found := guessed(baseline):
        return (
            f"Full precision itself is not clearly better than a guess at {_both(found)} on these items: "
            "what is lost of that cannot be told."
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
    said = f"{len(names)} ({shown}) {verb if len(names) == 1 else _PLURAL[verb]} {what}"
    gaps = [gap for each in chosen if (gap := each.contextual_minus_parametric) is not None]
    if word not in ("reading", "recall"):
        return said
    widest = turned(max(gaps, key=lambda gap: abs(gap.value)))
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
        return f"gained {points(-drop.value)} points ({limits(turned(drop))}{doubt})"
    return f"lost {points(drop.value)} points ({limits(drop)}{doubt})"


def control_sentences(results: ComparisonResults) -> list[str]:
    """For each variant with controls: what it does better than which of them, and worse, at the same bytes."""
    found = judged_gains(results)
    names = dict.fromkeys(each.contrast.variant for each in found)
    return [_against(name, [each for each in found if each.contrast.variant == name], results) for name in names]


def _against(name: str, found: Sequence[JudgedGains], results: ComparisonResults) -> str:
    unequal = any(spending(each.contrast, results) for each in found)
    many = f"{len(found)} {'controls' if unequal else 'other ways to spend its bytes'}"
    ways = many if len(found) > 1 else "its control"
    clauses = [said for group, verb in _VERBS.items() if (said := _clause(group, verb, found, results))]
    if not clauses:
        asked = [verb for group, verb in _VERBS.items() if any(group in each.p for each in found)]
        alike = f"Against {ways}, {name} {' and '.join(asked)} no differently, as far as these items tell"
        return f"{alike}{_doubt(found)}."
    rest = [each for each in found if not each.differs]
    alike = f"; {len(rest)} cannot be told apart{_doubt(rest)}" if rest else ""
    return f"Against {ways}, {name} {'; it '.join(clauses)}{alike}."


_VERBS: dict[Knowledge, str] = {"contextual": "reads", "parametric": "recalls"}


def _clause(group: Knowledge, verb: str, found: Sequence[JudgedGains], results: ComparisonResults) -> str:
    sides = {
        word: [_control(each.contrast, results) for each in found if each.clear(group) == word]
        for word in ("better", "worse")
    }
    said = " and ".join(f"{word} than {', '.join(controls)}" for word, controls in sides.items() if controls)
    return f"{verb} {said}" if said else ""


def _doubt(found: Sequence[JudgedGains]) -> str:
    """Why an interval without zero in the table is no difference here."""
    count = sum(each.in_doubt for each in found)
    if not count:
        return ""
    which = "one interval excludes" if count == 1 else f"{count} intervals exclude"
    return f" ({which} zero, but that may be chance among so many)"


def _control(contrast: Contrast, results: ComparisonResults) -> str:
    spent = spending(contrast, results)
    return f"{contrast.control} (at {spent} bytes)" if spent else contrast.control
