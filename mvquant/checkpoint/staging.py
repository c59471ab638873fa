"""A folder that appears only when it is complete.

.OUT.partial-XXXXXXXX/  beside OUT, until OUT is there
  lock                  held by the process that writes
  new/                  what becomes OUT
  old/                  what was OUT, where it is replaced

A process that is killed outright leaves such a folder; whoever writes OUT next removes it, unless its lock is held.
"""

import fcntl
import glob
import json
import shutil
import signal
import tempfile
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

from mvquant.errors import CheckpointError, UsageError

LOCK = "lock"
NEW = "new"
OLD = "old"

_OWN_METHOD = "mvquant"
"""`quant_method` of our checkpoints: `mvquant.checkpoint.native` has it too, and imports torch."""


class _Mark(NamedTuple):
    """What tells a folder of ours: keys of a JSON file, and what the command that wrote it always writes beside."""

    name: str
    keys: frozenset[str]
    beside: str | None = None


_MARKS = (
    _Mark("results.json", frozenset({"schema_version", "model", "settings", "versions", "variants"}), "pieces"),
    _Mark(
        "analysis.json", frozenset({"schema_version", "model", "ratio", "calibration", "layers"}), "stats.safetensors"
    ),
    _Mark("plan.json", frozenset({"model", "family", "dtype", "recipe", "modules", "kept_parameters"})),
    _Mark("results.json", frozenset({"schema_version", "subject", "versions", "tasks", "groups"})),
)
"""Of comparisons, analyses, plans and evaluations. Where nothing of the command lies beside it, a file counts only if
it is alone: people save plans and evaluations, and copy the others, into folders of their own."""


@contextmanager
def staged_folder(out: Path, *, overwrite: bool = False) -> Generator[Path]:
    """Give a folder beside `out` to write into; rename it to `out` if all went well, else remove it.

    A termination signal counts as going wrong, so that a terminated job leaves nothing behind either. What an earlier
    job left that was killed outright is removed first.

    Raises:
        UsageError: `out` exists, and `overwrite` was not asked for.
        CheckpointError: the disk is full, or the place cannot be written to.
    """
    check_writable(out, overwrite=overwrite)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(out)
        place = Path(tempfile.mkdtemp(prefix=_prefix(out), dir=out.parent))
    except OSError as error:
        raise CheckpointError(f"{out}: cannot write there ({error.strerror})") from None
    try:
        with _locked(place), raised_termination():
            (place / NEW).mkdir()
            yield place / NEW
            _publish(place, out)
    except OSError as error:
        raise CheckpointError(f"{out}: writing failed ({error.strerror or error}); nothing was left behind") from error
    finally:
        _remove(place, out)


def check_writable(out: Path, *, overwrite: bool) -> None:
    """Refuse to replace a folder that was not to be replaced; called early, before hours of work.

    Raises:
        UsageError: `out` exists and `overwrite` was not asked for, or it is nothing that mvquant wrote.
        CheckpointError: it cannot be looked at.
    """
    try:
        if not out.exists():
            return
        if not overwrite:
            raise UsageError(f"{out} exists: choose another folder, or ask for it to be replaced with --overwrite")
        if not _is_ours(out):
            raise UsageError(
                f"{out} holds no model or report of mvquant{_namesakes(out)}: it is not replaced; remove it yourself"
            )
    except OSError as error:
        raise CheckpointError(f"{out}: cannot look there ({error.strerror})") from None


def _is_ours(folder: Path) -> bool:
    """Whether a folder holds what mvquant writes, so that replacing it loses nothing else."""
    if not folder.is_dir():
        return False
    names = {path.name for path in folder.iterdir()}
    if not names or _is_checkpoint(folder):
        return True
    likely = (mark for mark in _MARKS if mark.beside in names or names == {mark.name})
    return any(mark.keys <= _json_object(folder / mark.name).keys() for mark in likely)


def _is_checkpoint(folder: Path) -> bool:
    """Whether a folder is a model that mvquant quantized; what trains such a model on saves it without our plan."""
    quantized = _json_object(folder / "config.json").get("quantization_config")
    return (
        isinstance(quantized, dict)
        and quantized.get("quant_method") == _OWN_METHOD
        and (folder / "plan.json").is_file()
    )


def _json_object(file: Path) -> dict[str, Any]:
    """Read a JSON object; an empty one where there is none."""
    try:
        found: Any = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _namesakes(out: Path) -> str:
    """Say of files that are called as ours are why they do not count."""
    names = sorted({mark.name for mark in _MARKS if (out / mark.name).is_file()})
    return f" ({', '.join(names)} there is another tool's, or lies among other files)" if names else ""


def _publish(place: Path, out: Path) -> None:
    """Put what is complete where it belongs; whatever goes wrong, what was there before is there again."""
    try:
        if out.exists():
            out.rename(place / OLD)
        (place / NEW).rename(out)
    except BaseException:
        if (place / OLD).exists() and not out.exists():
            (place / OLD).rename(out)
        raise


def _prefix(out: Path) -> str:
    return f".{out.name}.partial-"


@contextmanager
def _locked(place: Path) -> Generator[None]:
    """Hold a lock on a stage; the system lets go of it when the process ends, however it ends.

    The lock has its name only when it is held, so that nobody takes a stage that was just made for a leftover. Where
    files cannot be locked there is none, and the stage is never taken for one.
    """
    unnamed = place / f"{LOCK}.new"
    with unnamed.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            unnamed.rename(place / LOCK)
        except OSError:
            unnamed.unlink(missing_ok=True)
        yield


def remove_leftovers(out: Path) -> None:
    """Remove what processes left that were killed while they wrote `out`."""
    for place in out.parent.glob(f"{glob.escape(_prefix(out))}*"):
        if "." in place.name.removeprefix(_prefix(out)) or place.is_symlink():
            continue  # of another OUT, whose name begins like this one's
        with suppress(OSError), (place / LOCK).open("r+") as lock:  # no lock; another user's; or held
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove(place, out)


def _remove(place: Path, out: Path) -> None:
    """Remove a stage, its lock last; but not what was replaced while there is nothing in its place."""
    if (place / OLD).exists() and not out.exists():
        return
    for inner in (NEW, OLD):
        shutil.rmtree(place / inner, ignore_errors=True)
    shutil.rmtree(place, ignore_errors=True)


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
