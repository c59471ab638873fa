"""A comparison as `table.md`: Markdown that is aligned, so that it reads at 80 columns as plain text too."""

import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence

from mvquant.comparison import ComparisonResults, Contrast, VariantResult
from mvquant.evaluation import Estimate, Knowledge
from mvquant.evaluation.paired_tests import SIGNIFICANCE
from mvquant.report.verdict import NOTHING, WORDS, percent, with_interval

WIDTH = 80

EXPLANATION = (
    "reading: contextual tasks, the answer is in the prompt; recall: parametric",
    "tasks, the answer is in the weights. Lost and kept: points of chance-corrected",
    "accuracy, means over tasks, on the same items, with 95 % intervals. *: differs",
    "from full precision in McNemar's exact test, Holm-adjusted over the tasks",
    "(p < 0.05). KL: mean divergence of the next token from full precision on running",
    "text, in nats; tail: its 99.9 % quantile. Near lossless, KL does not rank",
    "quantizers. dist-2: different pairs of tokens in continuations over all pairs.",
)

CACHE_EXPLANATION = "bits/kv: of a value of K or V in the cache, scales and tokens that stay exact included."

Cell = Callable[[VariantResult], str]


def comparison_markdown(results: ComparisonResults) -> str:
    """Return the verdict in sentences, the tables, what failed, and what the words mean."""
    blocks = [
        f"# {results.settings.summary or f'What quantizing {results.model} loses'}",
        _bullets(verdict_lines(results)),
        _table(results.variants, _LOSSES),
        _table(results.variants, _sizes(results.variants)),
        *(["On the same running text:", _table(results.variants, _TEXT)] if _has_text(results) else []),
        "Accuracy by task, %:",
        *_task_tables(results),
        *_contrast_tables(results.contrasts),
        _bullets(remarks(results)),
        "\n".join(EXPLANATION),
        CACHE_EXPLANATION if _told(results.variants) else "",
    ]
    return "\n\n".join(block for block in blocks if block) + "\n"


def _bullets(lines: Iterable[str]) -> str:
    filled = [textwrap.fill(f"- {line}", WIDTH, subsequent_indent="  ", break_long_words=False) for line in lines]
    return "\n".join(filled)


def verdict_lines(results: ComparisonResults) -> Iterator[str]:
    """One sentence for each variant: what reading lost beyond what recall lost, and whether that is clear."""
    for variant in results.variants:
        if variant.role == "variant" and variant.contextual_minus_parametric is not None:
            yield f"{variant.name}: {_headline(variant.contextual_minus_parametric)}"


def _headline(gap: Estimate) -> str:
    span = f"{percent(gap.value)} points, {percent(gap.low)} to {percent(gap.high)}"
    if gap.includes_zero:
        return f"reading and recall lose alike, as far as these items tell ({span})"
    more, less = ("reading", "recall") if gap.value > 0 else ("recall", "reading")
    size = Estimate(value=abs(gap.value), low=min(abs(gap.low), abs(gap.high)), high=max(abs(gap.low), abs(gap.high)))
    return f"{more} loses {percent(size.value)} points more than {less} ({percent(size.low)} to {percent(size.high)})"


def remarks(results: ComparisonResults) -> Iterator[str]:
    """What failed, and what a reader has to know before trusting the figures."""
    for variant in results.variants:
        for failure in variant.failures:
            yield f"**{variant.name} failed** in {failure.part}: {failure.message.splitlines()[0]}"
    if results.settings.limit is not None:
        yield f"Only the first {results.settings.limit} items of each task were asked."
    yield from _noise(results)
    yield from _about_answers(results)
    smallest = [
        score.versus_baseline.minimum_detectable
        for variant in results.variants
        if variant.role == "variant"
        for score in variant.tasks.values()
        if score.versus_baseline
    ]
    if smallest:
        low, high = percent(min(smallest)), percent(max(smallest))
        yield f"Smallest drop of one task that these items show with 80 % probability: {low} to {high} points."


def _about_answers(results: ComparisonResults) -> Iterator[str]:
    labels = short_labels(list(results.tasks))
    for variant in results.variants:
        for name, score in variant.tasks.items():
            task = labels[name]
            if score.cut_off:
                yield f"{variant.name}: {score.cut_off} of {score.n} answers to {task} never ended and were cut."
            if score.too_long and variant.role == "baseline":
                yield f"{score.too_long} items of {task} are longer than the model reads: not counted."


def _noise(results: ComparisonResults) -> Iterator[str]:
    again = next((variant for variant in results.variants if variant.role == "again" and variant.tasks), None)
    if again is None:
        return
    drops = [score.versus_baseline for score in again.tasks.values() if score.versus_baseline]
    flips, items = sum(drop.lost + drop.gained for drop in drops), sum(drop.n for drop in drops)
    floor = "" if again.text is None or again.text.kl is None else f", KL {_nats(again.text.kl.value)}"
    yield f"Noise floor, full precision again in other batches: {flips} of {items} answers changed{floor}."


def _lost(group: Knowledge) -> Cell:
    def cell(variant: VariantResult) -> str:
        found = variant.groups.get(group)
        if found is None:
            return NOTHING
        return "baseline" if variant.role == "baseline" else with_interval(found.drop) if found.drop else NOTHING

    return cell


def _gap(variant: VariantResult) -> str:
    gap = variant.contextual_minus_parametric
    return NOTHING if gap is None else with_interval(gap)


def _score(group: Knowledge) -> Cell:
    return lambda variant: percent(variant.groups[group].corrected.value) if group in variant.groups else NOTHING


def _number(value: float | None, digits: int) -> str:
    return NOTHING if value is None else f"{value:.{digits}f}"


def _nats(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.2g}" if value < 0.1 else f"{value:.3f}"


def _ratio(variant: VariantResult) -> str:
    ratio = variant.text.perplexity_ratio if variant.text else None
    return NOTHING if ratio is None else f"{ratio.value:.4g} [{ratio.low:.4g}, {ratio.high:.4g}]"


_LOSSES: dict[str, Cell] = {
    "bits/w": lambda variant: _number(variant.bits_per_weight, 2),
    "reading lost": _lost("contextual"),
    "recall lost": _lost("parametric"),
}

_SIZES: dict[str, Cell] = {
    "bytes": lambda variant: NOTHING if variant.bytes is None else f"{variant.bytes:,}",
    "reading": _score("contextual"),
    "recall": _score("parametric"),
    "lost, reading - recall": _gap,
}

_CACHE: dict[str, Cell] = {"bits/kv": lambda variant: _number(variant.bits_per_cached_value, 2)}
"""Told where some variant quantizes the cache of keys and values."""


def _told(variants: Sequence[VariantResult]) -> bool:
    return len({variant.bits_per_cached_value for variant in variants} - {None}) > 1


def _sizes(variants: Sequence[VariantResult]) -> dict[str, Cell]:
    return {**_CACHE, **_SIZES} if _told(variants) else _SIZES


_TEXT: dict[str, Cell] = {
    "KL": lambda variant: _nats(variant.text.kl.value if variant.text and variant.text.kl else None),
    "tail": lambda variant: _nats(variant.text.kl_tail if variant.text else None),
    "top-1": lambda variant: percent(variant.text.top_1.value) if variant.text and variant.text.top_1 else NOTHING,
    "perplexity ratio": _ratio,
    "dist-2": lambda variant: _number(_distinct(variant), 2),
}


def _distinct(variant: VariantResult) -> float | None:
    return variant.text.continuations.distinct_2 if variant.text and variant.text.continuations else None


def _has_text(results: ComparisonResults) -> bool:
    return any(variant.text is not None for variant in results.variants)


def _table(variants: Sequence[VariantResult], columns: dict[str, Cell]) -> str:
    rows = [[variant.name, *(cell(variant) for cell in columns.values())] for variant in variants]
    return markdown_rows(["model", *columns], rows)


def short_labels(tasks: Sequence[str]) -> dict[str, str]:
    """Names of tasks without a first word that all of them share.

    >>> short_labels(["reference_passkey", "reference_city_country"])
    {'reference_passkey': 'passkey', 'reference_city_country': 'city_country'}
    """
    first_words = {name.partition("_")[0] for name in tasks}
    shared = f"{first_words.pop()}_" if len(tasks) > 1 and len(first_words) == 1 else ""
    return {name: name.removeprefix(shared) for name in tasks}


def _task_tables(results: ComparisonResults) -> Iterator[str]:
    """As many tasks side by side as 80 columns hold."""
    labels = short_labels(list(results.tasks)) | {"": ""}
    rows = [variant for variant in results.variants if variant.role != "again"]
    names = max(len(variant.name) for variant in rows)
    side_by_side: list[str] = []
    for task in [*results.tasks, ""]:
        width = names + 4 + sum(max(len(labels[each]), 6) + 3 for each in (*side_by_side, task))
        if side_by_side and (width > WIDTH or not task):
            yield _one_task_table(results, rows, side_by_side)
            side_by_side = []
        side_by_side.append(task)


def _one_task_table(results: ComparisonResults, variants: Sequence[VariantResult], tasks: Sequence[str]) -> str:
    rows = [[variant.name, *(_task_cell(variant, task) for task in tasks)] for variant in variants]
    chance = ["*chance*", *(f"{percent(results.tasks[task].chance)} " for task in tasks)]
    labels = short_labels(list(results.tasks))
    return markdown_rows(["model", *(labels[task] for task in tasks)], [*rows, chance])


def _task_cell(variant: VariantResult, task: str) -> str:
    score = variant.tasks.get(task)
    if score is None:
        return f"{NOTHING} "
    differs = score.versus_baseline is not None and score.versus_baseline.p_holm < SIGNIFICANCE
    return percent(score.accuracy.value) + ("*" if differs else " ")


def _contrast_tables(contrasts: Sequence[Contrast]) -> Iterator[str]:
    """One table for each variant that has controls."""
    for variant in dict.fromkeys(contrast.variant for contrast in contrasts):
        yield f"What {variant} kept more than the same bytes spent in another way:"
        rows = [
            [each.control, *(_gain(each, group) for group in WORDS), p_value(each.p_holm)]
            for each in contrasts
            if each.variant == variant
        ]
        yield markdown_rows(["than", *(f"{word} kept" for word in WORDS.values()), "p"], rows)


def _gain(contrast: Contrast, group: Knowledge) -> str:
    gain = contrast.gains.get(group)
    return NOTHING if gain is None else with_interval(gain)


def p_value(p: float) -> str:
    """Two digits, and no p-value of zero.

    >>> p_value(0.0312), p_value(1e-9), p_value(1.0)
    ('0.031', '<0.001', '1.000')
    """
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def markdown_rows(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns are aligned as plain text too; all but the first to the right.

    >>> print(markdown_rows(["model", "bits"], [["w4a16", "4.12"]]))
    | model | bits |
    | :---- | ---: |
    | w4a16 | 4.12 |
    """
    widths = [max(3, *(len(row[column]) for row in (header, *rows))) for column in range(len(header))]
    rule = [":" + "-" * (widths[0] - 1), *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join(_line(row, widths) for row in (header, rule, *rows))


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = [
        cells[0].ljust(widths[0]),
        *(cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True)),
    ]
    return f"| {' | '.join(padded)} |"
