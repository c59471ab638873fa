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

Names = tuple[str, str]
"""Of the baseline and of the variant."""

NAMES: Names = ("the baseline", "the variant")


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
            discordant, would show with 80 % probability in a single test at 5 %, before Holm's adjustment.
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
    names = (baseline.subject.model, variant.subject.model)
    if not baseline.tasks.keys() & variant.tasks.keys():
        message = f"{names[0]} and {names[1]} have no task in common"
        raise EvaluationError(message)
    return compare_tasks(baseline.tasks, variant.tasks, names=names, seed=seed, resamples=resamples)


def compare_tasks(
    baseline: Mapping[str, TaskResult],
    variant: Mapping[str, TaskResult],
    *,
    names: Names = NAMES,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Comparison:
    """Pair task results, by task name, on the items that both answered; see `compare`.

    Args:
        baseline: what the variant is compared with.
        variant: the model in question.
        names: of the two models, for errors.
        seed: of the bootstrap.
        resamples: of the bootstrap.

    Raises:
        EvaluationError: a task's data, version or chance differ; `require_comparable` says it of one task.
    """
    shared = [name for name in baseline if name in variant]
    changes = {name: _change(baseline[name], variant[name], names) for name in shared}
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


def require_comparable(baseline: TaskResult, variant: TaskResult, names: Names = NAMES) -> None:
    """Refuse two results of one task that are not about the same test.

    Items of a task file are the same where `data_hash` is. Of lm-evaluation-harness's tasks, models that read
    differently long texts answer different items: these are the same test where the items that both answered are.

    Args:
        baseline: of the task.
        variant: of the same task.
        names: of the two models, for the error.

    Raises:
        EvaluationError: data, version or chance differ, or there is no item that both answered.
    """
    difference = _difference(baseline, variant)
    if difference is not None:
        message = f"task {baseline.task}: {' and '.join(names)} cannot be compared: {difference}"
        raise EvaluationError(message)


def _difference(baseline: TaskResult, variant: TaskResult) -> str | None:
    way_out = "evaluate both with the same tasks"
    for field in ("version", "chance"):
        ours, theirs = getattr(baseline, field), getattr(variant, field)
        if ours != theirs:
            return f"{field} differs ({ours} and {theirs}): {way_out}"
    shared = {row.id for row in baseline.rows} & {row.id for row in variant.rows}
    if baseline.data_hash != variant.data_hash:
        ours, theirs = _hashes(baseline), _hashes(variant)
        if not ours or not theirs:
            return f"data_hash differs ({baseline.data_hash} and {variant.data_hash}): {way_out}"
        other = [name for name in ours if name in shared and ours[name] != theirs[name]]
        if other:
            return f"{len(other)} of {len(shared)} shared items differ, the first of them {other[0]}: {way_out}"
    return None if shared else "they have no item in common"


def _hashes(result: TaskResult) -> dict[str, str]:
    """Hashes by item; empty where the result has none."""
    return {row.id: each for row, each in zip(result.rows, result.item_hashes or (), strict=False)}


def _change(baseline: TaskResult, variant: TaskResult, names: Names) -> Change:
    require_comparable(baseline, variant, names)
    before = {row.id: row.correct for row in baseline.rows}
    counts = Counter((before[row.id], row.correct) for row in variant.rows if row.id in before)
    # the harness numbers the items of each task from 0; ids of our own are the same only where the items are
    prefix = "" if baseline.prompts is None else f"{baseline.task}/"
    items = {f"{prefix}{row.id}": int(before[row.id]) - int(row.correct) for row in variant.rows if row.id in before}
    return Change(counts[True, False], counts[False, True], counts.total(), float(baseline.chance), items)


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
