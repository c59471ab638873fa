"""The programs of packages."""

import subprocess
import sys
from pathlib import Path

from mvquant.backends.folder.programs import PROGRAMS, Program, child_environment
from mvquant.backends.folder.run import FOLDER_BACKENDS
from mvquant.backends.registry import BACKENDS


def test_nothing_heavy_is_imported_to_know_them():
    code = (
        "import sys, mvquant.cli, mvquant.backends.folder.programs; print({'torch', 'transformers'} & {*sys.modules})"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"


def test_every_backend_of_this_environment_that_takes_folders_has_one():
    assert set(PROGRAMS) == {name for name in FOLDER_BACKENDS if BACKENDS[name].place == "here"}
    for name, program in PROGRAMS.items():
        assert FOLDER_BACKENDS[name].command(Path("a")) == [sys.executable, "-P", "-m", program.module, "a"]
        assert FOLDER_BACKENDS[name].environment == program.environment


def test_modules_in_the_folder_that_it_starts_in_are_not_its_own(tmp_path, monkeypatch):
    (tmp_path / "stand_in.py").write_text("import random; print('its own')")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "random.py").write_text("raise RuntimeError('code of the model')")
    monkeypatch.chdir(tmp_path / "model")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    environment = {"PATH": "", **child_environment(1)}
    assert subprocess.check_output(Program("stand_in").command(), env=environment, text=True) == "its own\n"
