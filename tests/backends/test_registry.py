"""The table of backends against the recipes' settings, and against what is installed."""

import json
import subprocess
import sys
from typing import get_args

import pytest

from mvquant.backends import registry
from mvquant.backends.registry import BACKENDS, require, state, versions
from mvquant.errors import BackendError
from mvquant.method_settings import METHOD_SETTINGS, BackendName, MethodName
from mvquant.recipe import impossible
from mvquant.scheme import SCHEME_NAMES, WeightScheme

QUANTIZED = [WeightScheme.model_validate(name) for name in SCHEME_NAMES if name != "bf16"]


def settings_backends(method):
    return get_args(METHOD_SETTINGS[method].model_fields["backend"].annotation)


@pytest.fixture
def installed(monkeypatch):
    """Say what is installed."""

    def say(**found):
        there = {name.replace("_", "-"): version for name, version in found.items()}
        monkeypatch.setattr(registry, "packages_here", lambda names: {n: there[n] for n in names if n in there})

    return say


def test_the_table_has_the_backends_that_recipes_can_name():
    assert set(BACKENDS) == set(get_args(BackendName))
    for method in get_args(MethodName):
        able = {name for name, backend in BACKENDS.items() if any(a.method == method for a in backend.abilities)}
        assert able == set(settings_backends(method))


@pytest.mark.parametrize("method", get_args(MethodName))
def test_recipes_refuse_exactly_what_the_table_does_not_have(method):
    for name in settings_backends(method):
        settings = METHOD_SETTINGS[method](backend=name)
        for scheme in QUANTIZED:
            assert BACKENDS[name].can(method, scheme) == (impossible(scheme, settings) is None), (name, scheme.name)


def test_every_package_has_a_tested_version():
    assert all(tested for backend in BACKENDS.values() for tested in backend.packages.values())


def test_a_missing_package_is_named_with_the_command_that_installs_it(installed):
    installed(optimum="2.3.0")
    assert state("gptqmodel").missing == ("gptqmodel",)
    with pytest.raises(BackendError, match=r'needs gptqmodel, which is not .*: pip install "mvquant\[gptq\]"'):
        require("gptqmodel")
    assert versions("gptqmodel") == {"optimum": "2.3.0"}


def test_a_missing_environment_is_named_with_the_command_that_makes_it(monkeypatch, tmp_path):
    monkeypatch.setenv("MVQUANT_HOME", str(tmp_path))
    with pytest.raises(BackendError, match="environment of its own; to install: mvquant backends install auto-gptq"):
        require("auto-gptq")


def test_an_untested_version_is_warned_of_once_and_recorded(installed, caplog):
    installed(auto_round="9.9.9")
    assert require("auto-round") == {"auto-round": "9.9.9"}
    assert state("auto-round").untested == {"auto-round": "9.9.9"}
    require("auto-round")
    assert [record.getMessage() for record in caplog.records] == [
        "auto-round: tested with auto-round 0.15.1; auto-round 9.9.9 is installed, and may differ"
    ]


def test_a_build_of_a_tested_version_is_tested(installed, caplog):
    installed(auto_round="0.15.1+cpu")
    require("auto-round")
    assert not caplog.records


def test_asking_imports_no_backend():
    script = (
        "import sys, json; from mvquant.backends.registry import BACKENDS, state; "
        "[state(name) for name in BACKENDS]; print(json.dumps(sorted(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    heavy = {"torch", "transformers", "llmcompressor", "gptqmodel", "optimum", "auto_round", "awq"}
    assert not heavy & set(json.loads(run.stdout))
