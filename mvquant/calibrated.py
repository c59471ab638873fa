"""Weights by a calibrated method, whichever package computes them: from a plan and calibration batches to results.

Who computes a method is in `mvquant.method_backends`.
"""

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from mvquant.arch import ModelView
from mvquant.backends.folder.results import FolderResults
from mvquant.backends.folder.run import FOLDER_BACKENDS, forget_done, run_folder_backend
from mvquant.calibration import few_tokens
from mvquant.checkpoint.folder import Checkpoint
from mvquant.checkpoint.folder_hash import folder_hash
from mvquant.errors import BackendError, CheckpointError, PlanError, UsageError
from mvquant.layerwise import (
    CPU,
    Fingerprint,
    LayerModel,
    StoredResults,
    WorkFolder,
    log_text,
    opened_work,
    quantize_layers,
    warn_of,
)
from mvquant.method_backends import layer_backend, package_versions, require_one_process, works_by_layers
from mvquant.method_settings import MethodSettings
from mvquant.methods import WeightResults, plan_factors
from mvquant.plan import CalibrationRecord, Plan
from mvquant.progress import Progress
from mvquant.stats import token_hash
from mvquant.workplace import HERE, Workplace

Note = Callable[[str], None]


LONG = 120.0
"""Seconds of work left that a person is told of."""


@dataclass(frozen=True, eq=False)
class CalibratedWeights:
    """What a calibrated method made of a model.

    Attributes:
        results: for the checkpoint.
        log: the text of its log.
        versions: of the packages that computed it.
    """

    results: WeightResults
    log: str
    versions: dict[str, str]


def require_same_text(plan: Plan, batches: Sequence[Int64[Tensor, "1 _"]]) -> None:
    """Refuse calibration text that is not what the plan was made with.

    Raises:
        PlanError: the text changed since.
    """
    record = plan.calibration
    if record is None or token_hash(batches) != record.hash:
        named = "no calibration text" if record is None else f"the calibration text {record.source!r}"
        raise PlanError(
            f"the plan was made with {named}, whose tokens are not those of now: the text or the tokenizer changed; "
            "plan again"
        )


def record_of(batches: Sequence[Int64[Tensor, "1 _"]], source: str, seed: int) -> CalibrationRecord:
    """Say which text it is, for a plan that needs no statistics of it."""
    return CalibrationRecord(
        source=source,
        sequences=len(batches),
        length=max(batch.shape[1] for batch in batches),
        seed=seed,
        hash=token_hash(batches),
    )


@contextmanager
def calibrated_weights(
    checkpoint: Checkpoint,
    view: ModelView,
    plan: Plan,
    batches: Sequence[Int64[Tensor, "1 _"]],
    work: Path,
    *,
    place: Workplace = HERE,
    progress: Progress | None = None,
    note: Note | None = None,
) -> Generator[CalibratedWeights]:
    """Have the plan's method run; what it made is there until the end of the block.

    The work folder is removed if the block ends well, and kept for a later run if it does not.

    Args:
        checkpoint: the model.
        view: its structure.
        plan: what to do.
        batches: the plan's calibration sequences.
        work: folder for work in progress.
        place: where and how.
        progress: told of every layer.
        note: told, in a sentence, what a person should know.

    Raises:
        UsageError: memory that does not suffice, more processes than sequences, or an earlier run's work.
        PlanError: the batches are not the plan's.
        BackendError: a package is missing, or failed.
        CalibrationError: text that the method cannot use.
        CheckpointError: weights that cannot be used; a full disk.
    """
    require_same_text(plan, batches)
    say = note or _say_nothing
    by_layers = works_by_layers(plan.recipe.method)
    if not by_layers:
        require_one_process(plan.recipe.method, place.processes)
        place = _usable_by_package(place, plan.recipe.method, say)
    if len(batches) < place.processes.size:
        raise UsageError(
            f"{place.processes.size} processes cannot share {len(batches)} calibration sequences: "
            "start fewer, or calibrate on more sequences"
        )
    versions = package_versions(plan.recipe.method.backend)
    made_with = _made_with(checkpoint, plan, versions, place)
    if not place.has_package_results(work):
        say(place.preflight(plan, view, batches, work))
    for sentence in few_tokens(plan, batches):
        say(sentence)
    with opened_work(work, _fingerprint(made_with), resume=place.resume, processes=place.processes) as folder:
        if place.processes.rank == 0:
            _keep(plan, folder.plan_file)
        if folder.finished:
            say(f"going on after layer {folder.finished} of {len(view.attentions)}")
        elif folder.package_is_done:
            say(f"going on: {plan.recipe.method.backend} has done its part, the checkpoint is left to write")
        results: StoredResults | FolderResults
        if by_layers:
            watched = _timed(progress, say, folder.finished)
            results = _run_layers(checkpoint, view, plan, batches, folder, place, watched)
        else:
            device = str(place.device)
            results = run_folder_backend(
                checkpoint, view, plan, batches, folder.package, progress, device, here=place.package_here
            )
        for sentence in warn_of(results.records):
            say(sentence)
        try:
            yield CalibratedWeights(results, log_text(made_with, results.records), versions)
        except BackendError:  # what the package saved cannot be used
            forget_done(folder.package)
            raise
        if place.processes.rank == 0:
            folder.remove()


def _keep(plan: Plan, file: Path) -> None:
    """Write the plan that is followed, whole or not at all."""
    beside = file.with_suffix(".partial")
    try:
        plan.save(beside)
        beside.replace(file)
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be written ({error.strerror})") from None


def _usable_by_package(place: Workplace, method: MethodSettings, say: Note) -> Workplace:
    """Leave the device to a package that can use it; others run on the CPU, and the log is to say so."""
    if place.device.type in FOLDER_BACKENDS[method.backend].devices:
        return place
    say(f"{method.backend} runs on the CPU: it cannot use {place.device}")
    return replace(place, device=CPU)


def _say_nothing(sentence: str) -> None:
    del sentence


def _timed(progress: Progress | None, say: Note, first: int) -> Progress:
    """Say after one layer how long the others will take, where that is long; and tell `progress` of every layer."""
    started = time.monotonic()

    def tell(what: str, done: int, total: int) -> None:
        left = (total - done) * (time.monotonic() - started)
        if done == first + 1 and left > LONG:
            say(f"the first layer took {left / (total - done):.0f} s, all others will take {left / 60:.0f} minutes")
        if progress:
            progress(what, done, total)

    return tell


def _run_layers(
    checkpoint: Checkpoint,
    view: ModelView,
    plan: Plan,
    batches: Sequence[Int64[Tensor, "1 _"]],
    folder: WorkFolder,
    place: Workplace,
    progress: Progress,
) -> StoredResults:
    return quantize_layers(
        LayerModel(checkpoint, view, plan_factors(plan, view), place.device),
        plan,
        batches,
        layer_backend(plan.recipe.method),
        folder,
        processes=place.processes,
        limit=place.states_memory,
        progress=progress,
    )


def _made_with(checkpoint: Checkpoint, plan: Plan, versions: dict[str, str], place: Workplace) -> dict[str, Any]:
    """The first line of the log."""
    method = plan.recipe.method
    assert plan.calibration is not None, "a plan that calibrates weights says on what"
    return {
        "method": method.name,
        "backend": method.backend,
        "settings": {name: value for name, value in method.model_dump().items() if name not in ("name", "backend")},
        "versions": {name: version(name) for name in ("mvquant", "torch", "transformers")} | versions,
        "model": folder_hash(checkpoint.folder),
        "plan": plan.hash,
        "calibration": plan.calibration.model_dump(mode="json"),
        "processes": place.processes.size,
        "device": place.device.type,
        "threads": torch.get_num_threads(),
    }


def _fingerprint(made_with: dict[str, Any]) -> Fingerprint:
    """What has to be the same to go on: threads too, as products of matrices are added up otherwise by more of them."""
    return Fingerprint(
        model=made_with["model"],
        plan=made_with["plan"],
        calibration=made_with["calibration"]["hash"],
        settings={name: made_with[name] for name in ("method", "backend", "device", "threads")} | made_with["settings"],
        versions=made_with["versions"],
    )
