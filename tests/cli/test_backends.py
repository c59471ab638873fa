"""`mvquant backends`: what it lists, and what it installs and removes."""

import importlib
import json

import pytest

from mvquant.backends import environments, registry
from mvquant.backends.environments import LEGACY, PINS, environment_folder
from mvquant.backends.registry import BACKENDS
from mvquant.errors import BackendError

command = importlib.import_module("mvquant.cli.backends")  # the package's attribute of that name is the command


@pytest.fixture
def nothing_installed(monkeypatch, tmp_path):
    monkeypatch.setenv("MVQUANT_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(registry, "packages_here", lambda names: {})


@pytest.fixture
def home(monkeypatch, tmp_path):
    monkeypatch.setenv("MVQUANT_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def quick(home, monkeypatch):
    """Make environments in no time."""
    made = []

    def create(name, folder, report, index=None):
        report("pip at work")
        made.append((name, index))
        (folder / PINS).write_text(LEGACY[name].pins.read_text())

    monkeypatch.setattr(command, "create_environment", create)
    return made


def test_backends_are_listed_with_commands_for_those_that_are_missing(mvquant, nothing_installed):
    code, out, _ = mvquant("backends")
    assert code == 0
    lines = out.splitlines()
    assert max(map(len, lines)) <= 80
    for name, backend in BACKENDS.items():
        assert any(line.startswith(name) for line in lines)
        assert all(ability.summary in out for ability in backend.abilities)
        if backend.packages:
            assert f"  {backend.install}" in lines


def test_versions_are_listed_and_untested_ones_are_said_to_be(mvquant, home, monkeypatch):
    installed = {"llmcompressor": "0.14.0.1", "compressed-tensors": "9.9"}
    monkeypatch.setattr(registry, "packages_here", lambda names: {n: installed[n] for n in names if n in installed})
    _, out, _ = mvquant("backends")
    assert "llmcompressor  0.14.0.1  gptq" in out
    assert "tested with compressed-tensors 0.19.0; compressed-tensors 9.9 is installed" in " ".join(out.split())
    assert BACKENDS["llmcompressor"].install not in out


def test_json_has_everything(mvquant, nothing_installed):
    _, out, _ = mvquant("backends", "--json")
    facts = json.loads(out)
    assert set(facts) == set(BACKENDS)
    assert facts["gptqmodel"]["missing"] == ["gptqmodel", "optimum"]
    assert facts["gptqmodel"]["install"] == 'pip install "mvquant[gptq]"'
    assert facts["autoawq"]["methods"] == {"awq": {"bits": [4], "grids": ["asymmetric"], "w8a8": False}}
    assert facts["auto-gptq"]["folder"] == str(environment_folder("auto-gptq"))
    assert facts["mvquant"]["ready"]


def test_an_environment_is_made_once_and_its_folder_is_said(mvquant, quick):
    code, out, err = mvquant("backends", "install", "auto-gptq", "--index", "https://example.org/cpu")
    assert code == 0
    assert str(environment_folder("auto-gptq")) in out
    assert "1.5 GB" in err
    code, out, _ = mvquant("backends", "install", "auto-gptq")
    assert (code, "is installed in" in out) == (0, True)
    assert quick == [("auto-gptq", "https://example.org/cpu")]


def test_an_environment_of_older_pins_is_made_anew(mvquant, quick):
    folder = environment_folder("auto-gptq")
    folder.mkdir(parents=True)
    (folder / PINS).write_text("auto-gptq==0.6.0\n")
    (folder / "old").touch()
    assert mvquant("backends", "install", "auto-gptq")[0] == 0
    assert not (folder / "old").exists()


def test_an_install_that_fails_leaves_nothing(mvquant, home, monkeypatch):
    def fail(command, log, **rest):
        raise BackendError("pip failed with exit code 1; its last lines:\n  no such torch")

    monkeypatch.setattr(environments, "run_logged", fail)
    monkeypatch.setattr(environments, "interpreter", lambda wanted: "python")
    code, _, err = mvquant("backends", "install", "auto-gptq")
    assert (code, "no such torch" in err) == (1, True)
    assert not list((home / "environments").iterdir())


def test_an_interrupted_install_leaves_nothing(mvquant, home, monkeypatch):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "create_environment", interrupt)
    code, _, err = mvquant("backends", "install", "auto-gptq")
    assert (code, "nothing was left behind" in err) == (130, True)
    assert not list((home / "environments").iterdir())


def test_what_lives_here_is_installed_by_pip(mvquant, home):
    code, _, err = mvquant("backends", "install", "gptqmodel")
    assert code == 2
    assert 'pip install "mvquant[gptq]"' in " ".join(err.split())


def test_names_are_checked(mvquant, home):
    code, _, err = mvquant("backends", "install", "autogptq")
    assert (code, "did you mean 'auto-gptq'?" in err) == (2, True)


def test_an_environment_can_be_removed(mvquant, quick):
    mvquant("backends", "install", "auto-gptq")
    code, out, _ = mvquant("backends", "remove", "auto-gptq")
    assert (code, out.startswith("removed")) == (0, True)
    assert not environment_folder("auto-gptq").exists()
    assert "there is nothing in" in mvquant("backends", "remove", "auto-gptq")[1]
    assert mvquant("backends", "remove", "llmcompressor")[0] == 2
