"""Environments of archived packages: where they lie, when they count, and what unfinished ones leave."""

import os
import sys
import time
from importlib.metadata import version

import pytest

from mvquant.backends import environments
from mvquant.backends.environments import (
    LEGACY,
    PINS,
    create_environment,
    environment_folder,
    environment_packages,
    interpreter,
    is_current,
    own_torch,
    remove_environment,
    remove_leftovers,
)
from mvquant.backends.registry import BACKENDS
from mvquant.errors import BackendError


@pytest.fixture
def home(monkeypatch, tmp_path):
    monkeypatch.setenv("MVQUANT_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def make(folder, pins=None, **packages):
    """Something that looks like an environment."""
    site = folder / "lib" / "python3.11" / "site-packages"
    for name, number in packages.items():
        (site / f"{name}-{number}.dist-info").mkdir(parents=True)
        (site / f"{name}-{number}.dist-info" / "METADATA").write_text(f"Name: {name}\nVersion: {number}\n")
    (folder / PINS).write_text(LEGACY["auto-gptq"].pins.read_text() if pins is None else pins)


def test_every_legacy_backend_has_an_environment_with_the_tested_versions():
    assert {name for name, backend in BACKENDS.items() if backend.place == "legacy"} == set(LEGACY)
    for name, legacy in LEGACY.items():
        pins = legacy.pins.read_text().splitlines()
        for package, tested in BACKENDS[name].packages.items():
            assert f"{package}=={tested[0]}" in pins


def test_the_folder_is_in_the_cache_and_can_be_moved(monkeypatch, tmp_path):
    monkeypatch.delenv("MVQUANT_HOME", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert environment_folder("auto-gptq") == tmp_path / "cache" / "mvquant" / "environments" / "auto-gptq"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert environment_folder("auto-gptq") == tmp_path / ".cache" / "mvquant" / "environments" / "auto-gptq"
    monkeypatch.setenv("MVQUANT_HOME", str(tmp_path / "home"))
    assert environment_folder("auto-gptq") == tmp_path / "home" / "environments" / "auto-gptq"


def test_versions_are_read_from_a_complete_environment(home):
    assert environment_packages("auto-gptq") == {}
    make(environment_folder("auto-gptq"), auto_gptq="0.7.1", transformers="4.53.3", something="1")
    assert environment_packages("auto-gptq") == {"auto-gptq": "0.7.1", "transformers": "4.53.3"}


def test_an_environment_of_other_pins_does_not_count(home):
    make(environment_folder("auto-gptq"), pins="auto-gptq==0.6.0\n", auto_gptq="0.6.0")
    assert not is_current("auto-gptq")
    assert environment_packages("auto-gptq") == {}


def test_the_build_of_torch_is_the_one_that_runs_here():
    build = version("torch").partition("+")[2]
    wanted = f"torch==2.13.0+{build}" if build else "torch==2.13.0"
    assert own_torch("# pins\ntorch==2.13.0\ntorchvision==1\n").splitlines() == ["# pins", wanted, "torchvision==1"]


def test_an_interpreter_is_this_one_or_on_the_path(monkeypatch, tmp_path):
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    assert str(interpreter(here)) == sys.executable
    (tmp_path / "python3.5").write_text("#!/bin/sh\n")
    (tmp_path / "python3.5").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert interpreter("3.5") == tmp_path / "python3.5"
    with pytest.raises(BackendError, match=r"needs Python 3\.6, and there is no python3\.6 on the path"):
        interpreter("3.6")


def test_making_one_runs_venv_pip_and_a_trial_in_order(home, monkeypatch, tmp_path):
    commands = []
    monkeypatch.setattr(environments, "run_logged", lambda command, log, **rest: commands.append([*map(str, command)]))
    monkeypatch.setattr(environments, "interpreter", lambda wanted: f"python{wanted}")
    create_environment("auto-gptq", tmp_path, report=lambda line: None, index="https://example.org/cpu")
    own = str(tmp_path / "bin" / "python")
    assert commands[0] == ["python3.11", "-I", "-m", "venv", str(tmp_path)]
    assert commands[1][:3] == [own, "-I", "-m"]
    assert commands[1][-4:] == ["--extra-index-url", "https://example.org/cpu", "-r", str(tmp_path / "asked-for.txt")]
    assert commands[2] == [own, "-I", "-c", "import auto_gptq"]
    assert (tmp_path / PINS).read_bytes() == LEGACY["auto-gptq"].pins.read_bytes()


def test_an_environment_that_pip_could_not_fill_never_counts(home, monkeypatch, tmp_path):
    def no_pip(command, log, **rest):
        if "pip" in command:
            raise BackendError("pip failed with exit code 1")

    monkeypatch.setattr(environments, "run_logged", no_pip)
    monkeypatch.setattr(environments, "interpreter", lambda wanted: f"python{wanted}")
    with pytest.raises(BackendError, match="pip failed"):
        create_environment("auto-gptq", tmp_path, report=lambda line: None)
    assert not (tmp_path / PINS).exists()


def test_an_environment_can_be_removed(home):
    make(environment_folder("auto-gptq"), auto_gptq="0.7.1")
    assert remove_environment("auto-gptq")
    assert not environment_folder("auto-gptq").exists()
    assert not remove_environment("auto-gptq")


def test_only_old_leftovers_are_taken_for_dead(home):
    folder = environment_folder("auto-gptq").parent
    for name, age in (("old", 2 * 24 * 3600), ("new", 60)):
        (folder / f".auto-gptq.partial-{name}").mkdir(parents=True)
        os.utime(folder / f".auto-gptq.partial-{name}", (time.time() - age,) * 2)
    remove_leftovers("auto-gptq")
    assert [path.name for path in folder.iterdir()] == [".auto-gptq.partial-new"]
    remove_leftovers("auto-gptq", older_than=0.0)
    assert not list(folder.iterdir())
