"""Programs that run in this process, and what is as before when they are done."""

import os
import subprocess
import sys
import textwrap
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from mvquant.backends.folder import here
from mvquant.backends.folder.here import run_here
from mvquant.backends.folder.programs import Program
from mvquant.errors import BackendError
from tests.backends.folder.jobs import write_job

MEDDLES = """
import logging, os, socket, subprocess, sys, torch

def quantize(job):
    print("to stdout"), print("to stderr", file=sys.stderr)
    os.write(1, b"from compiled code\\n" + os.read(0, 1))
    subprocess.run(["echo", "from a child"])
    logging.getLogger("a package").addHandler(logging.StreamHandler())
    print(os.environ["ANSWER"], os.environ["HF_HUB_OFFLINE"], os.getcwd())
    torch.set_num_threads(torch.get_num_threads() + 1)
    torch.set_default_dtype(torch.float16)
    torch.set_grad_enabled(False)
    os.environ["ANSWER"] = "43"
    return []
"""


@pytest.fixture(autouse=True)
def _logs_closed():
    yield
    while here._LOGS:
        with suppress(OSError):
            here._LOGS.pop().close()


@pytest.fixture
def stand_in(monkeypatch, tmp_path):
    """A program with this code."""

    def make(code):
        (tmp_path / "stand_in.py").write_text(textwrap.dedent(code))
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.delitem(sys.modules, "stand_in", raising=False)
        return Program("stand_in", environment={"ANSWER": "42"})

    return make


def test_what_it_changes_is_put_back_and_what_it_prints_is_in_its_log(stand_in, tmp_path, capfd):
    before = Path.cwd(), torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled(), dict(os.environ)
    log, job = tmp_path / "log", write_job(tmp_path / "work")
    run_here(stand_in(MEDDLES), [job], log, what="it")
    now = Path.cwd(), torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled(), dict(os.environ)
    assert now == before
    assert sorted(log.read_text().splitlines()) == sorted(
        ["to stdout", "to stderr", "from compiled code", "from a child", f"42 1 {job.parent}"]
    )
    subprocess.run(["echo", "ours again"], check=True)
    assert capfd.readouterr() == ("ours again\n", "")
    assert (job.parent / "records").read_text() == "[]"


def test_it_tells_of_its_progress(stand_in, tmp_path):
    program = stand_in("""
    from mvquant.backends.folder.child import say_progress
    def quantize(job):
        say_progress(job, "layers.1.mlp", 0.25)
        return []
    """)
    told = []
    run_here(program, [write_job(tmp_path)], tmp_path / "log", what="it", progress=lambda *said: told.append(said))
    assert told == [("layers.1 loss 0.25", 2, 2)]
    assert (tmp_path / "log").read_text() == ""


@pytest.mark.parametrize("how", ["raise MemoryError('no room for layer 1')", "import sys; sys.exit('no room')"])
def test_a_failure_says_the_last_lines(stand_in, tmp_path, how):
    program = stand_in(f"def quantize(job):\n    print('noise')\n    {how}")
    folder = Path.cwd()
    with pytest.raises(BackendError, match=r"(?s)it failed; its last lines:.*no room"):
        run_here(program, [write_job(tmp_path / "work")], tmp_path / "log", what="it")
    assert Path.cwd() == folder
    assert (tmp_path / "log").read_text().startswith("noise\nTraceback")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no full disk to offer")
def test_a_full_disk_under_its_log_is_an_os_error_and_the_streams_are_back(stand_in, tmp_path, capfd):
    with pytest.raises(OSError, match="No space left"):
        program = stand_in("def quantize(job): print('much')")
        run_here(program, [write_job(tmp_path)], Path("/dev/full"), what="it")
    subprocess.run(["echo", "ours again"], check=True)
    assert capfd.readouterr() == ("ours again\n", "")


def test_an_interrupt_is_none_of_its_failures(stand_in, tmp_path):
    program = stand_in("def quantize(job): raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        run_here(program, [write_job(tmp_path)], tmp_path / "log", what="it")


def test_what_it_logs_later_does_not_come_to_light(tmp_path):
    """Packages log when the process ends, too."""
    (tmp_path / "stand_in.py").write_text(MEDDLES)
    code = f"""
    import logging
    from pathlib import Path
    from mvquant.backends.child import end_process
    from mvquant.backends.folder.here import run_here
    from mvquant.backends.folder.programs import Program
    run_here(Program("stand_in", {{"ANSWER": ""}}), [Path({str(write_job(tmp_path))!r})], Path("log"), what="it")
    logging.getLogger("a package").warning("late")
    print("ours", end="")
    end_process(3)
    """
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{Path.cwd()}"}
    command = [sys.executable, "-c", textwrap.dedent(code)]
    ended = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout, "late" in ended.stderr) == (3, "ours", False)
    assert "late" in (tmp_path / "log").read_text()
