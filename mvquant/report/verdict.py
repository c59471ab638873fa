"""What each model reads and knows, and what it lost: a table and a sentence for the terminal.

reading   contextual tasks: the answer is in the prompt
recall    parametric tasks: the answer is in the weights
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from mvquant.evaluation import Comparison, Estimate, EvalResult, Knowledge, compare

WORDS: dict[Knowledge, str] = {"contextual": "reading", "parametric": "recall"}
NOTHING = "-"
NO_DATA = "no data"
EXPLANATION = (
    "reading: contextual tasks, the answer is in the prompt; recall: parametric tasks, the answer is in the "
    "weights. Means over tasks of chance-corrected accuracy in %; lost: in points, on the same items; "
    "[95 % interval]."
)


@dataclass(frozen=True)
class Verdict:
    """One model under a short name, compared with the baseline; the baseline itself has no comparison."""

    name: str
    result: EvalResult
    comparison: Comparison | None

    @property
    def bits(self) -> str:
        """Bits per weight, as far as the result knows them."""
        bits = self.result.subject.bits_per_weight
        return NOTHING if bits is None else f"{bits:.2f}"

    def score(self, group: Knowledge) -> str:
        """Chance-corrected accuracy of one group."""
        found = self.result.groups.get(group)
        return percent(found.corrected.value) if found else NOTHING

    def lost(self, group: Knowledge) -> str:
        """Points lost in one group, with their interval."""
        if self.comparison is None:
            return "baseline"
        drop = self.comparison.groups.get(group)
        return with_interval(drop) if drop else NOTHING

    def accuracy(self, task: str) -> str:
        """Plain accuracy of one task."""
        found = self.result.tasks.get(task)
        return percent(found.accuracy.value) if found else NOTHING


def judge(results: Sequence[EvalResult], baseline: EvalResult | None = None) -> list[Verdict]:
    """Compare every result with the baseline, which is the first if not given.

    Raises:
        EvaluationError: results that are not about the same data.
    """
    first = baseline or results[0]
    names = short_names([result.subject.model for result in results])
    return [
        Verdict(name, result, None if result is first else compare(first, result))
        for name, result in zip(names, results, strict=True)
    ]


def verdict_table(results: Sequence[EvalResult], baseline: EvalResult | None = None) -> RenderableType:
    """Return tables by group and by task, and one sentence for each model that is not the baseline.

    Args:
        results: at least one.
        baseline: what the others are compared with; the first result if not given.

    Raises:
        EvaluationError: results that are not about the same data.
    """
    verdicts = judge(results, baseline)
    few = len(verdicts) <= 2
    tasks = _task_details(verdicts) if few else _task_table(verdicts)
    sentences = [sentence(verdict) for verdict in verdicts if verdict.comparison]
    parts: list[RenderableType] = [_group_table(verdicts), Padding(tasks, (1, 0))]
    parts += [Text(line, style="bold") for line in sentences]
    cut = _cut_answers(verdicts[-1]) if few else []
    parts += [Text(line, style="yellow") for line in [*remarks(verdicts), *cut]]
    parts.append(Text(EXPLANATION, style="dim"))
    return Group(*parts)


def sentence(verdict: Verdict) -> str:
    """Say what one model lost, in points, and whether the data can tell it from nothing."""
    drops = verdict.comparison.groups if verdict.comparison else {}
    clauses = [_clause(word, drops[group]) for group, word in WORDS.items() if group in drops]
    return f"{verdict.name}: {', '.join(clauses)}"


def _clause(word: str, drop: Estimate) -> str:
    if round(100 * drop.value, 1) < 0:
        verb, value, low, high = "gained", -drop.value, -drop.high, -drop.low
    else:
        verb, value, low, high = "lost", drop.value, drop.low, drop.high
    doubt = "; no clear change" if drop.includes_zero else ""
    return f"{word} {verb} {percent(value)} points ({percent(low)} to {percent(high)}{doubt})"


def remarks(verdicts: Sequence[Verdict]) -> list[str]:
    """What a reader has to know before trusting the figures."""
    limits = sorted({verdict.result.limit for verdict in verdicts if verdict.result.limit})
    lines = [f"Only the first {limit} items of each task were asked{_of_whom(verdicts, limit)}." for limit in limits]
    for verdict in verdicts:
        lines += [
            f"{verdict.name}: {len(task.too_long)} items of {task.task} are longer than the model reads: not counted."
            for task in verdict.result.tasks.values()
            if task.too_long
        ]
        if _is_partly_compared(verdict):
            lines.append(f"{verdict.name}: losses are over the items that it shares with the baseline only.")
    return lines


def _cut_answers(verdict: Verdict) -> list[str]:
    """Of each task, how many generated answers were stopped at its limit."""
    cut = {name: sum(row.ended is False for row in task.rows) for name, task in verdict.result.tasks.items()}
    return [
        f"{verdict.name}: {count} answers of {name} did not end by themselves and were cut."
        for name, count in cut.items()
        if count
    ]


def _of_whom(verdicts: Sequence[Verdict], limit: int) -> str:
    names = [verdict.name for verdict in verdicts if verdict.result.limit == limit]
    return "" if len(names) == len(verdicts) else f" of {', '.join(names)}"


def _is_partly_compared(verdict: Verdict) -> bool:
    compared = verdict.comparison.tasks if verdict.comparison else {}
    own = {name: task.n for name, task in verdict.result.tasks.items()}
    return verdict.comparison is not None and own != {name: drop.n for name, drop in compared.items()}


def _group_table(verdicts: Sequence[Verdict]) -> Table:
    compared = any(verdict.comparison for verdict in verdicts)
    headers = ("reading", "lost", "recall", "lost") if compared else ("reading", "recall")
    table = _table("model", "bits/w", *headers)
    for verdict in verdicts:
        columns = (verdict.score, verdict.lost) if compared else (verdict.score,)
        cells = [column(group) for group in WORDS for column in columns]
        table.add_row(verdict.name, verdict.bits, *cells)
    return table


def _task_table(verdicts: Sequence[Verdict]) -> Table:
    tasks = task_labels(verdicts)
    table = _table("accuracy, %", *(label.replace("_", "\n") for label in tasks.values()))
    for verdict in verdicts:
        table.add_row(verdict.name, *(verdict.accuracy(task) for task in tasks))
    table.add_row("chance", *(percent(chance(verdicts, task)) for task in tasks), style="dim")
    return table


def _task_details(verdicts: Sequence[Verdict]) -> Table:
    """Tasks as rows, with intervals: for one result, or one and its baseline."""
    last = verdicts[-1]
    table = _table("accuracy, %", "items", "chance", *(verdict.name for verdict in verdicts[:-1]), last.name)
    if last.comparison:
        table.add_column("lost", justify="right", no_wrap=True)
    for task, label in task_labels(verdicts).items():
        found = last.result.tasks.get(task)
        cells = [str(found.n) if found else NOTHING, percent(chance(verdicts, task))]
        cells += [verdict.accuracy(task) for verdict in verdicts[:-1]]
        cells.append(with_interval(found.accuracy) if found else NOTHING)
        if last.comparison:
            drop = last.comparison.tasks.get(task)
            cells.append(with_interval(drop.drop) if drop else NOTHING)
        table.add_row(label, *cells)
    for task in last.result.without_data:
        table.add_row(task, *([NOTHING] * (len(verdicts) + 1)), NO_DATA, style="yellow")
    return table


def _table(first: str, *others: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="dim")
    table.add_column(first, overflow="fold")
    for header in others:
        table.add_column(header, justify="right", no_wrap=True)
    return table


def task_labels(verdicts: Sequence[Verdict]) -> dict[str, str]:
    """Every task in the order of the first result that has it, without a first word that all of them share."""
    return without_shared_word(dict.fromkeys(task for verdict in verdicts for task in verdict.result.tasks))


def without_shared_word(names: Iterable[str]) -> dict[str, str]:
    """Each name without a first word that all of them share.

    >>> without_shared_word(["reference_passkey", "reference_conflict"])
    {'reference_passkey': 'passkey', 'reference_conflict': 'conflict'}
    """
    known = list(names)
    first_words = {name.partition("_")[0] for name in known}
    shared = f"{first_words.pop()}_" if len(known) > 1 and len(first_words) == 1 else ""
    return {name: name.removeprefix(shared) for name in known}


def chance(verdicts: Sequence[Verdict], task: str) -> float:
    """Chance accuracy of a task, from the first result that has it."""
    return next(verdict.result.tasks[task].chance for verdict in verdicts if task in verdict.result.tasks)


def short_names(models: Sequence[str]) -> list[str]:
    """The last part of each path or Hub name, where that is enough to tell them apart.

    >>> short_names(["reference", "out/w4a16"]), short_names(["a/w4", "b/w4"])
    (['reference', 'w4a16'], ['a/w4', 'b/w4'])
    """
    short = [model.rstrip("/").rpartition("/")[2] or model for model in models]
    return short if len(set(short)) == len(set(models)) else list(models)


def percent(fraction: float) -> str:
    """One decimal, and no minus before a zero.

    >>> percent(0.8125), percent(-0.0001)
    ('81.2', '0.0')
    """
    return f"{100 * fraction:z.1f}"


def with_interval(estimate: Estimate) -> str:
    """Value and limits in per cent.

    >>> with_interval(Estimate(value=0.123, low=0.101, high=0.146))
    '12.3 [10.1, 14.6]'
    """
    return f"{percent(estimate.value)} [{percent(estimate.low)}, {percent(estimate.high)}]"
