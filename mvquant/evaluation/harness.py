"""Tasks of lm-evaluation-harness (0.4.13) by name, with one row per item, so that they pair like our own.

The harness asks and scores; its logged samples become a `TaskResult`. It is an extra: `pip install 'mvquant[eval]'`.
"""

import hashlib
import math
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mvquant.errors import EvaluationError, UsageError
from mvquant.evaluation.result import ItemRow, TaskResult
from mvquant.evaluation.statistics import accuracy, chance_corrected
from mvquant.evaluation.tasks import HarnessTask

INSTALL = "pip install 'mvquant[eval]'"

NOT_APPLICABLE = -1.0
"""What RULER's tasks report for lengths other than the item's own."""

Sample = Mapping[str, Any]


def run_in_harness(
    model: tuple[PreTrainedModel, PreTrainedTokenizerBase] | str,
    tasks: Sequence[HarnessTask],
    *,
    engine: str = "hf",
    folder: Path | None = None,
    limit: int | None = None,
    batch_size: int = 64,
    device: str | None = None,
    defaults: bool = True,
) -> list[TaskResult]:
    """Have the harness ask a model its own tasks.

    Args:
        model: a loaded model with its tokenizer, or the folder that the engine is to load.
        tasks: by the harness's names, groups excepted.
        engine: how the harness runs a folder: `hf`, `vllm`, or any other model type that it knows.
        folder: more task files, beside the harness's own.
        limit: the first so many items of each task; None for all.
        batch_size: prompts per batch.
        device: for a folder; None leaves it to the engine.
        defaults: whether the harness's own tasks are there (listing them takes some seconds).

    Raises:
        UsageError: the harness is not installed, or does not know the engine.
        EvaluationError: an unknown task or a group, data that cannot be had, logits that are NaN, or a metric
            that says neither right nor wrong.
    """
    require_harness(tasks)
    evaluator, manager = _harness(folder, defaults=defaults)
    names = [task.name for task in tasks]
    if unknown := [name for name in names if name not in manager.all_tasks]:
        message = f"lm-evaluation-harness has no task {unknown[0]!r}: `lm_eval ls tasks` lists what it has"
        raise EvaluationError(message)
    with _finite_logits(model, ", ".join(names)):
        found = evaluator.simple_evaluate(
            **_arguments(model, engine, device, batch_size),
            tasks=names,
            batch_size=batch_size,
            limit=limit,
            task_manager=manager,
            bootstrap_iters=0,
            log_samples=True,
        )
    results = {task.name: found["samples"].get(task.name) for task in tasks}
    if groups := [name for name, samples in results.items() if samples is None]:
        message = f"{groups[0]} is a group of lm-evaluation-harness: name the tasks in it, {sorted(found['samples'])}"
        raise EvaluationError(message)
    return [task_result(task, results[task.name], found["versions"].get(task.name)) for task in tasks]


def require_harness(tasks: Sequence[HarnessTask]) -> None:
    """Refuse tasks of the harness where it is missing, before anything is computed.

    Raises:
        UsageError: it is not installed.
    """
    try:
        import lm_eval
    except ImportError as error:
        names = ", ".join(task.name for task in tasks)
        raise UsageError(f"{names}: lm-evaluation-harness is needed ({error}): {INSTALL}") from None
    del lm_eval


def _harness(folder: Path | None, *, defaults: bool) -> tuple[Any, Any]:
    from lm_eval import evaluator
    from lm_eval.tasks import TaskManager

    include = None if folder is None else str(folder)
    return evaluator, TaskManager(include_path=include, include_defaults=defaults)


@contextmanager
def _finite_logits(model: tuple[PreTrainedModel, PreTrainedTokenizerBase] | str, tasks: str) -> Generator[None]:
    """Stop at logits that are NaN: the harness would generate from them, and score what comes as wrong."""
    if isinstance(model, str):
        yield
        return

    def check(_model: nn.Module, _inputs: object, output: Any) -> None:  # noqa: ANN401 - as transformers has it
        logits = getattr(output, "logits", None)
        if isinstance(logits, Tensor) and not torch.isfinite(logits.amax(dim=-1)).all():
            message = f"task {tasks}: the model's logits are NaN or infinite: no answer can be scored"
            raise EvaluationError(message)

    hook = model[0].register_forward_hook(check)
    try:
        yield
    finally:
        hook.remove()


def _arguments(
    model: tuple[PreTrainedModel, PreTrainedTokenizerBase] | str, engine: str, device: str | None, batch_size: int
) -> dict[str, Any]:
    if isinstance(model, str):
        known = _known_engines()
        if engine not in known:
            raise UsageError(f"lm-evaluation-harness has no engine {engine!r}: hf, vllm, or one of {', '.join(known)}")
        return {"model": engine, "model_args": {"pretrained": model}, "device": device}
    from lm_eval.models import huggingface

    loaded, tokenizer = model
    adapter: Any = huggingface.HFLM
    return {"model": adapter(pretrained=loaded, tokenizer=tokenizer, batch_size=batch_size, device=str(loaded.device))}


def _known_engines() -> list[str]:
    from lm_eval.models import MODEL_MAPPING

    return sorted(MODEL_MAPPING)


def task_result(task: HarnessTask, samples: Sequence[Sample], version: str | int | float | None) -> TaskResult:
    """Turn the harness's logged samples of one task into our rows; of several filters, the first counts.

    Raises:
        EvaluationError: log-likelihoods that are NaN, or a metric that says neither right nor wrong.
    """
    if not samples:
        message = f"task {task.name}: lm-evaluation-harness answered no item"
        raise EvaluationError(message)
    first_filter = samples[0]["filter"]
    chosen = [sample for sample in samples if sample["filter"] == first_filter]
    rows = tuple(_row(task.name, sample) for sample in chosen)
    estimate = accuracy(sum(row.correct for row in rows), len(rows))
    return TaskResult(
        task=task.name,
        version=_number(version),
        knowledge=task.knowledge,
        answer_by="generation" if rows[0].log_likelihoods is None else "choice",
        seed=None,
        data_hash=_hash(chosen),
        chance=task.chance,
        n=len(rows),
        accuracy=estimate,
        corrected=chance_corrected(estimate, task.chance),
        too_long=(),
        rows=rows,
        prompts=tuple(str(_prompt(sample)) for sample in chosen),
    )


def _number(version: str | int | float | None) -> int:
    """The harness's versions are numbers such as 3.0; ours are whole."""
    try:
        return int(float(version or 0))
    except ValueError:
        return 0


def _hash(samples: Sequence[Sample]) -> str:
    """SHA-256 over what was asked and what is right, by the harness's own hashes."""
    digest = hashlib.sha256()
    for sample in samples:
        digest.update("\n".join(str(sample[key]) for key in ("doc_hash", "prompt_hash", "target_hash")).encode())
    return digest.hexdigest()


def _row(task: str, sample: Sample) -> ItemRow:
    name, correct = str(sample["doc_id"]), _is_right(task, sample)
    responses = sample["filtered_resps"]
    if not isinstance(responses[0], (list, tuple)):
        prediction, text = str(responses[0]), str(sample["resps"][0][0])
        whole = None if prediction.strip() == text.strip() else text
        return ItemRow(name, prediction, str(sample["target"]), correct, None, whole)
    scores = tuple(float(response[0]) for response in responses)
    if any(math.isnan(score) for score in scores):
        message = f"task {task}: the model's logits are NaN or infinite: no answer can be scored"
        raise EvaluationError(message)
    choices = [_continuation(sample, index).strip() for index in range(len(scores))]
    target = sample["target"]
    answer = choices[target] if isinstance(target, int) and target < len(choices) else str(target)
    prediction = choices[scores.index(max(scores))]
    return ItemRow(name, prediction, answer, correct, tuple(round(score, 4) for score in scores))


def _prompt(sample: Sample) -> object:
    return next(iter(_argument_lists(sample)))[0]


def _continuation(sample: Sample, index: int) -> str:
    return str(list(_argument_lists(sample))[index][1])


def _argument_lists(sample: Sample) -> Iterator[Sequence[object]]:
    """Arguments as the evaluator keeps them, lists, or as its result files do, mappings."""
    arguments = sample["arguments"]
    for entry in arguments.values() if isinstance(arguments, Mapping) else arguments:
        yield list(entry.values()) if isinstance(entry, Mapping) else entry


def _is_right(task: str, sample: Sample) -> bool:
    values = {name: sample[name] for name in sample["metrics"]}
    scored = [(name, float(value)) for name, value in values.items() if isinstance(value, (int, float))]
    relevant = [(name, value) for name, value in scored if value != NOT_APPLICABLE]
    if not relevant or not 0 <= relevant[0][1] <= 1:
        message = f"task {task}: its metrics {sorted(values)} say of no item that it is right or wrong"
        raise EvaluationError(message)
    return relevant[0][1] == 1
