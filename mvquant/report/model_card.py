"""The section on losses for the model card (README.md) of one quantized checkpoint, in Markdown."""

import re
from collections.abc import Iterator

from mvquant.comparison import ComparisonResults, TaskScore, VariantResult
from mvquant.errors import UnknownNameError
from mvquant.evaluation import Estimate
from mvquant.evaluation.paired_tests import SIGNIFICANCE
from mvquant.report.comparison_table import markdown_rows, p_value
from mvquant.report.findings import verdict
from mvquant.report.partial import full_precision, tasks_of
from mvquant.report.verdict import NOTHING, WORDS, percent, with_interval

_SPECIAL = re.compile(r"([\\`*_\[\]<>|#&~])")

_EXPLANATION = (
    "Reading: the answer is in the prompt. Recall: the answer is in the weights. Groups are means over tasks of "
    "chance-corrected accuracy in %; lost is in points, on the same items as the full-precision model, with 95 % "
    "intervals. Tasks are plain accuracy in %; \\* differs from full precision in McNemar's exact test, "
    "Holm-adjusted over the tasks (p < 0.05)."
)


def model_card_section(results: ComparisonResults, name: str) -> str:
    """Return what a reader of the card has to know: size, losses, each task, and how to measure it again.

    Args:
        results: of a comparison.
        name: of one of its variants or controls.

    Raises:
        UnknownNameError: the comparison has no such variant.
    """
    known = {each.name: each for each in results.variants if each.role in ("variant", "control")}
    if name not in known:
        raise UnknownNameError("variant", name, known)
    variant, baseline = known[name], results.variants[0]
    blocks = [
        "## What quantization cost",
        " ".join(_introduction(results, variant)),
        _group_table(variant, baseline),
        _task_table(results, variant, baseline),
        "\n".join(f"- {line}" for line in _remarks(results, variant)),
        _EXPLANATION,
        "Measured with:",
        _fenced(results.command),
        "\n".join(f"- {line}" for line in _origins(results, variant)),
    ]
    return "\n\n".join(block for block in blocks if block) + "\n"


def plain(text: str) -> str:
    r"""Escape what Markdown would read as markup, in one line.

    >>> plain("a|b <i>")
    'a\\|b \\<i\\>'
    """
    return _SPECIAL.sub(r"\\\1", " ".join(text.split()))


def _introduction(results: ComparisonResults, variant: VariantResult) -> Iterator[str]:
    yield f"{plain(variant.name)}: {plain(variant.summary)}." if variant.summary else f"{plain(variant.name)}."
    if variant.bits_per_weight is not None:
        size = "" if variant.bytes is None else f", {variant.bytes:,} bytes in all"
        yield f"{variant.bits_per_weight:.3f} bits per weight, scales and indices included{size}."
    if variant.bits_per_cached_key not in (None, results.variants[0].bits_per_cached_key):
        yield f"{variant.bits_per_cached_key:.2f} bits per cached key over the training context, everything counted."
    gap = variant.contextual_minus_parametric
    if gap is not None:
        clear = "the interval includes zero" if gap.includes_zero else "a clear difference"
        yield f"Reading lost minus recall lost: {with_interval(gap)} points, {clear}."
        if said := verdict(variant, results.variants[0]):
            yield f"In a sentence: it {said}."
    yield f"Compared with {plain(results.model)} ({plain(results.dtype)}) on the same items."


def _group_table(variant: VariantResult, baseline: VariantResult) -> str:
    """Both models over the tasks that this one answered, so that what is lost is the difference of the two."""
    rows = [
        [word, percent(before.value), percent(variant.groups[group].corrected.value), _lost(variant.groups[group].drop)]
        for group, word in WORDS.items()
        if (before := full_precision(variant, baseline, group)) is not None
    ]
    return markdown_rows(["", "full precision", "quantized", "lost"], rows) if rows else ""


def _lost(drop: Estimate | None) -> str:
    return NOTHING if drop is None else with_interval(drop)


def _task_table(results: ComparisonResults, variant: VariantResult, baseline: VariantResult) -> str:
    rows = [
        [plain(task), str(score.n), percent(results.tasks[task].chance), _accuracy(baseline, task), *_changes(score)]
        for task, score in variant.tasks.items()
    ]
    header = ["task", "items", "chance", "full precision", "quantized", "broke / mended", "p (Holm)"]
    return markdown_rows(header, rows) if rows else ""


def _accuracy(variant: VariantResult, task: str) -> str:
    return percent(variant.tasks[task].accuracy.value) if task in variant.tasks else NOTHING


def _changes(score: TaskScore) -> tuple[str, str, str]:
    drop = score.versus_baseline
    accuracy = percent(score.accuracy.value)
    if drop is None:
        return accuracy, NOTHING, NOTHING
    mark = "\\*" if drop.p_holm < SIGNIFICANCE else ""
    return f"{accuracy}{mark}", f"{drop.lost} / {drop.gained}", p_value(drop.p_holm)


def _remarks(results: ComparisonResults, variant: VariantResult) -> Iterator[str]:
    for failure in variant.failures:
        yield f"Failed in {plain(failure.part)}: {plain(failure.message)}"
    for group, word in WORDS.items():
        if said := tasks_of(variant, results, group):
            yield f"{word.capitalize()} is the mean of {said} only, for both models."
        elif said := tasks_of(results.variants[0], results, group):
            yield f"Full precision answered {said} of {word}; what is lost is over these."
    if results.settings.limit is not None:
        yield f"Only the first {results.settings.limit} items of each task were asked."
    text = variant.text
    if text is not None and text.kl is not None and text.perplexity_ratio is not None:
        ratio = text.perplexity_ratio
        yield (
            f"On the same running text: KL divergence {text.kl.value:.3g} nats, perplexity ratio {ratio.value:.4g} "
            f"({ratio.low:.4g} to {ratio.high:.4g})."
        )


def _fenced(text: str) -> str:
    """A code block whose fence is longer than any in the text."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}sh\n{text}\n{fence}"


def _origins(results: ComparisonResults, variant: VariantResult) -> Iterator[str]:
    yield ", ".join(f"{plain(name)} {plain(version)}" for name, version in results.versions.items())
    yield f"seed {results.settings.seed}, device {plain(results.device)}"
    yield f"model `{variant.model_hash}`"
    if variant.plan_hash is not None:
        yield f"plan `{variant.plan_hash}`"
    for task in variant.tasks:
        yield f"{plain(task)} `{results.tasks[task].data_hash}`"
