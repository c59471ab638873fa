"""Child processes: what they say, how they end, and that nothing of them stays."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from mvquant.backends.child import PARENT, run_logged
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


def assert_gone(pids):
    until = time.monotonic() + 10
    while any(map(is_running, pids)) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(map(is_running, pids))


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
    assert_gone(pids)


def test_a_child_that_is_killed_from_outside_is_told_of(tmp_path):
    code = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"

    def kill(line):
        threading.Timer(0.1, os.kill, (int(line), signal.SIGTERM)).start()

    with pytest.raises(BackendError, match=r"it was killed \(SIGTERM\)"):
        run_logged(python(code), tmp_path / "log", what="it", report=kill)


@pytest.mark.parametrize(("end", "code"), [("kill -9 $$", -9), ("exit 3", 3), ("exit 0", 0)])
def test_what_a_child_leaves_running_is_ended_with_it(tmp_path, end, code):
    survived, pids = tmp_path / "survived", []

    def note(line):
        pids.append(int(line))

    command = ["bash", "-c", f"(sleep 20; touch {survived}) & echo $!; {end}"]
    if code == 0:
        run_logged(command, tmp_path / "log", what="it", report=note)
    else:
        with pytest.raises(BackendError, match="SIGKILL" if code < 0 else "exit code 3"):
            run_logged(command, tmp_path / "log", what="it", report=note)
    assert len(pids) == 1
    assert_gone(pids)
    assert not survived.exists(), "it was waited for"


def test_who_leaves_the_group_and_holds_the_pipe_is_not_waited_for(tmp_path):
    code = """
    import subprocess, sys
    sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
    print(subprocess.Popen(sleep, start_new_session=True).pid)
    print(*range(5000), sep="\\n")
    """
    lines = []
    run_logged(python(textwrap.dedent(code)), tmp_path / "log", what="it", report=lines.append)
    pid = int(lines[0])
    assert is_running(pid), "it was waited for"
    os.kill(pid, signal.SIGKILL)
    assert lines[1:] == [str(number) for number in range(5000)], "all that was said before the end is there"


def test_lines_end_as_text_does_and_bad_bytes_are_replaced(tmp_path):
    lines = []
    code = r"import os; [os.write(1, part) for part in (b'10%\r20%\r', b'\na\xc3', b'\xa9\xff\r\n', b'no end')]"
    run_logged(python(code), tmp_path / "log", what="it", report=lines.append)
    assert lines == ["10%", "20%", "a\u00e9\ufffd", "no end"]
    assert (tmp_path / "log").read_text(encoding="utf-8").splitlines() == lines


WATCHERS = ["mvquant.backends.child", "mvquant.backends.auto_gptq.worker"]


def killed_parent(tmp_path, number, child):
    """Signal a process in `run_logged` once its child has printed pids; its exit code, and those."""
    parent = f"""
    import sys
    from pathlib import Path
    from mvquant.backends.child import run_logged
    command = [sys.executable, "-c", {child!r}]
    run_logged(command, Path({str(tmp_path / "log")!r}), what="it", report=lambda line: print(line, flush=True))
    """
    with subprocess.Popen(python(textwrap.dedent(parent)), stdout=subprocess.PIPE, text=True) as process:
        pids = [int(pid) for pid in process.stdout.readline().split()]
        assert len(pids) == 2
        assert all(map(is_running, pids))
        process.send_signal(number)
        return process.wait(timeout=30), pids


TWO = """
import os, subprocess, sys, time
other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(os.getpid(), other.pid, flush=True)
time.sleep(600)
"""


def test_a_termination_signal_ends_the_child_and_what_it_started(tmp_path):
    code, pids = killed_parent(tmp_path, signal.SIGTERM, TWO)
    assert code == 128 + signal.SIGTERM
    assert_gone(pids)


@pytest.mark.parametrize("module", WATCHERS)
def test_who_watches_its_parent_ends_when_that_is_killed(tmp_path, module):
    watch = f"from {module} import end_with_parent\nend_with_parent()\n"
    code, pids = killed_parent(tmp_path, signal.SIGKILL, watch + TWO)
    assert code == -signal.SIGKILL
    assert_gone(pids)


@pytest.mark.parametrize("module", WATCHERS)
def test_a_parent_that_is_gone_before_it_is_watched_is_noticed(module):
    with subprocess.Popen(python("")) as gone:
        pass
    code = f"from {module} import end_with_parent\nend_with_parent()\nimport time; time.sleep(600)"
    environment = {**os.environ, PARENT: str(gone.pid)}
    ended = subprocess.run(python(code), env=environment, timeout=120, check=False)
    assert ended.returncode == -signal.SIGKILL


def test_outside_the_main_thread_signals_are_left_alone(tmp_path):
    before, lines = signal.getsignal(signal.SIGTERM), []
    arguments = {"what": "it", "report": lines.append}
    thread = threading.Thread(target=run_logged, args=(python("print(1)"), tmp_path / "log"), kwargs=arguments)
    thread.start()
    thread.join()
    assert lines == ["1"]
    assert signal.getsignal(signal.SIGTERM) is before
