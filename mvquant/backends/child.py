"""Child processes that work for us: logged, watched, and never left running."""

import codecs
import io
import os
import selectors
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from pathlib import Path

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
        process = start_child(command, what=what, environment=environment, folder=folder)
        watch_child(process, log, what=what, way_out=way_out, report=report)


def start_child(
    command: Sequence[str | Path],
    *,
    what: str,
    environment: dict[str, str] | None = None,
    folder: Path | None = None,
    stdin: int = subprocess.DEVNULL,
) -> "subprocess.Popen[bytes]":
    """Start a command in a group of its own; to be handed to `watch_child`, or to `end_child`.

    Args:
        command: program and arguments.
        what: to call it in errors.
        environment: variables beside those of this process.
        folder: to run it in; here by default.
        stdin: as `subprocess.Popen` has it.

    Raises:
        BackendError: it could not be started.
    """
    try:
        return subprocess.Popen(
            [str(part) for part in command],
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(environment or {}), PARENT: str(os.getpid())},
            cwd=folder,
            start_new_session=True,
        )
    except OSError as error:
        raise BackendError(f"{what} could not be started: {error}") from None


def watch_child(
    process: "subprocess.Popen[bytes]",
    log: Path,
    *,
    what: str,
    way_out: str = "",
    report: Callable[[str], None] | None = None,
) -> None:
    """Follow what was started to its end, and end what it has started.

    Args:
        process: from `start_child`.
        log: file that its output is added to.
        what: to call it in errors.
        way_out: what the person can do when it fails, if that is known.
        report: is told every line.

    Raises:
        BackendError: it failed, or was killed; with its last lines.
    """
    last: deque[str] = deque(maxlen=LAST_LINES)
    try:
        with log.open("a", encoding="utf-8") as file:
            for line in _lines(process):
                file.write(f"{line}\n")
                last.append(line.rstrip())
                if report:
                    report(line.rstrip())
        code = process.wait()
    finally:
        end_child(process)
    if code != 0:
        said = "\n  ".join(["its last lines:", *last]) if last else "it said nothing"
        raise BackendError("; ".join(part for part in (f"{what} {_fate(code)}", way_out, said) if part))


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


def end_child(process: "subprocess.Popen[bytes]") -> None:
    """Kill what still runs of a process and of all that it started, which share its group."""
    if process.stdout is not None and process.stdout.closed:
        return  # it was ended before, and its number can be another's by now
    process.poll()
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe:
            with suppress(BrokenPipeError):
                pipe.close()


def end_with_parent() -> None:
    """Kill this process, with its group if it leads one, as soon as the process that it works for is gone.

    That is the one that called `start_child`; without it, the one that is the parent now.
    """
    parent = int(os.environ.get(PARENT) or os.getppid())
    threading.Thread(target=_watch, args=(parent,), daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(WATCH_SECONDS)
    leads = os.getpgrp() == os.getpid()
    (os.killpg if leads else os.kill)(os.getpid(), signal.SIGKILL)


def _fate(code: int) -> str:
    """Say how a process ended.

    >>> _fate(1), _fate(-9)
    ('failed with exit code 1', 'was killed (SIGKILL)')
    """
    if code >= 0:
        return f"failed with exit code {code}"
    return f"was killed ({signal.Signals(-code).name})"
