"""Programs that are started before there is work for them."""

import os
import subprocess
import sys
import textwrap
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from mvquant.backends.child import watch_child
from mvquant.backends.folder.backend import FolderBackend
from mvquant.backends.folder.job import Job
from mvquant.backends.folder.programs import PROGRAMS, Program, child_environment, started_early
from mvquant.backends.folder.run import FOLDER_BACKENDS, run_jobs
from mvquant.backends.registry import BACKENDS
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

    return use


def test_nothing_heavy_is_imported_to_start_one():
    code = (
        "import sys, mvquant.cli, mvquant.backends.folder.programs; print({'torch', 'transformers'} & {*sys.modules})"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"


def test_every_backend_of_this_environment_that_takes_folders_has_one():
    assert set(PROGRAMS) == {name for name in FOLDER_BACKENDS if BACKENDS[name].place == "here"}
    for name, program in PROGRAMS.items():
        assert FOLDER_BACKENDS[name].command(Path("a")) == [sys.executable, "-m", program.module, "a"]
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
    monkeypatch.setattr("mvquant.backends.environments.version", _missing)
    with started_early("gptqmodel") as waiting:
        assert waiting is None


def _missing(name):
    raise PackageNotFoundError(name)


def test_a_program_does_jobs_that_come_by_standard_input_each_in_its_folder(tmp_path):
    files = []
    for name in ("one", "two"):
        folder = tmp_path / name
        folder.mkdir()
        parts = {part: folder / part for part in ("source", "tokens", "out", "seen", "records")}
        job = Job(**parts, dtype="bfloat16", method=Gptq(), scheme=WeightScheme(bits=4))
        (folder / "job.json").write_text(job.model_dump_json())
        files.append(folder / "job.json")
    code = """
    import os, sys
    from mvquant.backends.folder.child import run_child
    def quantize(job):
        assert "colorsys" in sys.modules
        print(os.getcwd() == str(job.out.parent))
        return []
    run_child(quantize, "colorsys")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        input="".join(f"{file}\n" for file in files),
        env={**os.environ, **child_environment()},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["True", "True"]
    assert all((tmp_path / name / "records").read_text() == "[]" for name in ("one", "two"))
