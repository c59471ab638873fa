"""`mvquant quantize` with a package for whole models: in a child or a worker, and not asked twice for the same."""

import os
import subprocess
import sys

import pytest
import torch

from mvquant import quantizing
from mvquant.errors import BackendError, CheckpointError


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "gptq.yaml"
    path.write_text(
        "summary: GPTQ\nweights: {scheme: w4a16, method: {name: gptq, backend: gptqmodel}}\n"
        "calibration: {source: reference, sequences: 2, length: 64}\n"
    )
    return path


def test_what_a_package_has_done_is_taken_up_and_is_the_same_in_a_worker(mvquant, recipe, tmp_path, monkeypatch):
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

    # this process has torch in it, so that the package ran in a child; the real command is a worker itself
    command = [sys.executable, "-m", "mvquant", "quantize", "reference", "-r", "gptq.yaml", "-o", "again"]
    as_here = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}  # more would add up otherwise
    real = subprocess.run(command, cwd=tmp_path, env=as_here, capture_output=True, text=True, check=True)
    assert "bits per weight" in real.stdout
    assert [line for line in real.stderr.splitlines() if line.startswith("wrote again in ")]
    assert "INFO" not in real.stderr
    files = {path.name for path in out.iterdir()}
    assert files == {path.name for path in (tmp_path / "again").iterdir()}
    for name in files - {"quantization_log.jsonl"}:  # which has the seconds
        assert (out / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name


def test_what_a_package_made_and_nobody_can_use_is_not_offered_again(mvquant, recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(quantizing, "write_checkpoint", _not_quantized)
    code, _, err = mvquant("quantize", "reference", "--recipe", recipe, "-o", tmp_path / "out")
    assert (code, "has not quantized it" in err) == (1, True), err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gptq.yaml"]


def _not_quantized(*_args, **_settings):
    raise BackendError("model.layers.0.mlp.up_proj: the package has not quantized it")


def _no_disk(*_args, **_settings):
    raise CheckpointError("no space left on device")
