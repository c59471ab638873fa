"""Child processes that work for us: logged, watched, and never left running."""

import atexit
import codecs
import io
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from mvquant.checkpoint.staging import raised_termination
from mvquant.errors import BackendError

LAST_LINES = 12
POLL_SECONDS = 0.1
"""How long it takes to notice that a command has ended whose own children hold its pipe."""

READ_BYTES = 2**20
"""Of one read: no less than a pipe holds, so that one read empties it."""

PARENT = "MVQUANT_PARENT"
"""Environment variable of every command: the process that it works for."""

WATCH_SECONDS = 1.0


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

    Whatever ends this process's part (an error, an interrupt, a termination signal) ends the command and all that it
    started; so does the command's own end. When this process is killed outright, only a command that calls
    `end_with_parent` ends with it.

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
        SystemExit: this process was asked to end by SIGTERM, in its main thread.
    """
    with raised_termination():
        try:
            process = subprocess.Popen(
                [str(part) for part in command],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(environment or {}), PARENT: str(os.getpid())},
                cwd=folder,
                start_new_session=True,
            )
        except OSError as error:
            raise BackendError(f"{what} could not be started: {error}") from None
        code, last = _watched(process, log, report)
    if code != 0:
        raise failure(what, fate(code), last, way_out)


def _watched(
    process: "subprocess.Popen[bytes]", log: Path, report: Callable[[str], None] | None
) -> tuple[int, Iterable[str]]:
    """Follow what was started to its end, and end what it has started; return its exit code and last lines."""
    last: deque[str] = deque(maxlen=LAST_LINES)
    try:
        with log.open("a", encoding="utf-8") as file:
            for line in _lines(process):
                file.write(f"{line}\n")
                last.append(line.rstrip())
                if report:
                    report(line.rstrip())
        return process.wait(), last
    finally:
        _end_all(process)


def failure(what: str, how: str, last: Iterable[str], way_out: str = "") -> BackendError:
    """Say how something ended that should not have, with its last lines.

    Args:
        what: ended.
        how: it ended.
        last: lines that it said.
        way_out: what the person can do.
    """
    lines = list(last)
    said = "\n  ".join(["its last lines:", *lines]) if lines else "it said nothing"
    return BackendError("; ".join(part for part in (f"{what} {how}", way_out, said) if part))


def last_lines(log: Path) -> list[str]:
    """Read the last lines of a log; none where there is no log."""
    try:
        with log.open(encoding="utf-8", errors="replace") as file:
            return [line.rstrip() for line in deque(file, maxlen=LAST_LINES)]
    except OSError:
        return []


def _lines(process: "subprocess.Popen[bytes]") -> Generator[str]:
    """Lines that a process says, without their ends."""
    decoder = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder("utf-8")("replace"), translate=True)
    begun = ""
    for read in _reads(process):
        *lines, begun = (begun + decoder.decode(read)).split("\n")
        yield from lines
    begun += decoder.decode(b"", final=True)
    if begun:
        yield begun.removesuffix("\n")


def _reads(process: "subprocess.Popen[bytes]") -> Generator[bytes]:
    """What a process writes until it has ended, even if others hold its pipe open after that."""
    assert process.stdout is not None, "it was started with a pipe"
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        ended = False
        while not ended:
            # asked before the read, so that the last read finds all that the process has written
            ended = process.poll() is not None
            if selector.select(0 if ended else POLL_SECONDS):
                read = os.read(process.stdout.fileno(), READ_BYTES)
                if not read:
                    return
                yield read


def _end_all(process: "subprocess.Popen[bytes]") -> None:
    """Kill what still runs of a process and of all that it started, which share its group."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if process.stdout is not None:
        process.stdout.close()


def end_process(code: int) -> NoReturn:
    """End this process with what packages have registered for the end, but without taking thousands of modules apart.

    That takes more than a second with torch and a package for quantizing.
    """
    atexit._run_exitfuncs()  # pyright: ignore[reportPrivateUsage]
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def end_with_parent() -> None:
    """Kill this process, with its group if it leads one, as soon as the process that it works for is gone.

    That is the one that called `run_logged`; without it, the one that is the parent now.
    """
    parent = int(os.environ.get(PARENT) or os.getppid())
    threading.Thread(target=_watch, args=(parent,), daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(WATCH_SECONDS)
    leads = os.getpgrp() == os.getpid()
    (os.killpg if leads else os.kill)(os.getpid(), signal.SIGKILL)


def fate(code: int) -> str:
    """Say how a process ended.

    >>> fate(1), fate(-9)
    ('failed with exit code 1', 'was killed (SIGKILL)')
    """
    if code >= 0:
        return f"failed with exit code {code}"
    return f"was killed ({signal.Signals(-code).name})"
