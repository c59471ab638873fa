"""Programs that are started before there is work for them."""

import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest

from mvquant.backends import registry
from mvquant.backends.child import watch_child
from mvquant.backends.folder.backend import FolderBackend
from mvquant.backends.folder.job import Job
from mvquant.backends.folder.programs import PROGRAMS, Program, child_environment, started_early
from mvquant.backends.folder.run import FOLDER_BACKENDS, run_jobs
from mvquant.backends.registry import BACKENDS, state
from mvquant.errors import BackendError
from mvquant.method_settings import Gptq
from mvquant.scheme import WeightScheme
from tests.backends.test_child import assert_gone, is_running

WAITS = "import sys; print('ready', flush=True); [print('job', line.rstrip(), flush=True) for line in sys.stdin]"


@pytest.fixture
def stand_in(monkeypatch, tmp_path):
    """Have a module with this code be gptqmodel's program."""

    def use(code):
        (tmp_path / "stand_in.py").write_text(code)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        monkeypatch.setitem(PROGRAMS, "gptqmodel", Program("stand_in"))
        monkeypatch.setattr(registry, "state", lambda name: replace(state(name), missing=()))

    return use


def test_nothing_heavy_is_imported_to_start_one():
    code = (
        "import sys, mvquant.cli, mvquant.backends.folder.programs; print({'torch', 'transformers'} & {*sys.modules})"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"


def test_every_backend_of_this_environment_that_takes_folders_has_one():
    assert set(PROGRAMS) == {name for name in FOLDER_BACKENDS if BACKENDS[name].place == "here"}
    for name, program in PROGRAMS.items():
        assert FOLDER_BACKENDS[name].command(Path("a")) == [sys.executable, "-P", "-m", program.module, "a"]
        assert FOLDER_BACKENDS[name].environment == program.environment


def test_it_gets_its_jobs_later_and_ends_with_them(stand_in, tmp_path):
    stand_in(WAITS)
    lines = []
    with started_early("gptqmodel") as waiting:
        waiting.give([tmp_path / "one.json", tmp_path / "two.json"])
        watch_child(waiting.process, tmp_path / "log", what="it", report=lines.append)
    assert lines == ["ready", f"job {tmp_path / 'one.json'}", f"job {tmp_path / 'two.json'}"]
    assert (tmp_path / "log").read_text().splitlines() == lines


def test_run_jobs_takes_the_one_that_waits_for_its_own_backend_only(stand_in, tmp_path):
    stand_in(WAITS)

    def backend(name):
        return FolderBackend(
            name, frozenset(), command=lambda *_: [sys.executable, "-c", "print('new')"], mistakes=list
        )

    with started_early("gptqmodel") as waiting:
        run_jobs(backend("autoawq"), [tmp_path / "job"], tmp_path / "log", waiting=waiting)
        assert is_running(waiting.process.pid)
        run_jobs(backend("gptqmodel"), [tmp_path / "job"], tmp_path / "log", waiting=waiting)
    assert (tmp_path / "log").read_text().splitlines() == ["new", "ready", f"job {tmp_path / 'job'}"]


def test_one_without_work_ends_with_the_block(stand_in):
    stand_in("import time; time.sleep(600)")
    with pytest.raises(RuntimeError, match="no work"), started_early("gptqmodel") as waiting:
        assert is_running(waiting.process.pid)
        raise RuntimeError("no work")
    assert_gone([waiting.process.pid])


def test_one_that_died_is_told_of_when_there_is_work(stand_in, tmp_path):
    stand_in("raise ImportError('a package is broken')")
    with started_early("gptqmodel") as waiting:
        waiting.process.wait()
        with pytest.raises(BackendError, match=r"(?s)it failed with exit code 1.*a package is broken"):
            waiting.give([tmp_path / "job.json"])
            watch_child(waiting.process, tmp_path / "log", what="it")


@pytest.mark.parametrize("name", ["llmcompressor", "auto-gptq", "mvquant"])
def test_other_backends_have_none(name):
    with started_early(name) as waiting:
        assert waiting is None


def test_what_is_not_installed_is_not_started(stand_in, monkeypatch):
    stand_in(WAITS)
    monkeypatch.setattr(registry, "state", lambda name: replace(state(name), missing=("gptqmodel",)))
    with started_early("gptqmodel") as waiting:
        assert waiting is None


def test_modules_in_the_folder_that_it_starts_in_are_not_its_own(stand_in, tmp_path, monkeypatch):
    stand_in("import random; print('its own', flush=True)")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "random.py").write_text("raise RuntimeError('code of the model')")
    monkeypatch.chdir(tmp_path / "model")
    with started_early("gptqmodel") as waiting:
        watch_child(waiting.process, tmp_path / "log", what="it")
    assert (tmp_path / "log").read_text() == "its own\n"


def test_work_is_given_once_and_then_to_a_new_one(stand_in, tmp_path):
    stand_in(WAITS)
    new = replace(FOLDER_BACKENDS["gptqmodel"], command=lambda *_: [sys.executable, "-c", "print('new')"])
    with started_early("gptqmodel") as waiting:
        for _ in range(2):
            run_jobs(new, [tmp_path / "job"], tmp_path / "log", waiting=waiting)
    assert (tmp_path / "log").read_text().splitlines() == ["ready", f"job {tmp_path / 'job'}", "new"]


def test_a_termination_signal_before_there_is_work_ends_it(stand_in, tmp_path):
    stand_in("import time; time.sleep(600)")
    code = """
    import time
    from mvquant.backends.folder.programs import PROGRAMS, Program, registry, started_early
    PROGRAMS["gptqmodel"] = Program("stand_in")
    registry.state = lambda _name: type("", (), {"missing": ()})
    with started_early("gptqmodel") as waiting:
        print(waiting.process.pid, flush=True)
        time.sleep(600)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        pid = int(parent.stdout.readline())
        assert is_running(pid)
        parent.send_signal(signal.SIGTERM)
        assert parent.wait(timeout=30) == 128 + signal.SIGTERM
    assert_gone([pid])


def test_a_program_does_jobs_that_come_by_standard_input_each_in_its_folder(tmp_path):
    files = []
    for name in ("one", "zw\u00f6lf"):
        folder = tmp_path / name
        folder.mkdir()
        parts = {part: folder / part for part in ("source", "tokens", "out", "seen", "records")}
        job = Job(**parts, dtype="bfloat16", method=Gptq(), scheme=WeightScheme(bits=4))
        (folder / "job.json").write_text(job.model_dump_json())
        files.append(folder / "job.json")
    (tmp_path / "package.py").write_text("import sys; print('imported', sys.stdin.read() == '', flush=True)")
    code = """
    import os
    from mvquant.backends.folder.child import run_child
    def quantize(job):
        print(os.getcwd() == str(job.out.parent), flush=True)
        return []
    run_child(quantize, "package")
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, **child_environment(), "PYTHONPATH": f"{tmp_path}{os.pathsep}{Path.cwd()}"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout.readline() == "imported True\n"  # before there is a job, of which it sees nothing
        process.stdin.write("".join(f"{file}\n" for file in files))
        process.stdin.close()
        assert process.stdout.read().split() == ["True", "True"]
    assert all((tmp_path / name / "records").read_text() == "[]" for name in ("one", "zw\u00f6lf"))
