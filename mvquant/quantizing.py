"""From a model's folder to a plan and a quantized checkpoint: the first half of the way; `pipeline` has all of it."""

from dataclasses import dataclass, field
from pathlib import Path

from jaxtyping import Int64
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from mvquant.arch import ModelView, model_view
from mvquant.calibrated import CalibratedWeights, Note, calibrated_weights, record_of
from mvquant.calibration import calibration_batches, calibration_texts
from mvquant.checkpoint.folder import Checkpoint, open_checkpoint
from mvquant.checkpoint.staging import check_writable
from mvquant.checkpoint.write import DEFAULT_SHARD_BYTES, write_checkpoint
from mvquant.errors import CheckpointError, MvquantError, PlanError, UsageError
from mvquant.layerwise import LOG_FILE, LayerModel, WorkFolder, layerwise_stats
from mvquant.methods import require_plan_fit
from mvquant.plan import Plan, load_plan
from mvquant.policies import make_plan, require_rope
from mvquant.progress import Progress
from mvquant.recipe import Calibration, Protect, Recipe
from mvquant.reference import reference_path, reference_texts
from mvquant.stats import CalibrationStats, token_hash
from mvquant.workplace import HERE, Workplace, work_folder

REFERENCE = "reference"
"""The word for the embedded reference model, and for its corpus."""

LOADING = {"local_files_only": True, "trust_remote_code": False}

DEFAULT_CORPUS = "Salesforce/wikitext:wikitext-2-raw-v1"


@dataclass(frozen=True)
class OpenModel:
    """A model's folder and structure; no weight has been read.

    Attributes:
        checkpoint: the folder.
        view: the structure.
        tokens: calibration sequences that were made for it, by what was asked for: planning and quantizing need the
            same, and what there is to say of the text is said once. Text that changed since is read when the model is
            opened again.
    """

    checkpoint: Checkpoint
    view: ModelView
    tokens: dict[Calibration, list[Int64[Tensor, "1 length"]]] = field(
        default_factory=dict, init=False, compare=False, repr=False
    )


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


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Load a tokenizer.

    Raises:
        CheckpointError: it is missing.
    """
    try:
        return AutoTokenizer.from_pretrained(folder, **LOADING)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{folder}: its tokenizer cannot be loaded ({str(error).splitlines()[0]})") from None


def calibration_tokens(
    model: str, opened: OpenModel, calibration: Calibration
) -> tuple[str, list[Int64[Tensor, "1 length"]]]:
    """Return the name of the calibration text, and its sequences; the text is read once for an opened model.

    Raises:
        CalibrationError: text that cannot be had, or is shorter than one sequence.
        CheckpointError: the tokenizer is missing.
    """
    source = calibration.source
    if source == "auto":
        source = REFERENCE if model == REFERENCE else DEFAULT_CORPUS
    named = calibration.model_copy(update={"source": source})
    if named not in opened.tokens:
        opened.tokens[named] = _tokens_of(opened.checkpoint, named)
    return source, list(opened.tokens[named])


def _tokens_of(checkpoint: Checkpoint, calibration: Calibration) -> list[Int64[Tensor, "1 length"]]:
    source, split, column = calibration.source, calibration.split, calibration.column
    texts = reference_texts() if source == REFERENCE else calibration_texts(source, split, column)
    tokenizer = load_tokenizer(checkpoint.folder)
    longest = getattr(checkpoint.config, "max_position_embeddings", calibration.length)
    length = min(calibration.length, longest)
    return calibration_batches(tokenizer, texts, calibration.sequences, length, calibration.seed, calibration.chat)


def measure(
    model: str,
    opened: OpenModel,
    calibration: Calibration,
    progress: Progress | None = None,
    place: Workplace = HERE,
) -> CalibrationStats:
    """Run the model over calibration text, a layer at a time, and return its Q, K and V statistics.

    Raises:
        CalibrationError: text that cannot be had, or is shorter than one sequence.
    """
    source, batches = calibration_tokens(model, opened, calibration)
    return layerwise_stats(
        LayerModel(opened.checkpoint, opened.view, device=place.device),
        batches,
        source=source,
        seed=calibration.seed,
        processes=place.processes,
        limit=place.states_memory,
        progress=progress,
    )


def plan_to_resume(model: str, recipe: Recipe, opened: OpenModel, out: Path) -> Plan | None:
    """Return the plan that an interrupted run of the same recipe followed, so that nothing is measured again.

    Whether model and versions are still the same is seen when it is gone on with.

    Raises:
        UsageError: the calibration text is not what it was.

    Returns:
        None where there is no such plan, or none that can be read: then it is made again.
    """
    work = WorkFolder(work_folder(out))
    try:
        plan = load_plan(work.plan_file) if work.what_is_done is not None else None
    except MvquantError:
        return None
    if plan is None or plan.calibration is None or (plan.model, plan.recipe) != (model, recipe):
        return None
    _, batches = calibration_tokens(model, opened, recipe.calibration)
    if token_hash(batches) != plan.calibration.hash:
        raise UsageError(
            f"{work.path} cannot be resumed, what it was made of has changed: the calibration text, or the tokenizer. "
            "Put that back, or remove the folder to start again"
        )
    return plan


def require_room_to_quantize(model: str, recipe: Recipe, opened: OpenModel, out: Path, place: Workplace = HERE) -> None:
    """Refuse, before the model is run for statistics, what could not be quantized here afterwards.

    Measures nothing: the least that any plan of the recipe takes is that without protection.

    Raises:
        UsageError: memory or disk do not suffice, with the numbers.
    """
    if not (recipe.calibrates_weights and recipe.needs_statistics):
        return
    work = work_folder(out)
    if not place.has_package_results(work):
        whole = recipe.protect.policy == "whole-module"  # which leaves less to calibrate, and measures nothing
        protect = recipe.protect if whole else Protect(policy="none")
        update = {"protect": protect, "fold": None, "kv_cache": None}
        least = plan_model(model, recipe.model_copy(update=update), opened)
        _, batches = calibration_tokens(model, opened, recipe.calibration)
        place.preflight(least, opened.view, batches, work)


def plan_model(
    model: str, recipe: Recipe, opened: OpenModel, progress: Progress | None = None, place: Workplace = HERE
) -> Plan:
    """Decide what becomes of every weight; the model is run only if the policy measures."""
    require_rope(opened.view, recipe)
    stats, record = None, None
    if recipe.needs_statistics:
        stats = measure(model, opened, recipe.calibration, progress, place)
    elif recipe.calibrates_weights:
        source, batches = calibration_tokens(model, opened, recipe.calibration)
        record = record_of(batches, source, recipe.calibration.seed)
    return make_plan(opened.view, recipe, model=model, dtype=opened.checkpoint.dtype, stats=stats, calibration=record)


def quantize(
    opened: OpenModel,
    plan: Plan,
    out: Path,
    *,
    overwrite: bool = False,
    shard_bytes: int = DEFAULT_SHARD_BYTES,
    progress: Progress | None = None,
    place: Workplace = HERE,
    note: Note | None = None,
) -> None:
    """Write the model, quantized as the plan says, to `out`.

    Args:
        opened: the model.
        plan: what to do.
        out: a new folder. Calibrated methods keep work in progress beside it, for `place.resume`.
        overwrite: replace `out`.
        shard_bytes: largest weight file.
        progress: told how far it is.
        place: where and how a calibrated method runs.
        note: told, in a sentence, what a person should know.

    Raises:
        MvquantError: it cannot be quantized, or not be written.
    """
    if place.processes.rank == 0:
        check_writable(out, overwrite=overwrite)
    if not plan.recipe.calibrates_weights:
        if place.processes.rank == 0:
            _write(opened, plan, out, None, overwrite=overwrite, shard_bytes=shard_bytes, progress=progress)
        return
    require_plan_fit(plan, opened.view)
    _, batches = calibration_tokens(plan.model, opened, _recorded(plan))
    with calibrated_weights(
        opened.checkpoint,
        opened.view,
        plan,
        batches,
        work_folder(out),
        place=place,
        progress=progress,
        note=note,
    ) as made:
        if place.processes.rank == 0:
            named = plan.model_copy(update={"made_with": plan.made_with | made.versions})
            _write(opened, named, out, made, overwrite=overwrite, shard_bytes=shard_bytes, progress=progress)


def _recorded(plan: Plan) -> Calibration:
    """The calibration text that a plan was made with, as a recipe names it."""
    if plan.calibration is None:
        raise PlanError("the plan names no calibration text: plan again")
    return plan.recipe.calibration.model_copy(update={"source": plan.calibration.source})


def _write(
    opened: OpenModel,
    plan: Plan,
    out: Path,
    made: CalibratedWeights | None,
    *,
    overwrite: bool,
    shard_bytes: int,
    progress: Progress | None,
) -> None:
    write_checkpoint(
        opened.checkpoint,
        opened.view,
        plan,
        out,
        overwrite=overwrite,
        shard_bytes=shard_bytes,
        results=None if made is None else made.results,
        more_files=None if made is None else {LOG_FILE: made.log},
        progress=progress,
    )
