"""Commands whose work is done by another process."""

import errno
import os
import signal
import subprocess
import sys
import textwrap
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from mvquant.backends.folder.programs import PROGRAMS
from mvquant.cli import worker
from mvquant.cli.watcher import BLOCKED
from mvquant.errors import BackendError
from tests.backends.test_child import assert_gone, is_running

BEGIN = """
import os, signal, subprocess, sys, time
from mvquant.cli.worker import ended_soon, leave_to_worker
watcher = os.getpid()
with ended_soon():
    leave_to_worker(["worker-killed", "--", "nowhere/out"])
"""


@contextmanager
def started(work, begin="", **how):
    """A watcher whose worker does this."""
    code = begin + BEGIN + textwrap.indent(textwrap.dedent(work), "    ")
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path.cwd(),
        **how,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def ended(work):
    with started(work) as process:
        out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def test_it_works_in_another_process_and_ends_as_that_does():
    work = "print(os.getpid() != watcher, os.getppid() == watcher); sys.exit(3)"
    assert ended(work) == (3, "True True\n", "")


def test_the_watcher_is_light():
    """What it has to import it has imported when it catches signals."""
    work = """
    def catches(number):
        with open(f"/proc/{watcher}/status") as file:
            caught = next(int(line.split()[1], 16) for line in file if line.startswith("SigCgt"))
        return bool(caught >> (number - 1) & 1)
    while not catches(signal.SIGTSTP):
        time.sleep(0.01)
    print("site-packages" in open(f"/proc/{watcher}/maps").read())
    sys.exit()
    """
    assert ended(work) == (0, "False\n", "")


def test_a_process_with_torch_is_not_forked():
    assert not worker.can_fork()


def test_no_process_to_be_had_is_an_error_and_signals_come_through_again(monkeypatch):
    def none_left():
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(worker.os, "fork", none_left)
    with pytest.raises(BackendError, match="could not be started: Resource temporarily unavailable"):
        worker.leave_to_worker([])
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ()) & {*BLOCKED}


def test_a_watcher_that_cannot_be_had_leaves_no_worker(monkeypatch):
    def missing(*_):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))

    with subprocess.Popen(["sleep", "600"]) as stand_in:
        try:
            monkeypatch.setattr(worker.os, "fork", lambda: stand_in.pid)
            monkeypatch.setattr(worker.os, "execve", missing)
            with pytest.raises(BackendError, match="could not be started: No such file"):
                worker.leave_to_worker([])
            assert stand_in.wait(timeout=30) == -signal.SIGKILL
        finally:
            stand_in.kill()
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ()) & {*BLOCKED}


def test_one_that_is_killed_is_told_of():
    code, out, err = ended("os.kill(os.getpid(), signal.SIGKILL)")
    assert (code, out) == (1, "")
    assert "error: the process at work was killed (SIGKILL)" in err


SLEEPS = """
print(os.getpid(), flush=True)
time.sleep(600)
"""


def test_it_stops_and_goes_on_with_the_watcher():
    with started(SLEEPS, process_group=0) as process:
        pid = int(process.stdout.readline())
        process.send_signal(signal.SIGTSTP)
        assert_comes_to(lambda: (state(process.pid), state(pid)), ("T", "T"))
        process.send_signal(signal.SIGCONT)
        assert_comes_to(lambda: (state(process.pid), state(pid)), ("S", "S"))
        process.terminate()
        assert process.wait(timeout=120) == 143


def test_one_that_is_stopped_ends_with_the_watcher():
    with started(SLEEPS, process_group=0) as process:
        pid = int(process.stdout.readline())
        process.send_signal(signal.SIGTSTP)
        assert_comes_to(lambda: (state(process.pid), state(pid)), ("T", "T"))
        process.kill()
        assert_gone([pid])


def test_what_no_shell_could_wake_does_not_stop():
    with started(SLEEPS, start_new_session=True) as process:
        pid = int(process.stdout.readline())
        process.send_signal(signal.SIGTSTP)
        process.terminate()
        assert process.wait(timeout=120) == 143
    assert_gone([pid])


def test_a_signal_that_was_ignored_from_the_start_is_ignored():
    """As in what a script runs in the background."""
    ignored = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)"
    work = """
    print(os.getpid(), signal.getsignal(signal.SIGINT) == signal.SIG_IGN, flush=True)
    time.sleep(600)
    """
    with started(work, begin=ignored) as process:
        pid, ignores = process.stdout.readline().split()
        assert ignores == "True"
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGINT)
        process.terminate()
        assert process.wait(timeout=120) == 143
    assert_gone([int(pid)])


def state(pid):
    """One letter: T is stopped, S sleeps."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def assert_comes_to(look, wanted):
    """Wait for what somebody else does."""
    until = time.monotonic() + 30
    while look() != wanted and time.monotonic() < until:
        time.sleep(0.05)
    assert look() == wanted


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_is_passed_on_once_and_a_second_one_is_not_patient(number, code):
    work = f"""
    def count(number, frame):
        print("asked", flush=True)
    signal.signal({int(number)}, count)
    print(os.getpid(), flush=True)
    while True:
        time.sleep(0.1)
    """
    with started(work) as process:
        pid = int(process.stdout.readline())
        process.send_signal(number)
        assert process.stdout.readline() == "asked\n"
        assert is_running(pid)
        process.send_signal(number)
        assert process.wait(timeout=120) == code
    assert_gone([pid])


def test_all_that_it_started_ends_with_it_and_with_the_watcher():
    work = """
    child = subprocess.Popen(["sleep", "600"])
    print(os.getpid(), child.pid, flush=True)
    if len(sys.argv) == 1:
        time.sleep(600)
    """
    with started(work) as process:
        pids = [int(pid) for pid in process.stdout.readline().split()]
        process.kill()
    assert_gone(pids)
    with started(work.replace("time.sleep(600)", "sys.exit()")) as process:
        pids = [int(pid) for pid in process.stdout.readline().split()]
        assert process.wait(timeout=30) == 0
    assert_gone(pids)


STAND_IN = """
import os, signal, time

def quantize(job):
    print("at layer 1", flush=True)
    {what}
"""


def quantized_by_stand_in(what, folder, output):
    """`mvquant quantize` whose package is this code."""
    (folder / "stand_in.py").write_text(STAND_IN.format(what=what))
    recipe = folder / "gptq.yaml"
    recipe.write_text(
        "summary: GPTQ\nweights: {scheme: w4a16, method: {name: gptq, backend: gptqmodel}}\n"
        "calibration: {source: reference, sequences: 2, length: 64}\n"
    )
    code = "from mvquant.backends.folder.programs import PROGRAMS, Program; from mvquant.cli import main; "
    code += "PROGRAMS['gptqmodel'] = Program('stand_in'); main()"
    return subprocess.Popen(
        [sys.executable, "-c", code, "quantize", "reference", "--recipe", str(recipe), "-o", str(output)],
        env={**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{Path.cwd()}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
    )


@pytest.mark.parametrize(
    ("what", "message"),
    [
        (
            "os.kill(os.getpid(), signal.SIGKILL)",
            "the process at work was killed (SIGKILL); its last lines: at layer 1",
        ),
        ("raise MemoryError('no room')", "backend gptqmodel failed; its last lines: at layer 1"),
        ("os._exit(0)", "the process at work failed with exit code 0; its last lines: at layer 1"),
    ],
)
def test_a_package_that_crashes_leaves_nothing_but_its_last_lines(tmp_path, what, message):
    with quantized_by_stand_in(what, tmp_path, tmp_path / "models" / "out") as process:
        out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (1, "")
    said = " ".join(err.split())
    assert f" error: {message}" in said, err
    assert "no room" in said or "no room" not in what
    assert "Traceback" not in said.partition("error:")[0]
    assert list((tmp_path / "models").iterdir()) == []


def test_an_interrupt_in_a_package_leaves_nothing(tmp_path):
    with quantized_by_stand_in("time.sleep(600)", tmp_path, tmp_path / "models" / "out") as process:
        log = tmp_path / "models" / "out.work" / "package" / "package.log"
        until = time.monotonic() + 120
        while not (log.is_file() and "at layer 1" in log.read_text()) and time.monotonic() < until:
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "")
    assert "interrupted; nothing was left behind" in err
    assert list((tmp_path / "models").iterdir()) == []


def test_every_program_can_be_run_in_a_worker():
    for program in PROGRAMS.values():
        module = __import__(program.module, fromlist=["quantize"])
        assert callable(module.quantize)
