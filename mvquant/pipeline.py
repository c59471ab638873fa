"""The whole way, in order: model -> statistics -> plan -> checkpoint -> evaluation. Only here and in `cli`."""

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from mvquant.analysis import Analysis, analyze
from mvquant.arch import ModelView, model_view
from mvquant.calibration import calibration_batches, calibration_texts
from mvquant.checkpoint.folder import Checkpoint, open_checkpoint
from mvquant.checkpoint.native import QUANT_METHOD, read_quantization_config
from mvquant.checkpoint.staging import check_writable, staged_folder
from mvquant.checkpoint.write import DEFAULT_SHARD_BYTES, Progress, write_checkpoint
from mvquant.errors import CheckpointError, UsageError
from mvquant.evaluation import EvalResult, Subject, Task, evaluate, load_tasks
from mvquant.evaluation.chat import as_chat
from mvquant.evaluation.harness import run_in_harness
from mvquant.evaluation.tasks import GROUPS, HarnessTask, harness_tasks
from mvquant.methods import planned_cache
from mvquant.plan import FLOAT_BITS, Plan
from mvquant.policies import make_plan, require_rope
from mvquant.recipe import Calibration, Recipe
from mvquant.reference import reference_path, reference_texts
from mvquant.report import write_analysis
from mvquant.resources import resource_folder
from mvquant.stats import CalibrationStats, collect_stats

__all__ = ["check_writable"]

REFERENCE = "reference"
"""The word for the embedded reference model, and for its corpus."""

LOADING = {"local_files_only": True, "trust_remote_code": False}

DEFAULT_CORPUS = "Salesforce/wikitext:wikitext-2-raw-v1"


@dataclass(frozen=True)
class OpenModel:
    """A model's folder and structure; no weight has been read."""

    checkpoint: Checkpoint
    view: ModelView


def open_model(model: str) -> OpenModel:
    """Open the word `reference`, a local folder, or a Hub id, to be quantized or analyzed.

    Raises:
        CheckpointError: no such model, an incomplete one, or one that is quantized already.
        UnsupportedModelError: a family that is not in the table.
    """
    checkpoint = open_checkpoint(model_location(model))
    quantized = getattr(checkpoint.config, "quantization_config", None)
    if quantized is not None:
        raise CheckpointError(f"{model} is quantized already: start from the model that it was made of")
    return OpenModel(checkpoint, model_view(checkpoint.config))


def model_location(model: str) -> str:
    """Return the folder of the reference model for the word `reference`, and any other name as it is."""
    return str(reference_path()) if model == REFERENCE else model


def measure(
    model: str, opened: OpenModel, calibration: Calibration, progress: Progress | None = None
) -> CalibrationStats:
    """Run the model over calibration text and return its Q, K and V statistics.

    Raises:
        CalibrationError: text that cannot be had, or is shorter than one sequence.
    """
    source = calibration.source
    if source == "auto":
        source = REFERENCE if model == REFERENCE else DEFAULT_CORPUS
    texts = reference_texts() if source == REFERENCE else calibration_texts(source)
    loaded, tokenizer = load_model(opened.checkpoint.folder)
    longest = getattr(opened.checkpoint.config, "max_position_embeddings", calibration.length)
    length = min(calibration.length, longest)
    batches = calibration_batches(tokenizer, texts, calibration.sequences, length, calibration.seed)
    return collect_stats(loaded, opened.view, _watched(batches, progress), source=source, seed=calibration.seed)


def plan_model(model: str, recipe: Recipe, opened: OpenModel, progress: Progress | None = None) -> Plan:
    """Decide what becomes of every weight; the model is run only if the policy measures."""
    require_rope(opened.view, recipe)
    stats = measure(model, opened, recipe.calibration, progress) if recipe.needs_calibration else None
    return make_plan(opened.view, recipe, model=model, dtype=opened.checkpoint.dtype, stats=stats)


def quantize(
    opened: OpenModel,
    plan: Plan,
    out: Path,
    *,
    overwrite: bool = False,
    shard_bytes: int = DEFAULT_SHARD_BYTES,
    progress: Progress | None = None,
) -> None:
    """Write the model, quantized as the plan says, to `out`."""
    write_checkpoint(
        opened.checkpoint,
        opened.view,
        plan,
        out,
        overwrite=overwrite,
        shard_bytes=shard_bytes,
        progress=progress,
    )


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
        write_analysis(analysis, stats, folder)
    return analysis


def _watched(batches: Sequence[Tensor], progress: Progress | None) -> Iterator[Tensor]:
    for done, batch in enumerate(batches, start=1):
        yield batch
        if progress:
            progress("", done, len(batches))


def default_tasks(model: str) -> list[str]:
    """The groups that a model is asked if nobody says which: its own ones for the reference model, quantized or not.

    The reference model has 512 positions and reads no language but that of its own tasks.
    """
    name, folder = model, Path(model) / "config.json"
    if folder.is_file():
        quantized = open_checkpoint(model).raw_config.get("quantization_config", {})
        if quantized.get("quant_method") == QUANT_METHOD:
            name = read_quantization_config(quantized).model
    own = model_location(name) == model_location(REFERENCE)
    return [f"reference_{group}" if own else group for group in GROUPS]


def find_tasks(names: Sequence[str], data_dir: Path | None = None) -> list[Task]:
    """Load shipped tasks by name or group; public data sets from `data_dir`, the folder in MVQUANT_DATA, or the Hub."""
    return load_tasks(resource_folder("eval"), names, data_dir)


def find_harness_tasks(names: Sequence[str]) -> list[HarnessTask]:
    """Those of the tasks that lm-evaluation-harness has and mvquant has not."""
    return harness_tasks(resource_folder("eval"), names)


def evaluate_model(
    model: str,
    tasks: Sequence[Task],
    *,
    harness: Sequence[HarnessTask] = (),
    chat_template: bool = False,
    limit: int | None = None,
    batch_size: int = 64,
    device: str = "cpu",
    progress: Progress | None = None,
) -> EvalResult:
    """Load a model, quantized by mvquant or not at all, and have it answer the tasks, with the cache of its plan.

    Tasks of the harness are asked as they are there; the chat template is for our own.
    """
    checkpoint = open_checkpoint(model_location(model))
    loaded, tokenizer = load_model(checkpoint.folder, device)
    subject = Subject(model=model, bits_per_weight=FLOAT_BITS[checkpoint.dtype])
    quantized = checkpoint.raw_config.get("quantization_config", {})
    if quantized.get("quant_method") == QUANT_METHOD:
        plan = read_quantization_config(quantized)
        subject = planned_subject(model, plan)
    asked = as_chat(tasks, tokenizer) if chat_template else tasks
    with planned_cache(loaded):
        also = run_in_harness((loaded, tokenizer), harness, limit=limit, batch_size=batch_size) if harness else ()
        return evaluate(
            loaded, tokenizer, asked, also=also, subject=subject, limit=limit, batch_size=batch_size, progress=progress
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
    try:
        place = torch.device(device)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"device {device!r} cannot be used: {str(error).splitlines()[0]}") from None
    tokenizer = load_tokenizer(folder)
    with _no_foreign_bars():
        model = AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True, **LOADING)
    nn.Module.to(model, place)
    return model.eval(), tokenizer


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Load a tokenizer.

    Raises:
        CheckpointError: it is missing.
    """
    try:
        return AutoTokenizer.from_pretrained(folder, **LOADING)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{folder}: its tokenizer cannot be loaded ({str(error).splitlines()[0]})") from None


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
