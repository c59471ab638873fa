"""Wait for a process that does the work of a command; run as a file, by a Python that imports nothing else.

    python -P -S watcher.py WORKER DONE TOLD...

WORKER is its pid, and DONE the pipe through which it says that it ends because it is done, whichever way: then this
process ends as it did. If it was killed, or ended by something else, this process becomes the command TOLD, with two
more arguments: the worker's exit code, negative for the number of a signal, and the signal by which this process was
asked to end, or 0.
"""

import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn

PASSED_ON = (signal.SIGINT, signal.SIGTERM)
"""Signals that are the worker's business."""

BLOCKED = (*PASSED_ON, signal.SIGTSTP)
"""When this starts, so that none is lost."""


def main(worker: int, done: int, told: list[str]) -> NoReturn:
    """Watch it to its end, and end all that it has started."""
    asked = _pass_on_signals(worker)
    code = os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1])
    _send(os.killpg, worker, signal.SIGKILL)
    if _has_said(done):
        sys.exit(code if code >= 0 else 128 - code)  # as shells say it: something broke at the very end
    for number in PASSED_ON:
        signal.signal(number, signal.SIG_IGN)  # it is ending already
    os.execv(told[0], [*told, str(code), str(asked[0] if asked else 0)])


def _pass_on_signals(worker: int) -> list[int]:
    """Have the worker get what this process is asked, and return a list of that, which grows."""
    asked: list[int] = []

    def pass_on(number: int, _frame: object) -> None:
        # who asks again does not want to wait
        _send(os.kill, worker, signal.SIGKILL if number in asked else number)
        asked.append(number)

    def pause(number: int, _frame: object) -> None:
        _send(os.killpg, worker, signal.SIGSTOP)
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)  # which does nothing where nobody could wake this process
        signal.signal(number, pause)
        _send(os.killpg, worker, signal.SIGCONT)

    for number, act in (*((number, pass_on) for number in PASSED_ON), (signal.SIGTSTP, pause)):
        if signal.getsignal(number) != signal.SIG_IGN:  # as in the background of a script
            signal.signal(number, act)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, BLOCKED)
    return asked


def _send(kill: Callable[[int, int], None], process: int, number: int) -> None:
    with suppress(ProcessLookupError):
        kill(process, number)


def _has_said(done: int) -> bool:
    """Whether a worker that is gone has said that it was done; what it started can still hold its end of the pipe."""
    os.set_blocking(done, False)
    try:
        return bool(os.read(done, 1))
    except BlockingIOError:
        return False


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
