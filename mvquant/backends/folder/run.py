"""Run a package on a whole model, and read what it saved."""

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from jaxtyping import Int64
from safetensors import SafetensorError
from torch import Tensor

from mvquant.arch import ModelView
from mvquant.arch.families import FAMILIES
from mvquant.backends.auto_gptq.adapter import AUTO_GPTQ
from mvquant.backends.autoawq.adapter import AUTOAWQ
from mvquant.backends.autoround.adapter import AUTO_ROUND
from mvquant.backends.child import run_logged
from mvquant.backends.folder.backend import FolderBackend
from mvquant.backends.folder.child import PROGRESS
from mvquant.backends.folder.here import run_here
from mvquant.backends.folder.job import (
    Job,
    apart,
    beyond_one_scheme,
    main_scheme,
    only_scheme,
    other_schemes,
    save_tokens,
)
from mvquant.backends.folder.programs import PROGRAMS, child_environment
from mvquant.backends.folder.results import FolderResults
from mvquant.backends.folder.source import SourceWeights, write_source
from mvquant.backends.gptqmodel.adapter import GPTQMODEL
from mvquant.backends.layer import ModuleRecord
from mvquant.backends.registry import require
from mvquant.checkpoint.folder import Checkpoint
from mvquant.checkpoint.staging import raised_termination
from mvquant.errors import BackendError, CheckpointError, PlanError, UnsupportedModelError
from mvquant.method_settings import BackendName
from mvquant.plan import Plan
from mvquant.progress import Progress
from mvquant.recipe import impossible

FOLDER_BACKENDS: dict[BackendName, FolderBackend] = {
    backend.name: backend for backend in (GPTQMODEL, AUTOAWQ, AUTO_ROUND, AUTO_GPTQ)
}
"""Packages that take a whole model, by the name that a recipe gives them."""

JOB, LOG = "job.json", "package.log"

DONE = "done"
"""In the folder of a job: the package has saved everything."""


def is_done(place: Path) -> bool:
    """Whether a package has done its part in a folder, and only the checkpoint is to be written."""
    return (place / DONE).is_file()


def forget_done(place: Path) -> None:
    """Have a package do its part again, as what it made cannot be used."""
    (place / DONE).unlink(missing_ok=True)


def run_folder_backend(
    checkpoint: Checkpoint,
    view: ModelView,
    plan: Plan,
    batches: Sequence[Int64[Tensor, "1 length"]],
    place: Path,
    progress: Progress | None = None,
    device: str = "cpu",
    *,
    here: bool = False,
) -> FolderResults:
    """Have a package quantize every planned module in its base scheme, on these very tokens.

    What it did for the same plan, model and tokens, and left in the same folder, is taken up as it is.

    Args:
        checkpoint: the model.
        view: its structure.
        plan: whose method names one of `FOLDER_BACKENDS`.
        batches: calibration sequences.
        place: folder to work in, made here; what a job that did not end well left there is removed. Results are read
            from it, so that it has to stay until they are written; when the package fails, it is removed.
        progress: is told of every layer, as far as the package says.
        device: that it runs layers on, of a type that it can use.
        here: run it in this process, if it is of this environment, rather than in one of its own.

    Raises:
        BackendError: the package is not installed, or failed; with the last lines of its log.
        UnsupportedModelError: a family that the package does not know.
        PlanError: something that the package cannot do.
        CheckpointError: a full disk, say.
    """
    backend = FOLDER_BACKENDS[plan.recipe.method.backend]
    require_backend_fit(plan, view)
    require(backend.name)
    if is_done(place):
        return _taken_up(checkpoint, view, plan, place)
    _begin(place)
    try:
        with raised_termination():
            job = write_job(backend, checkpoint, view, plan, batches, place, device)
            run_jobs(backend, [place / JOB], place / LOG, progress, here=here)
            shutil.rmtree(job.source)
            results = read_results(checkpoint, view, plan, place)
            (place / DONE).touch()
            return results
    except OSError as error:
        shutil.rmtree(place, ignore_errors=True)
        raise CheckpointError(f"{place}: cannot be written ({error.strerror})") from None
    except BaseException:
        shutil.rmtree(place, ignore_errors=True)
        raise


def _begin(place: Path) -> None:
    if place.exists() and any(place.iterdir()) and not (place / JOB).exists():
        raise BackendError(f"{place} is in the way, and no job of a package: move it")
    if place.exists():
        shutil.rmtree(place)
    place.mkdir(parents=True)


def _taken_up(checkpoint: Checkpoint, view: ModelView, plan: Plan, place: Path) -> FolderResults:
    try:
        return read_results(checkpoint, view, plan, place)
    except (BackendError, OSError, ValueError, KeyError, SafetensorError) as error:
        name = plan.recipe.method.backend
        raise BackendError(
            f"{place}: what {name} made cannot be read ({error}): remove {place.parent} to start again"
        ) from None


def write_job(
    backend: FolderBackend,
    checkpoint: Checkpoint,
    view: ModelView,
    plan: Plan,
    batches: Sequence[Int64[Tensor, "1 length"]],
    place: Path,
    device: str = "cpu",
) -> Job:
    """Write all that a program reads into an empty folder."""
    job = make_job(plan, view, place, device)
    write_source(checkpoint, SourceWeights(checkpoint, view, plan), job.source)
    backend.prepare(job.source)
    save_tokens(batches, job.tokens)
    (place / JOB).write_text(job.model_dump_json(indent=1), encoding="utf-8")
    return job


def read_results(checkpoint: Checkpoint, view: ModelView, plan: Plan, place: Path) -> FolderResults:
    """Open what a program left in the folder of its job.

    Raises:
        BackendError: nothing.
    """
    job = make_job(plan, view, place)
    if not (job.records.is_file() and job.out.is_dir()):
        raise BackendError(f"backend {plan.recipe.method.backend} ended without an error, but has saved nothing")
    said = json.loads(job.records.read_text(encoding="utf-8"))
    return FolderResults(
        job.out,
        SourceWeights(checkpoint, view, plan),
        view,
        plan,
        seen=job.seen,
        apart=apart(plan) if has_one_scheme(plan) else (),
        records=tuple(ModuleRecord.model_validate(each) for each in said),
        log=place / LOG,
    )


def require_backend_fit(plan: Plan, view: ModelView) -> None:
    """Refuse early what a package cannot do, all of it at once.

    Raises:
        UnsupportedModelError: a family that the package does not know.
        PlanError: something else; every mistake with the way out.
    """
    backend = FOLDER_BACKENDS[plan.recipe.method.backend]
    require_family(backend, view)
    mistakes = list(dict.fromkeys([*backend.mistakes(plan, view), *_scheme_mistakes(plan)]))
    if mistakes:
        raise PlanError(f"backend {backend.name} cannot do this:\n  - " + "\n  - ".join(mistakes))


def _scheme_mistakes(plan: Plan) -> Iterator[str]:
    if not has_one_scheme(plan):
        return
    base = only_scheme(plan)
    if (reason := impossible(base, plan.recipe.method)) is not None:
        yield reason
    for module in beyond_one_scheme(plan)[:1]:
        yield (
            f"{module.name} is planned as {module.scheme.name}, and it rounds all modules as {base.name} but those "
            "with more bits: use backend llmcompressor"
        )


def require_family(backend: FolderBackend, view: ModelView) -> None:
    """Refuse a family that a package does not know.

    Raises:
        UnsupportedModelError: with those that it knows.
    """
    if view.family not in backend.families:
        known = ", ".join(name for name in FAMILIES if name in backend.families)
        raise UnsupportedModelError(
            f"backend {backend.name} does not quantize {view.family} models (it does: {known}); use another backend"
        )


def has_one_scheme(plan: Plan) -> bool:
    """Whether a plan's package rounds all modules in one scheme."""
    method = plan.recipe.method
    return method.name in FOLDER_BACKENDS[method.backend].one_scheme


def make_job(plan: Plan, view: ModelView, place: Path, device: str = "cpu") -> Job:
    """Say what is to be done, in a folder that is there for it."""
    place = place.resolve()  # the package runs in another folder
    planned = {module.name for module in plan.modules if module.scheme.is_quantized}
    one_scheme = has_one_scheme(plan)
    whole = {module.name: tuple(range(module.rows)) for module in apart(plan)} if one_scheme else {}
    return Job(
        source=place / "source",
        tokens=place / "tokens.safetensors",
        out=place / "quantized",
        seen=place / "seen.safetensors",
        records=place / "records.json",
        dtype=plan.dtype,
        method=plan.recipe.method,
        scheme=only_scheme(plan) if one_scheme else main_scheme(plan),
        other_schemes={} if one_scheme else other_schemes(plan),
        ignored=tuple(weight.name for weight in view.weights if weight.name not in planned),
        kept={module.name: rows for module in plan.modules if (rows := module.protected_rows)} | whole,
        layers=tuple(dict.fromkeys(attention.module.rpartition(".")[0] for attention in view.attentions)),
        seed=plan.calibration.seed if plan.calibration else 0,
        device=device,
    )


def run_jobs(
    backend: FolderBackend,
    jobs: Sequence[Path],
    log: Path,
    progress: Progress | None = None,
    *,
    here: bool = False,
) -> None:
    """Have a package do jobs, one after the other, in a child process or, if it can, here.

    Raises:
        BackendError: it failed; with the last lines of its log.
    """
    what, files = f"backend {backend.name}", [job.resolve() for job in jobs]

    def report(line: str) -> None:
        word, *said = line.split(maxsplit=3) or [""]
        if progress is not None and word == PROGRESS and len(said) == 3:
            progress(said[2], int(said[0]), int(said[1]))

    if here and backend.name in PROGRAMS:
        run_here(PROGRAMS[backend.name], files, log, what=what, progress=progress)
        return
    environment = child_environment(torch.get_num_threads(), backend.environment)
    run_logged(backend.command(*files), log, what=what, report=report, environment=environment, folder=log.parent)
