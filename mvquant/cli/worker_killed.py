"""What a watcher becomes when the worker of `mvquant quantize` was killed: a verb that nobody else needs."""

from pathlib import Path

from mvquant.backends.child import failure, fate
from mvquant.cli.heavy import pipeline
from mvquant.cli.terminal import NOTHING_LEFT, AlreadySaid, err, way_to_resume

WORKER_KILLED = "worker-killed"
"""Name of the verb."""


def worker_killed(output: Path, code: int, asked: int) -> None:
    """Say how the worker ended, and remove what cannot be gone on with; see `mvquant.cli.watcher`."""
    lines, kept = pipeline.clean_after_kill(output)
    way_out = way_to_resume(pipeline.work_folder(output)) if kept else ""
    if asked:
        err.print(f"interrupted; {way_out or NOTHING_LEFT}", highlight=False)
        raise AlreadySaid(128 + asked)
    raise failure("the process at work", fate(code), lines, way_out)
