"""A process that does the work of a command, while this one becomes another that only watches it.

What may crash or be killed with it is a package that takes a whole model: it runs in the worker, which has nothing else
to do, so that torch is in memory once. The worker is forked before anything heavy is imported, which is soon done, and
safe: there is one thread.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from mvquant.backends.child import PARENT, end_process, end_with_parent
from mvquant.backends.folder.programs import importing_mvquant
from mvquant.backends.memory import share_one_heap
from mvquant.cli.terminal import err
from mvquant.cli.watcher import BLOCKED
from mvquant.errors import BackendError

WATCHER = Path(__file__).with_name("watcher.py")
HEAVY = "torch"

WAKE_WHEN_ALONE = (1, int(signal.SIGCONT))
"""PR_SET_PDEATHSIG of Linux's prctl.h, and what to send when the parent is gone."""

_SAID: list[int] = []
"""In a worker: the pipe that says that it ends because it is done, whichever way. A package can end a process, too."""


def can_fork() -> bool:
    """Whether this process is still light: what torch has set up does not survive a fork."""
    return hasattr(os, "fork") and HEAVY not in sys.modules


def leave_to_worker(told: Sequence[str]) -> None:
    """Return in a new process, which is to do the work; this one waits for it, and ends as it does.

    Args:
        told: arguments of `mvquant` by which it says that the worker was killed; see `mvquant.cli.watcher`.

    Raises:
        BackendError: there can be no other process.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    watcher, (done, say_done) = os.getpid(), os.pipe()
    # a signal that comes in between waits until both know what to do with it
    signal.pthread_sigmask(signal.SIG_BLOCK, BLOCKED)
    try:
        worker = os.fork()
        if worker:
            _watch(worker, done, told)
    except OSError as error:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, BLOCKED)
        raise BackendError(f"a process for the work could not be started: {error.strerror}") from None
    os.close(done)
    _SAID.append(say_done)
    _work_for(watcher)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, BLOCKED)


def _watch(worker: int, done: int, told: Sequence[str]) -> NoReturn:
    """Become the watcher, which takes a fifth of the memory that this process has."""
    os.set_inheritable(done, True)
    watching = [sys.executable, "-P", "-S", str(WATCHER), str(worker), str(done)]
    telling = [sys.executable, "-P", "-m", "mvquant", *told]
    try:
        os.execve(sys.executable, watching + telling, {**os.environ, **importing_mvquant()})
    except OSError:
        os.kill(worker, signal.SIGKILL)
        raise


def _work_for(watcher: int) -> None:
    os.setsid()  # signals of the terminal reach it once, by way of the watcher; and with it ends all that it started
    os.environ[PARENT] = str(watcher)
    share_one_heap()
    _end_with_watcher()
    # packages write to the streams; the command's own words go where they went when it was started
    err.file = os.fdopen(os.dup(2), "w", buffering=1)


def _end_with_watcher() -> None:
    """Have a thread end this process and what it started; where it has been stopped, it first has to be woken."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(*WAKE_WHEN_ALONE)
    end_with_parent()


@contextmanager
def ended_soon() -> Generator[None]:
    """End a worker's process right after the block, without the second that taking all modules apart takes."""
    try:
        yield
    except SystemExit as stop:
        if not _SAID:
            raise
        os.write(_SAID[0], b".")
        end_process(stop.code if isinstance(stop.code, int) else int(stop.code is not None))
