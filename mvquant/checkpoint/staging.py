"""A folder that appears only when it is complete."""

import os
import shutil
import signal
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from mvquant.errors import CheckpointError, UsageError


@contextmanager
def staged_folder(out: Path, *, overwrite: bool = False) -> Generator[Path]:
    """Give a folder beside `out` to write into; rename it to `out` if all went well, else remove it.

    A termination signal counts as going wrong, so that a killed job leaves nothing behind either.

    Raises:
        UsageError: `out` exists, and `overwrite` was not asked for.
        CheckpointError: the disk is full, or the place cannot be written to.
    """
    check_writable(out, overwrite=overwrite)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        stage = Path(tempfile.mkdtemp(prefix=f".{out.name}.partial-", dir=out.parent))
    except OSError as error:
        raise CheckpointError(f"{out}: cannot write there ({error.strerror})") from None
    try:
        with raised_termination():
            yield stage
            _publish(stage, out)
    except OSError as error:
        raise CheckpointError(f"{out}: writing failed ({error.strerror or error}); nothing was left behind") from error
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def check_writable(out: Path, *, overwrite: bool) -> None:
    """Refuse to replace a folder that was not to be replaced; called early, before hours of work.

    Raises:
        UsageError: `out` exists and `overwrite` was not asked for, or it is nothing that mvquant wrote.
    """
    if out.exists() and not overwrite:
        raise UsageError(f"{out} exists: choose another folder, or ask for it to be replaced with --overwrite")
    if out.exists() and not _is_ours(out):
        raise UsageError(f"{out} holds no model or report of mvquant: it is not replaced; remove it yourself")


def _is_ours(folder: Path) -> bool:
    """Whether a folder looks like something that mvquant writes, so that replacing it loses nothing else."""
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else None
    return names is not None and (not names or bool(names & {"plan.json", "analysis.json", "results.json"}))


def _publish(stage: Path, out: Path) -> None:
    stage.chmod(0o777 & ~_umask())
    if out.exists():
        old = Path(tempfile.mkdtemp(prefix=f".{out.name}.replaced-", dir=out.parent))
        out.rename(old / out.name)
        stage.rename(out)
        shutil.rmtree(old, ignore_errors=True)
    else:
        stage.rename(out)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


class _Terminated(BaseException):
    """SIGTERM, raised where the work is going on so that it is cleaned up."""


@contextmanager
def raised_termination() -> Generator[None]:
    """Raise a termination signal where the work is going on, so that it is cleaned up; then exit with its code.

    Outside the main thread, which alone can handle signals, it does nothing.

    Raises:
        SystemExit: this process was asked to end.
    """

    def stop(number: int, _frame: FrameType | None) -> None:
        raise _Terminated(f"signal {number}")

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not in the main thread
        yield
        return
    try:
        yield
    except _Terminated:
        raise SystemExit(128 + signal.SIGTERM) from None
    finally:
        signal.signal(signal.SIGTERM, before)
