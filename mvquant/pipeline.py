"""The whole way, in order: model -> statistics -> plan -> checkpoint -> evaluation. Only here and in `cli`."""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from mvquant import report
from mvquant.analysis import Analysis, analyze
from mvquant.checkpoint.folder import open_checkpoint
from mvquant.checkpoint.native import QUANT_METHOD, read_quantization_config
from mvquant.checkpoint.staging import staged_folder
from mvquant.errors import UsageError
from mvquant.evaluation import EvalResult, Subject, Task, TaskResult, evaluate, load_tasks
from mvquant.evaluation.chat import as_chat
from mvquant.evaluation.engines import prepare_own, run_own
from mvquant.evaluation.harness import run_prepared
from mvquant.evaluation.harness_data import Prepared, prepare
from mvquant.evaluation.missing import MissingTask
from mvquant.evaluation.run import collected
from mvquant.evaluation.tasks import GROUPS, AvailableTasks, HarnessTask, available_tasks, harness_tasks
from mvquant.evaluation.text_length import Count, count_tokens, count_words
from mvquant.layerwise import joined_processes, own_device, usable_device
from mvquant.method_backends import require_method
from mvquant.methods import planned_cache
from mvquant.plan import FLOAT_BITS, Plan
from mvquant.progress import Progress
from mvquant.quantizing import (
    DEFAULT_CORPUS,
    LOADING,
    REFERENCE,
    OpenModel,
    calibration_tokens,
    load_tokenizer,
    measure,
    model_location,
    open_model,
    plan_model,
    plan_to_resume,
    quantize,
    require_room_to_quantize,
)
from mvquant.recipe import Calibration
from mvquant.resources import resource_folder
from mvquant.workplace import Workplace, clean_after_kill, work_folder

__all__ = [
    "DEFAULT_CORPUS",
    "OpenModel",
    "Workplace",
    "calibration_tokens",
    "clean_after_kill",
    "joined_processes",
    "own_device",
    "plan_model",
    "plan_to_resume",
    "quantize",
    "require_method",
    "require_room_to_quantize",
    "usable_device",
    "work_folder",
]


def analyze_model(
    model: str,
    calibration: Calibration,
    ratio: float | None,
    out: Path,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Analysis:
    """Find the massive values of a model and write them down, with pictures, to `out`."""
    opened = open_model(model)
    with staged_folder(out, overwrite=overwrite) as folder:
        stats = measure(model, opened, calibration, progress)
        analysis = analyze(opened.view, stats, ratio, model=model)
        report.write_analysis(analysis, stats, folder)
    return analysis


def default_tasks(model: str) -> list[str]:
    """The groups that a model is asked if nobody says which: its own ones for the reference model, quantized or not.

    The reference model has 512 positions and reads no language but that of its own tasks; no other model is taught
    what they ask. Both are part of `contextual` and `parametric`.
    """
    name, folder = model, Path(model) / "config.json"
    if folder.is_file():
        quantized = open_checkpoint(model).quantization
        if quantized.get("quant_method") == QUANT_METHOD:
            name = read_quantization_config(quantized).model
    own = model_location(name) == model_location(REFERENCE)
    return [f"{'reference' if own else 'general'}_{group}" for group in GROUPS]


def token_count(model: str) -> Count:
    """Count tokens by the tokenizer of a model, which is loaded when a length is first needed."""
    return count_tokens(lambda: load_tokenizer(open_checkpoint(model_location(model)).folder))


def find_tasks(names: Sequence[str], data_dir: Path | None = None, count: Count = count_words) -> list[Task]:
    """Load shipped tasks by name or group; public data sets from `data_dir`, the folder in MVQUANT_DATA, or the Hub."""
    return load_tasks(resource_folder("eval"), names, data_dir, count)


def find_available_tasks(names: Sequence[str], data_dir: Path | None, count: Count) -> AvailableTasks:
    """Load shipped tasks as `find_tasks` does, but set those apart whose data cannot be had."""
    return available_tasks(resource_folder("eval"), names, data_dir, count)


def find_harness_tasks(names: Sequence[str]) -> list[HarnessTask]:
    """Those of the tasks that lm-evaluation-harness has and mvquant has not."""
    return harness_tasks(resource_folder("eval"), names)


def prepare_harness_tasks(names: Sequence[str], model: str) -> Prepared | None:
    """Have the harness read or make the data of those of the tasks that it has; None where there are none.

    Raises:
        UsageError: the harness is not installed.
        EvaluationError: a tokenizer that brings code along, which RULER's tasks would run.
    """
    wanted = find_harness_tasks(names)
    if not wanted:
        return None
    return prepare(wanted, str(open_checkpoint(model_location(model)).folder))


def evaluate_model(
    model: str,
    tasks: Sequence[Task],
    *,
    harness: Prepared | None = None,
    missing: Sequence[MissingTask] = (),
    chat_template: bool = False,
    limit: int | None = None,
    batch_size: int = 64,
    device: str = "cpu",
    progress: Progress | None = None,
) -> EvalResult:
    """Load a model, quantized by mvquant or not at all, and have it answer the tasks, with the cache of its plan.

    Raises:
        CheckpointError: no such model, or an incomplete one.
        UsageError: there is no such device.
        EvaluationError: logits that are NaN, or a task with no item that fits.
    """
    checkpoint = open_checkpoint(model_location(model))
    loaded, tokenizer = load_model(checkpoint.folder, device)
    subject = Subject(model=model, bits_per_weight=FLOAT_BITS[checkpoint.dtype])
    quantized = checkpoint.quantization
    if quantized.get("quant_method") == QUANT_METHOD:
        plan = read_quantization_config(quantized)
        subject = planned_subject(model, plan)
    asked = as_chat(tasks, tokenizer) if chat_template else tasks
    with planned_cache(loaded):
        also: Sequence[TaskResult] = ()
        if harness is not None and harness.tasks:
            also = run_prepared(
                (loaded, tokenizer), harness, limit=limit, batch_size=batch_size, chat_template=chat_template
            )
        return evaluate(
            loaded,
            tokenizer,
            asked,
            also=also,
            missing=missing,
            subject=subject,
            limit=limit,
            batch_size=batch_size,
            progress=progress,
        )


def evaluate_in_engine(
    model: str,
    tasks: Sequence[Task],
    engine: str,
    *,
    data_dir: Path | None = None,
    harness: Prepared | None = None,
    missing: Sequence[MissingTask] = (),
    chat_template: bool = False,
    limit: int | None = None,
    batch_size: int = 64,
    device: str | None = None,
) -> EvalResult:
    """Have an engine of lm-evaluation-harness, such as vLLM, load a model and answer the tasks.

    Raises:
        CheckpointError: no such model, or an incomplete one.
        UsageError: the engine cannot load mvquant's own format, or the harness does not know it.
        EvaluationError: a task with no item that fits the model.
    """
    checkpoint = open_checkpoint(model_location(model))
    if checkpoint.quantization.get("quant_method") == QUANT_METHOD:
        message = f"{model} is in mvquant's own format, which {engine} cannot load: leave out --engine"
        raise UsageError(message)
    options: dict[str, Any] = {"engine": engine, "limit": limit, "batch_size": batch_size, "device": device}
    folder, results = checkpoint.folder, list[TaskResult]()
    if tasks:
        prepared = prepare_own(tasks, resource_folder("eval"), folder, data_dir)
        results += run_own(folder, tasks, prepared, chat_template=chat_template, **options)
    if harness is not None and harness.tasks:
        results += run_prepared(str(folder), harness, chat_template=chat_template, **options)
    return collected(
        results,
        missing,
        subject=Subject(model=model, bits_per_weight=FLOAT_BITS[checkpoint.dtype]),
        dtype=checkpoint.dtype,
        device=f"{engine} {device or ''}".strip(),
        batch_size=batch_size,
        limit=limit,
        packages=("lm_eval", engine),
    )


def planned_subject(model: str, plan: Plan) -> Subject:
    """Say of a quantized model what it takes: bits per weight, and apart from them bits per cached value."""
    cached = plan.cached_bits
    return Subject(
        model=model,
        plan_hash=plan.hash,
        bits_per_weight=plan.bits_per_weight,
        bits_per_cached_key=None if cached is None else cached.keys,
        bits_per_cached_value=None if cached is None else cached.values,
    )


def load_model(folder: Path, device: str = "cpu") -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load model and tokenizer in the dtype on disk, never running code that comes with them.

    Raises:
        CheckpointError: the tokenizer is missing.
        UsageError: there is no such device.
    """
    place = usable_device(device)
    tokenizer = load_tokenizer(folder)
    with _no_foreign_bars():
        model = AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True, **LOADING)
    nn.Module.to(model, place)
    return model.eval(), tokenizer


@contextmanager
def _no_foreign_bars() -> Generator[None]:
    """Keep transformers' progress bars out of our output, which has its own."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()
