"""`mvquant quantize` with a package for whole models: started early, and not asked again for what it has done."""

import sys
from dataclasses import replace

import pytest

from mvquant import quantizing
from mvquant.backends.folder.run import FOLDER_BACKENDS
from mvquant.errors import BackendError, CheckpointError


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "gptq.yaml"
    path.write_text(
        "summary: GPTQ\nweights: {scheme: w4a16, method: {name: gptq, backend: gptqmodel}}\n"
        "calibration: {source: reference, sequences: 2, length: 64}\n"
    )
    return path


def test_a_package_is_started_early_and_what_it_has_done_is_taken_up(mvquant, recipe, tmp_path, monkeypatch):
    # a second process could not do the work: only the one that was started before can
    failing = replace(FOLDER_BACKENDS["gptqmodel"], command=lambda *_jobs: [sys.executable, "-c", "exit(3)"])
    monkeypatch.setitem(FOLDER_BACKENDS, "gptqmodel", failing)
    out, records = tmp_path / "out", tmp_path / "out.work" / "package" / "records.json"
    quantize = ("quantize", "reference", "--recipe", recipe, "-o", out)
    with monkeypatch.context() as full:
        full.setattr(quantizing, "write_checkpoint", _no_disk)
        code, _, err = mvquant(*quantize)
    assert (code, "no space left" in err) == (1, True), err
    code, _, err = mvquant(*quantize)
    assert code == 2
    assert "all layers done, and not written" in " ".join(err.split())

    # from here on nothing is computed, so neither memory nor a process is needed
    monkeypatch.setattr("mvquant.preflight.available_room", None)
    monkeypatch.setattr("mvquant.backends.folder.run.run_jobs", None)
    said = records.read_text()
    records.write_text(said[:-10])
    code, _, err = mvquant(*quantize, "--resume")
    assert code == 1
    assert "what gptqmodel made cannot be read" in " ".join(err.split())
    assert "to start again" in " ".join(err.split())
    records.write_text(said)
    code, printed, err = mvquant(*quantize, "--resume")
    assert code == 0, err
    assert "gptqmodel has done its part" in err
    assert "bits per weight" in printed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gptq.yaml", "out"]


def test_what_a_package_made_and_nobody_can_use_is_not_offered_again(mvquant, recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(quantizing, "write_checkpoint", _not_quantized)
    code, _, err = mvquant("quantize", "reference", "--recipe", recipe, "-o", tmp_path / "out")
    assert (code, "has not quantized it" in err) == (1, True), err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gptq.yaml"]


def _not_quantized(*_args, **_settings):
    raise BackendError("model.layers.0.mlp.up_proj: the package has not quantized it")


def _no_disk(*_args, **_settings):
    raise CheckpointError("no space left on device")
