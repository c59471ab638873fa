"""A comparison as `table.md`: Markdown that is aligned, so that it reads at 80 columns as plain text too."""

import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence

from mvquant.comparison import ComparisonResults, VariantResult
from mvquant.evaluation import Knowledge
from mvquant.evaluation.paired_tests import SIGNIFICANCE
from mvquant.report.comparison_remarks import nats, remarks, short_labels
from mvquant.report.findings import guessed, spending, verdict
from mvquant.report.gains import JudgedGains, judged_gains
from mvquant.report.partial import is_partial, partial_groups, tasks_of
from mvquant.report.verdict import NOTHING, WORDS, percent, with_interval

WIDTH = 80

EXPLANATION = (
    "reading: contextual tasks, the answer is in the prompt; recall: parametric tasks, the answer is in the weights. "
    "Both, and what is lost or kept of them: chance-corrected accuracy in %, means over tasks, on the same items, with "
    "95 % intervals; reading - recall: how much more reading lost. *: differs from full precision in McNemar's exact "
    "test, Holm-adjusted over the tasks (p < 0.05). KL: mean divergence of the next token from full precision on "
    "running text, in nats; tail: its 99.9 % quantile. Near lossless, KL does not rank quantizers. dist-2: different "
    "pairs of tokens in continuations over all pairs."
)

PARTIAL = "~"

PARTIAL_EXPLANATION = (
    f"Behind a figure, {PARTIAL} says that it is of some tasks of its group only: it is not comparable with the others."
)

CACHE_EXPLANATION = (
    "bits/k: of a value of K in the cache over the training context, with scales, tables and tokens that stay exact; "
    "bits/kv: of K and V on average."
)

CONTRAST_EXPLANATION = (
    "Than controls: behind a name, + takes more than the same bytes, - over 1 % fewer; behind a gain, * is a clear "
    "difference: p < 0.05 by its interval, Holm-adjusted over all gains against controls."
)

Cell = Callable[[VariantResult], str]


def comparison_markdown(results: ComparisonResults) -> str:
    """Return the verdict in sentences, the tables, what failed, and what the words mean."""
    blocks = [
        f"# {results.settings.summary or f'What quantizing {results.model} loses'}",
        _bullets(verdict_lines(results)),
        *_tables(results.variants, _columns(results)),
        *(["On the same running text:", _table(results.variants, _TEXT)] if _has_text(results) else []),
        "Accuracy by task, %:",
        *_task_tables(results),
        *_contrast_tables(results),
        _bullets(remarks(results)),
        textwrap.fill(EXPLANATION, WIDTH),
        textwrap.fill(PARTIAL_EXPLANATION, WIDTH) if any(partial_groups(results)) else "",
        textwrap.fill(CACHE_EXPLANATION, WIDTH) if differing_keys(results.variants) else "",
        textwrap.fill(CONTRAST_EXPLANATION, WIDTH) if results.contrasts else "",
    ]
    return "\n\n".join(block for block in blocks if block) + "\n"


def _bullets(lines: Iterable[str]) -> str:
    filled = [textwrap.fill(f"- {line}", WIDTH, subsequent_indent="  ", break_long_words=False) for line in lines]
    return "\n".join(filled)


def verdict_lines(results: ComparisonResults) -> Iterator[str]:
    """One sentence for each variant: what reading and recall lost, and whether one clearly lost more."""
    baseline = results.variants[0]
    if found := guessed(baseline):
        yield (
            f"Full precision itself is not clearly better than a guess at {' and '.join(found)} on these items: "
            "no loss of it can be told."
        )
    for variant in results.variants:
        if variant.role == "variant" and (said := verdict(variant, baseline)):
            yield f"{variant.name} {said}"


def _lost(group: Knowledge, results: ComparisonResults) -> Cell:
    def cell(variant: VariantResult) -> str:
        found = variant.groups.get(group)
        if variant.role == "baseline" and found is not None:
            return "baseline"
        if found is None or found.drop is None:
            return NOTHING
        return with_interval(found.drop) + _part(variant, results, group)

    return cell


def _part(variant: VariantResult, results: ComparisonResults, group: Knowledge) -> str:
    return PARTIAL if tasks_of(variant, results, group) else ""


def _gap(results: ComparisonResults) -> Cell:
    def cell(variant: VariantResult) -> str:
        gap = variant.contextual_minus_parametric
        return NOTHING if gap is None else with_interval(gap) + (PARTIAL if is_partial(variant, results) else "")

    return cell


def _score(group: Knowledge, results: ComparisonResults) -> Cell:
    def cell(variant: VariantResult) -> str:
        found = variant.groups.get(group)
        return NOTHING if found is None else percent(found.corrected.value) + _part(variant, results, group)

    return cell


def _number(value: float | None, digits: int) -> str:
    return NOTHING if value is None else f"{value:.{digits}f}"


def _ratio(variant: VariantResult) -> str:
    ratio = variant.text.perplexity_ratio if variant.text else None
    return NOTHING if ratio is None else f"{ratio.value:.4g} [{ratio.low:.4g}, {ratio.high:.4g}]"


def _all_columns(results: ComparisonResults) -> dict[str, Cell]:
    return {
        "bits/w": lambda variant: _number(variant.bits_per_weight, 2),
        "reading lost": _lost("contextual", results),
        "recall lost": _lost("parametric", results),
        "bits/k": lambda variant: _number(variant.bits_per_cached_key, 2),
        "bits/kv": lambda variant: _number(variant.bits_per_cached_value, 2),
        "MB": lambda variant: NOTHING if variant.bytes is None else f"{variant.bytes / 1e6:,.2f}",
        "reading": _score("contextual", results),
        "recall": _score("parametric", results),
        "reading - recall": _gap(results),
    }


def _columns(results: ComparisonResults) -> dict[str, Cell]:
    """The columns that say something: bits of keys where they differ, of keys and values where values differ too."""
    variants = results.variants
    untold: set[str] = set() if differing_keys(variants) else {"bits/k"}
    if not _differing_values(variants):
        untold.add("bits/kv")
    return {name: cell for name, cell in _all_columns(results).items() if name not in untold}


def differing_keys(variants: Sequence[VariantResult]) -> bool:
    """Whether some variant caches keys in other bits than another."""
    return len({variant.bits_per_cached_key for variant in variants} - {None}) > 1


def _differing_values(variants: Sequence[VariantResult]) -> bool:
    pairs = ((each.bits_per_cached_key, each.bits_per_cached_value) for each in variants)
    return len({round(2 * both - keys, 6) for keys, both in pairs if keys is not None and both is not None}) > 1


_TEXT: dict[str, Cell] = {
    "KL": lambda variant: nats(variant.text.kl.value if variant.text and variant.text.kl else None),
    "tail": lambda variant: nats(variant.text.kl_tail if variant.text else None),
    "top-1": lambda variant: percent(variant.text.top_1.value) if variant.text and variant.text.top_1 else NOTHING,
    "perplexity ratio": _ratio,
    "dist-2": lambda variant: _number(_distinct(variant), 2),
}


def _distinct(variant: VariantResult) -> float | None:
    return variant.text.continuations.distinct_2 if variant.text and variant.text.continuations else None


def _has_text(results: ComparisonResults) -> bool:
    return any(variant.text is not None for variant in results.variants)


def _tables(variants: Sequence[VariantResult], columns: dict[str, Cell]) -> Iterator[str]:
    """As many columns side by side as 80 columns of letters hold."""
    names = max(len(_name(variant.name)) for variant in variants)
    shown: dict[str, Cell] = {}
    width = start = names + 4
    for name, cell in columns.items():
        needed = 3 + max(len(name), *(len(cell(variant)) for variant in variants))
        if shown and width + needed > WIDTH:
            yield _table(variants, shown)
            shown, width = {}, start
        shown[name] = cell
        width += needed
    yield _table(variants, shown)


def _table(variants: Sequence[VariantResult], columns: dict[str, Cell]) -> str:
    rows = [[_name(variant.name), *(cell(variant) for cell in columns.values())] for variant in variants]
    return markdown_rows(["model", *columns], rows)


def _task_tables(results: ComparisonResults) -> Iterator[str]:
    """As many tasks side by side as 80 columns hold."""
    labels = _labels(results) | {"": ""}
    rows = [variant for variant in results.variants if variant.role != "again"]
    names = max(len(_name(variant.name)) for variant in rows)
    side_by_side: list[str] = []
    for task in [*results.tasks, ""]:
        width = names + 4 + sum(max(len(labels[each]), 6) + 3 for each in (*side_by_side, task))
        if side_by_side and (width > WIDTH or not task):
            yield _one_task_table(results, rows, side_by_side)
            side_by_side = []
        side_by_side.append(task)


def _one_task_table(results: ComparisonResults, variants: Sequence[VariantResult], tasks: Sequence[str]) -> str:
    rows = [[_name(variant.name), *(_task_cell(variant, task) for task in tasks)] for variant in variants]
    chance = ["*chance*", *(f"{percent(results.tasks[task].chance)} " for task in tasks)]
    labels = _labels(results)
    return markdown_rows(["model", *(labels[task] for task in tasks)], [*rows, chance])


def _labels(results: ComparisonResults) -> dict[str, str]:
    return {task: _name(label) for task, label in short_labels(list(results.tasks)).items()}


def _task_cell(variant: VariantResult, task: str) -> str:
    score = variant.tasks.get(task)
    if score is None:
        return f"{NOTHING} "
    differs = score.versus_baseline is not None and score.versus_baseline.p_holm < SIGNIFICANCE
    return percent(score.accuracy.value) + ("*" if differs else " ")


def _contrast_tables(results: ComparisonResults) -> Iterator[str]:
    """One table for each variant that has controls."""
    found = judged_gains(results)
    for variant in dict.fromkeys(each.contrast.variant for each in found):
        yield f"What {variant} kept more than the same bytes spent in another way:"
        rows = [
            [
                f"{_name(each.contrast.control)}{_SPENT[spending(each.contrast, results)]}",
                *(_gain(each, group) for group in WORDS),
            ]
            for each in found
            if each.contrast.variant == variant
        ]
        yield markdown_rows(["than", *(f"{word} kept" for word in WORDS.values())], rows)


_SPENT = {"": "", "more": " +", "fewer": " -"}


def _gain(found: JudgedGains, group: Knowledge) -> str:
    gain = found.contrast.gains.get(group)
    return f"{NOTHING} " if gain is None else with_interval(gain) + ("*" if found.clear(group) else " ")


def _name(text: str) -> str:
    """Keep a name inside its cell."""
    return text.replace("|", "\\|")


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
