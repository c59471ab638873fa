"""Where variants answer: one after another in this process, or each in a Ray task of its own."""

import importlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from mvquant.comparison.answers import Job, Part, answer
from mvquant.errors import EvaluationError, UnknownNameError, UsageError
from mvquant.progress import Progress

ENGINES = ("local", "ray")

Keep = Callable[[Job, Part], None]
"""Called with every finished part, in the process that compares."""

INSTALL = "pip install 'mvquant[ray]'"


def check_engine(engine: str) -> None:
    """Refuse an engine that is not there, before anything is computed.

    Raises:
        UnknownNameError: there is none of that name.
        UsageError: it is not installed.
    """
    if engine not in ENGINES:
        raise UnknownNameError("engine", engine, ENGINES)
    if engine == "ray":
        require_ray()


def run_jobs(jobs: Sequence[Job], keep: Keep, progress: Progress, engine: str) -> None:
    """Have every job answered, and every part kept as soon as it is done.

    Raises:
        UsageError: the engine is not installed.
        EvaluationError: Ray lost a worker.
    """
    run = _on_ray if engine == "ray" else _here
    run([job for job in jobs if not job.is_empty], keep, progress)


def _here(jobs: Sequence[Job], keep: Keep, progress: Progress) -> None:
    for job in jobs:
        for part in answer(job, _named(job.variant, progress)):
            keep(job, part)


def _named(variant: str, progress: Progress) -> Progress:
    def told(task: str, done: int, total: int) -> None:
        progress(f"{variant}: {task}", done, total)

    return told


def _on_ray(jobs: Sequence[Job], keep: Keep, progress: Progress) -> None:
    """Stream the parts of all jobs; each job is a task of its own, with a GPU of its own where it needs one."""
    ray = require_ray()
    started_here = not ray.is_initialized()
    if started_here:
        ray.init(include_dashboard=False, log_to_driver=False)
    try:
        # unwrapped, because Ray streams from plain generator functions only, and a type checker's is not one
        remote = ray.remote(inspect.unwrap(_remote_parts))
        shared = _shared_logits(ray, jobs)
        streams = {_started(remote, job, shared): job for job in jobs}
        for done, (job, part) in enumerate(_arriving(ray, streams), start=1):
            keep(job, part)
            progress(f"{job.variant}: {part.name}", done, max(done, len(jobs)))
    except ray.exceptions.RayError as error:
        message = f"Ray lost a worker ({str(error).splitlines()[0]}): what was answered is kept, start again"
        raise EvaluationError(message) from None
    finally:
        if started_here:
            ray.shutdown()


def require_ray() -> Any:  # noqa: ANN401 - a module that need not be installed
    """Return the module `ray`.

    Raises:
        UsageError: it is not installed.
    """
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise UsageError(f"--engine ray needs Ray ({error}): {INSTALL}") from None


def _shared_logits(ray: Any, jobs: Sequence[Job]) -> Any:  # noqa: ANN401
    """Put the baseline's logits, which are the same for all jobs, where every worker can read them."""
    for job in jobs:
        if job.text is not None and job.text.reference is not None:
            reference = job.text.reference
            return ray.put([reference[index] for index in range(len(reference))])
    return None


def _started(remote: Any, job: Job, shared: Any) -> Any:  # noqa: ANN401
    """Start a job; the folder of its model must be at the same place on every machine of the cluster."""
    needs_logits = job.text is not None and job.text.reference is not None
    bare = job if job.text is None else replace(job, text=replace(job.text, reference=None))
    gpus = 0 if job.device == "cpu" else 1
    return remote.options(num_returns="streaming", num_cpus=1, num_gpus=gpus).remote(
        bare, shared if needs_logits else None
    )


def _arriving(ray: Any, streams: dict[Any, Job]) -> Iterator[tuple[Job, Part]]:  # noqa: ANN401
    """Yield parts of all streams as they come."""
    left = dict(streams)
    while left:
        ready, _ = ray.wait(list(left), num_returns=1)
        for stream in ready:
            try:
                yield left[stream], ray.get(next(stream))
            except StopIteration:
                del left[stream]


def _remote_parts(job: Job, reference: list[Any] | None) -> Iterator[Part]:
    """What a Ray worker runs."""
    if job.text is not None and reference is not None:
        job = replace(job, text=replace(job.text, reference=reference))
    yield from answer(job, _silent)


def _silent(_task: str, _done: int, _all: int) -> None: ...
