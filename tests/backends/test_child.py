"""Child processes: what they say, how they end, and that nothing of them stays."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from mvquant.backends.child import run_logged
from mvquant.errors import BackendError


def python(code):
    return [sys.executable, "-c", code]


def is_running(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # a process that ended and was not waited for yet is there, but does not run
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    return bool(state.strip()) and not state.startswith("Z")


def test_every_line_is_reported_and_logged(tmp_path):
    lines = []
    code = "import sys; print('one'); print('two', file=sys.stderr)"
    run_logged(python(code), tmp_path / "log", what="it", report=lines.append)
    assert sorted(lines) == ["one", "two"]
    assert sorted((tmp_path / "log").read_text().splitlines()) == ["one", "two"]


def test_logs_are_added_to(tmp_path):
    run_logged(python("print(1)"), tmp_path / "log", what="it")
    run_logged(python("print(2)"), tmp_path / "log", what="it")
    assert (tmp_path / "log").read_text() == "1\n2\n"


def test_variables_are_added(tmp_path):
    code = "import os; print(os.environ['MVQUANT_A'], 'PATH' in os.environ)"
    run_logged(python(code), tmp_path / "log", what="it", environment={"MVQUANT_A": "a"})
    assert (tmp_path / "log").read_text() == "a True\n"


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("print('why'); exit(3)", r"^it failed with exit code 3; do this; its last lines:\n  why$"),
        ("import os; os.kill(os.getpid(), 9)", r"^it was killed \(SIGKILL\); do this; it said nothing$"),
    ],
)
def test_a_failure_has_the_last_lines_and_the_way_out(tmp_path, code, message):
    with pytest.raises(BackendError, match=message):
        run_logged(python(code), tmp_path / "log", what="it", way_out="do this")


def test_only_the_last_lines_are_shown(tmp_path):
    with pytest.raises(BackendError) as failure:
        run_logged(python("print(*range(1000), sep='\\n'); exit(1)"), tmp_path / "log", what="it")
    assert str(failure.value).splitlines()[1:] == [f"  {number}" for number in range(988, 1000)]


def test_a_program_that_is_not_there(tmp_path):
    with pytest.raises(BackendError, match=r"it could not be started: .*no-such-program"):
        run_logged([tmp_path / "no-such-program"], tmp_path / "log", what="it")


class _Interrupted(Exception):  # noqa: N818 - stands for KeyboardInterrupt
    pass


def test_an_interrupt_ends_the_child_and_what_it_started(tmp_path):
    grandchild = "import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])"
    pids = []

    def interrupt(line):
        pids.extend(map(int, line.split()))
        raise _Interrupted

    code = f"{grandchild}; import os; print(os.getpid(), p.pid, flush=True); p.wait()"
    with pytest.raises(_Interrupted):
        run_logged(python(code), tmp_path / "log", what="it", report=interrupt)
    assert len(pids) == 2
    until = time.monotonic() + 10
    while any(map(is_running, pids)) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(map(is_running, pids))


def test_a_child_that_is_killed_from_outside_is_told_of(tmp_path):
    code = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"

    def kill(line):
        threading.Timer(0.1, os.kill, (int(line), signal.SIGTERM)).start()

    with pytest.raises(BackendError, match=r"it was killed \(SIGTERM\)"):
        run_logged(python(code), tmp_path / "log", what="it", report=kill)
