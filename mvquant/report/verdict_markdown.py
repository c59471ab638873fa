"""The verdict as Markdown, for a README or a model card."""

from collections.abc import Iterable, Sequence

from mvquant.evaluation import EvalResult
from mvquant.report.verdict import (
    EXPLANATION,
    WORDS,
    chance,
    judge,
    percent,
    remarks,
    sentence,
    task_labels,
)


def markdown_table(results: Sequence[EvalResult], baseline: EvalResult | None = None) -> str:
    """Return two tables, by group and by task, and one sentence for each model that is not the baseline.

    Args:
        results: at least one.
        baseline: what the others are compared with; the first result if not given.

    Raises:
        EvaluationError: results that are not about the same data.
    """
    verdicts = judge(results, baseline)
    groups = [
        [
            _name(verdict.name),
            verdict.bits,
            *(cell for group in WORDS for cell in (verdict.score(group), verdict.lost(group))),
        ]
        for verdict in verdicts
    ]
    labels = task_labels(verdicts)
    accuracies = [[_name(verdict.name), *(verdict.accuracy(task) for task in labels)] for verdict in verdicts]
    accuracies.append(["*chance*", *(percent(chance(verdicts, task)) for task in labels)])
    blocks = [
        _table(["model", "bits/weight", "reading", "lost", "recall", "lost"], groups),
        "\n".join(f"- {sentence(verdict)}" for verdict in verdicts if verdict.comparison),
        "Accuracy by task, %:",
        _table(["model", *(label.replace("_", " ") for label in labels.values())], accuracies),
        *remarks(verdicts),
        EXPLANATION,
    ]
    return "\n\n".join(block for block in blocks if block) + "\n"


def _name(text: str) -> str:
    """Keep a name inside its cell."""
    return text.replace("|", "\\|")


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    alignment = [":--", *("--:" for _ in header[1:])]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, alignment, *rows))
