"""Child processes that work for us: logged, watched, and never left running."""

import os
import signal
import subprocess
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

from mvquant.errors import BackendError

LAST_LINES = 12


def run_logged(
    command: Sequence[str | Path],
    log: Path,
    *,
    what: str,
    way_out: str = "",
    report: Callable[[str], None] | None = None,
    environment: dict[str, str] | None = None,
    folder: Path | None = None,
) -> None:
    """Run a command to its end, with its output in a file.

    Whatever ends this process's part (an error, an interrupt, a termination signal that is raised) ends the command and
    all that it started.

    Args:
        command: program and arguments.
        log: file that its output is added to.
        what: to call it in errors.
        way_out: what the person can do when it fails, if that is known.
        report: is told every line.
        environment: variables beside those of this process.
        folder: to run it in, for packages that write where they are started; here by default.

    Raises:
        BackendError: it could not be started, failed, or was killed; with its last lines.
    """
    last: deque[str] = deque(maxlen=LAST_LINES)
    with log.open("a", encoding="utf-8") as file:
        process = _started([str(part) for part in command], what, environment, folder)
        try:
            for line in process.stdout or ():
                file.write(line)
                last.append(line.rstrip())
                if report:
                    report(line.rstrip())
            code = process.wait()
        finally:
            _end(process)
    if code != 0:
        said = "\n  ".join(["its last lines:", *last]) if last else "it said nothing"
        raise BackendError("; ".join(part for part in (f"{what} {_fate(code)}", way_out, said) if part))


def _started(
    command: list[str], what: str, environment: dict[str, str] | None, folder: Path | None
) -> "subprocess.Popen[str]":
    try:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env={**os.environ, **(environment or {})},
            cwd=folder,
            start_new_session=True,
        )
    except OSError as error:
        raise BackendError(f"{what} could not be started: {error}") from None


def _end(process: "subprocess.Popen[str]") -> None:
    """Kill what still runs, with its children."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    if process.stdout:
        process.stdout.close()


def _fate(code: int) -> str:
    """Say how a process ended.

    >>> _fate(1), _fate(-9)
    ('failed with exit code 1', 'was killed (SIGKILL)')
    """
    if code >= 0:
        return f"failed with exit code {code}"
    return f"was killed ({signal.Signals(-code).name})"
