"""What a variant lost against a baseline, item by item."""

from collections import Counter
from dataclasses import dataclass

from mvquant.errors import EvaluationError
from mvquant.evaluation.result import EvalResult, TaskResult
from mvquant.evaluation.statistics import Estimate, mean, paired_drop
from mvquant.evaluation.task_file import Knowledge


@dataclass(frozen=True)
class TaskDrop:
    """One task: `lost` of `n` items were right in the baseline only, `gained` in the variant only.

    Drops are baseline minus variant, as fractions; `corrected` is the drop of chance-corrected accuracy.
    """

    n: int
    lost: int
    gained: int
    drop: Estimate
    corrected: Estimate


@dataclass(frozen=True)
class Comparison:
    """Drops of a variant by task, and the mean chance-corrected drop by group, over the tasks that both ran."""

    tasks: dict[str, TaskDrop]
    groups: dict[Knowledge, Estimate]


def compare(baseline: EvalResult, variant: EvalResult) -> Comparison:
    """Pair two results on the items that both answered.

    Raises:
        EvaluationError: the results have no task in common, or a task's data, version or chance differ.
    """
    shared = [name for name in baseline.tasks if name in variant.tasks]
    if not shared:
        message = f"{baseline.subject.model} and {variant.subject.model} have no task in common"
        raise EvaluationError(message)
    tasks = {name: _task_drop(baseline.tasks[name], variant.tasks[name]) for name in shared}
    by_group: dict[Knowledge, list[Estimate]] = {}
    for name in shared:
        by_group.setdefault(baseline.tasks[name].knowledge, []).append(tasks[name].corrected)
    return Comparison(tasks, {group: mean(drops) for group, drops in by_group.items()})


def _task_drop(baseline: TaskResult, variant: TaskResult) -> TaskDrop:
    for field in ("data_hash", "version", "chance"):
        ours, theirs = getattr(baseline, field), getattr(variant, field)
        if ours != theirs:
            message = f"task {baseline.task}: {field} differs ({ours} and {theirs}): evaluate both with the same tasks"
            raise EvaluationError(message)
    before = {row.id: row.correct for row in baseline.rows}
    changes = Counter((before[row.id], row.correct) for row in variant.rows if row.id in before)
    n = changes.total()
    if n == 0:
        message = f"task {baseline.task}: the two results have no item in common"
        raise EvaluationError(message)
    lost, gained = changes[True, False], changes[False, True]
    drop = paired_drop(lost, gained, n)
    return TaskDrop(n, lost, gained, drop, drop.scaled(1 / (1 - baseline.chance)))
