"""A process that does the work of a command, and this one, which only watches it.

What may crash or be killed with it is a package that takes a whole model: it runs in the worker, which has nothing else
to do, so that torch is in memory once. The worker is forked before anything heavy is imported, which is soon done, and
safe: there is one thread.
"""

import os
import signal
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

from mvquant.backends.child import PARENT, end_process, end_with_parent, fate
from mvquant.cli.terminal import AlreadySaid, err
from mvquant.errors import BackendError

PASSED_ON = (signal.SIGINT, signal.SIGTERM)
"""Signals that are the worker's business."""

HEAVY = "torch"

_SAID: list[int] = []
"""In a worker: the pipe that says that it ends because it is done, whichever way. A package can end a process, too."""


def can_fork() -> bool:
    """Whether this process is still light: what torch has set up does not survive a fork."""
    return HEAVY not in sys.modules


def leave_to_worker(killed: Callable[[str], Exception]) -> None:
    """Return in a new process, which is to do the work; this one waits for it, and ends as it does.

    Args:
        killed: makes an error of how the worker was killed, such as "was killed (SIGKILL)"; it may clean up.

    Raises:
        BackendError: there can be no other process.
        AlreadySaid: in this process: the worker has ended by itself, and said what there was to say.
        Exception: in this process: what `killed` made.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    watcher, (done, say_done) = os.getpid(), os.pipe()
    # a signal that comes in between waits until both know what to do with it
    signal.pthread_sigmask(signal.SIG_BLOCK, PASSED_ON)
    try:
        worker = os.fork()
    except OSError as error:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, PASSED_ON)
        raise BackendError(f"a process for the work could not be started: {error.strerror}") from None
    if worker == 0:
        os.close(done)
        _SAID.append(say_done)
        _work_for(watcher)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, PASSED_ON)
        return
    os.close(say_done)
    _watch(worker, done, killed)


def _work_for(watcher: int) -> None:
    os.setsid()  # signals of the terminal reach it once, by way of the watcher; and with it ends all that it started
    os.environ[PARENT] = str(watcher)
    end_with_parent()
    # packages write to the streams; the command's own words go where they went when it was started
    err.file = os.fdopen(os.dup(2), "w", buffering=1)


def _watch(worker: int, done: int, killed: Callable[[str], Exception]) -> NoReturn:
    asked = list[int]()

    def pass_on(number: int, _frame: FrameType | None) -> None:
        # who asks again does not want to wait
        with suppress(ProcessLookupError):
            os.kill(worker, signal.SIGKILL if number in asked else number)
        asked.append(number)

    before = {number: signal.signal(number, pass_on) for number in PASSED_ON}
    signal.pthread_sigmask(signal.SIG_UNBLOCK, PASSED_ON)
    try:
        code = os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1])
    finally:
        with suppress(ProcessLookupError):
            os.killpg(worker, signal.SIGKILL)  # what it has started
        for number, was in before.items():
            signal.signal(number, was)
    if _has_said(done):
        raise AlreadySaid(code)
    error = killed(fate(code))
    if asked:
        raise AlreadySaid(128 + asked[0])
    raise error


def _has_said(done: int) -> bool:
    """Whether a worker that is gone has said that it was done; what it started can still hold its end of the pipe."""
    os.set_blocking(done, False)
    try:
        return bool(os.read(done, 1))
    except BlockingIOError:
        return False


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
