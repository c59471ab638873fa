"""What a variant lost against a baseline, item by item."""

from collections import Counter
from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict

from mvquant.errors import EvaluationError
from mvquant.evaluation.bootstrap import RESAMPLES, Change, drop_difference
from mvquant.evaluation.paired_tests import holm, mcnemar_p, minimum_detectable_drop
from mvquant.evaluation.result import EvalResult, TaskResult
from mvquant.evaluation.statistics import Estimate, mean, paired_drop
from mvquant.evaluation.task_file import Knowledge


class _Saved(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TaskDrop(_Saved):
    """One task: `lost` of `n` items were right in the baseline only, `gained` in the variant only.

    Drops are baseline minus variant, as fractions.

    Attributes:
        drop: of plain accuracy.
        corrected: of chance-corrected accuracy.
        p: of McNemar's exact test.
        p_holm: the same, adjusted for all tasks of the comparison (Holm).
        minimum_detectable: the smallest drop of plain accuracy that so many items, with so many of them
            discordant, would show with 80 % probability.
    """

    n: int
    lost: int
    gained: int
    drop: Estimate
    corrected: Estimate
    p: float
    p_holm: float
    minimum_detectable: float


class Comparison(_Saved):
    """Drops of a variant by task, and by group over the tasks that both ran.

    Attributes:
        tasks: by task name.
        groups: the mean chance-corrected drop of each group.
        contextual_minus_parametric: what reading lost beyond what recall lost, with its paired bootstrap
            interval over items, stratified by task; None unless there are tasks of both groups.
    """

    tasks: dict[str, TaskDrop]
    groups: dict[Knowledge, Estimate]
    contextual_minus_parametric: Estimate | None


def compare(baseline: EvalResult, variant: EvalResult, *, seed: int = 0, resamples: int = RESAMPLES) -> Comparison:
    """Pair two results on the items that both answered.

    Args:
        baseline: what the variant is compared with.
        variant: the model in question.
        seed: of the bootstrap.
        resamples: of the bootstrap.

    Raises:
        EvaluationError: the results have no task in common, or a task's data, version or chance differ.
    """
    if not baseline.tasks.keys() & variant.tasks.keys():
        message = f"{baseline.subject.model} and {variant.subject.model} have no task in common"
        raise EvaluationError(message)
    return compare_tasks(baseline.tasks, variant.tasks, seed=seed, resamples=resamples)


def compare_tasks(
    baseline: Mapping[str, TaskResult], variant: Mapping[str, TaskResult], *, seed: int = 0, resamples: int = RESAMPLES
) -> Comparison:
    """Pair task results, by task name, on the items that both answered; see `compare`.

    Raises:
        EvaluationError: a task's data, version or chance differ.
    """
    shared = [name for name in baseline if name in variant]
    changes = {name: _change(baseline[name], variant[name]) for name in shared}
    tasks = _task_drops(changes)
    by_group: dict[Knowledge, list[str]] = {}
    for name in shared:
        by_group.setdefault(baseline[name].knowledge, []).append(name)
    headline = None
    if len(by_group) == 2:
        sides = ([changes[name] for name in by_group[group]] for group in ("contextual", "parametric"))
        headline = drop_difference(*sides, seed=seed, resamples=resamples)
    groups: dict[Knowledge, Estimate] = {
        group: mean([tasks[name].corrected for name in names]) for group, names in by_group.items()
    }
    return Comparison(tasks=tasks, groups=groups, contextual_minus_parametric=headline)


def _change(baseline: TaskResult, variant: TaskResult) -> Change:
    for field in ("data_hash", "version", "chance"):
        ours, theirs = getattr(baseline, field), getattr(variant, field)
        if ours != theirs:
            message = f"task {baseline.task}: {field} differs ({ours} and {theirs}): evaluate both with the same tasks"
            raise EvaluationError(message)
    before = {row.id: row.correct for row in baseline.rows}
    counts = Counter((before[row.id], row.correct) for row in variant.rows if row.id in before)
    if not counts:
        message = f"task {baseline.task}: the two results have no item in common"
        raise EvaluationError(message)
    return Change(counts[True, False], counts[False, True], counts.total(), float(baseline.chance))


def _task_drops(changes: Mapping[str, Change]) -> dict[str, TaskDrop]:
    p_values = [mcnemar_p(change.lost, change.gained) for change in changes.values()]
    adjusted = holm(p_values)
    return {
        name: _task_drop(change, p, p_holm)
        for (name, change), p, p_holm in zip(changes.items(), p_values, adjusted, strict=True)
    }


def _task_drop(change: Change, p: float, p_holm: float) -> TaskDrop:
    drop = paired_drop(change.lost, change.gained, change.n)
    # half an item in each cell, as in the interval: no observed flip does not mean that none can happen
    discordant = (change.lost + change.gained + 1) / (change.n + 2)
    return TaskDrop(
        n=change.n,
        lost=change.lost,
        gained=change.gained,
        drop=drop,
        corrected=drop.scaled(1 / (1 - change.chance)),
        p=p,
        p_holm=p_holm,
        minimum_detectable=minimum_detectable_drop(change.n, discordant),
    )
