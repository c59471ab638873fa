"""Run a model on tasks."""

import platform
from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mvquant.errors import EvaluationError
from mvquant.evaluation.batches import Engine, NonFiniteLogitsError, input_device, position_limit
from mvquant.evaluation.choose import choices_fit, chosen_rows
from mvquant.evaluation.generate import generated_rows, generation_fits
from mvquant.evaluation.missing import MissingTask
from mvquant.evaluation.result import EvalResult, GroupResult, ItemRow, Subject, TaskResult
from mvquant.evaluation.statistics import accuracy, chance_corrected, mean
from mvquant.evaluation.task_file import Knowledge
from mvquant.evaluation.tasks import Item, Task
from mvquant.progress import Progress


def _silent(_task: str, _done: int, _all: int) -> None: ...


def evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[Task],
    *,
    also: Sequence[TaskResult] = (),
    missing: Sequence[MissingTask] = (),
    subject: Subject | None = None,
    limit: int | None = None,
    batch_size: int = 64,
    progress: Progress | None = None,
) -> EvalResult:
    """Answer every item of every task, greedily, and score the answers.

    Args:
        model: a causal language model, on any device.
        tokenizer: its tokenizer.
        tasks: what to ask, from `load_tasks`.
        also: results of the same model on other tasks, from `run_in_harness`, to be part of this one.
        missing: tasks that were wanted too, and whose data is not there: the result names them.
        subject: who the model is; its name alone if not given.
        limit: the first so many items of each task; None for all.
        batch_size: prompts per batch.
        progress: called after each answer.

    Raises:
        EvaluationError: logits that are NaN or infinite, or tasks with no item that fits the model.
    """
    if not (tasks or also) or batch_size < 1 or (limit is not None and limit < 1):
        message = f"nothing to evaluate: {len(tasks)} tasks, batch size {batch_size}, limit {limit}"
        raise EvaluationError(message)
    was_training = model.training
    model.eval()
    try:
        engine = Engine(model, tokenizer, batch_size)
        _require_room(engine, tasks, limit)
        results = [*(_run(engine, task, limit, progress or _silent) for task in tasks), *also]
    finally:
        model.train(was_training)
    return collected(
        results,
        missing,
        subject=subject or Subject(model=model.config.name_or_path or type(model).__name__),
        dtype=str(model.dtype).removeprefix("torch."),
        device=input_device(model).type,
        batch_size=batch_size,
        limit=limit,
    )


def collected(
    results: Sequence[TaskResult],
    missing: Sequence[MissingTask] = (),
    *,
    subject: Subject,
    dtype: str,
    device: str,
    batch_size: int,
    limit: int | None,
    packages: Sequence[str] = (),
) -> EvalResult:
    """Put results of one model together, with versions of what computed them (and of more `packages`)."""
    return EvalResult(
        subject=subject,
        versions=_versions(packages),
        dtype=dtype,
        device=device,
        batch_size=batch_size,
        limit=limit,
        tasks={result.task: result for result in results},
        groups=group_results(results),
        without_data={task.name: task.why for task in missing},
    )


def _require_room(engine: Engine, tasks: Sequence[Task], limit: int | None) -> None:
    """Refuse tasks that the model can read no item of, before the first answer: hours may lie between."""
    unfit = [task for task in tasks if not any(_fits(engine, task, item) for item in _shortest_first(task, limit))]
    if unfit:
        count, room = len(unfit[0].items[:limit]), position_limit(engine.model)
        message = f"task {unfit[0].name}: none of {count} items fits the model's {room} positions"
        others = f" (nor any of {', '.join(task.name for task in unfit[1:])})" if unfit[1:] else ""
        raise EvaluationError(message + others)


def _shortest_first(task: Task, limit: int | None) -> list[Item]:
    return sorted(task.items[:limit], key=lambda item: len(item.prompt))


def _fits(engine: Engine, task: Task, item: Item) -> bool:
    limits = task.file.generation_kwargs
    if task.file.output_type == "generate_until" and limits is not None:
        return generation_fits(engine, limits, item)
    return choices_fit(engine, task.file.target_delimiter, item)


def _run(engine: Engine, task: Task, limit: int | None, progress: Progress) -> TaskResult:
    items = task.items[:limit]
    answered: dict[int, ItemRow | None] = {}
    try:
        for index, row in _rows(engine, task, items):
            answered[index] = row
            progress(task.name, len(answered), len(items))
    except NonFiniteLogitsError:
        message = f"task {task.name}: the model's logits are NaN or infinite: no answer can be scored"
        raise EvaluationError(message) from None
    return _task_result(task, [(item.id, answered[index]) for index, item in enumerate(items)])


def _rows(engine: Engine, task: Task, items: Sequence[Item]) -> Iterator[tuple[int, ItemRow | None]]:
    limits = task.file.generation_kwargs
    if task.file.output_type == "generate_until" and limits is not None:
        return generated_rows(engine, limits, items, task.file.parser)
    return chosen_rows(engine, task.file.target_delimiter, items)


def _task_result(task: Task, answered: Sequence[tuple[str, ItemRow | None]]) -> TaskResult:
    rows = tuple(row for _, row in answered if row is not None)
    metadata = task.file.metadata
    estimate = accuracy(sum(row.correct for row in rows), len(rows))
    return TaskResult(
        task=task.name,
        version=metadata.version,
        knowledge=metadata.knowledge,
        answer_by=metadata.answer_by,
        seed=metadata.seed,
        data_hash=task.data_hash,
        chance=metadata.chance,
        n=len(rows),
        accuracy=estimate,
        corrected=chance_corrected(estimate, metadata.chance),
        too_long=tuple(name for name, row in answered if row is None),
        rows=rows,
    )


def group_results(results: Iterable[TaskResult]) -> dict[Knowledge, GroupResult]:
    """The mean over the tasks of each group that has any."""
    members: dict[Knowledge, list[TaskResult]] = {}
    for result in results:
        members.setdefault(result.knowledge, []).append(result)
    return {group: _group(inside) for group, inside in sorted(members.items())}


def _group(results: Sequence[TaskResult]) -> GroupResult:
    return GroupResult(
        tasks=tuple(result.task for result in results),
        accuracy=mean([result.accuracy for result in results]),
        corrected=mean([result.corrected for result in results]),
    )


def _versions(more: Sequence[str]) -> dict[str, str]:
    packages = ("mvquant", "torch", "transformers", "tokenizers", *more)
    return {"python": platform.python_version()} | {name: _version(name) for name in packages}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
