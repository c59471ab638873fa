"""`torchrun ... -m mvquant quantize`, as the help has it: two processes share the text and write what one writes."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "mvquant")


@pytest.mark.skipif(importlib.util.find_spec("llmcompressor") is None, reason="llmcompressor is not installed")
def test_two_processes_write_the_bytes_of_one(mvquant, tmp_path):
    recipe = tmp_path / "gptq.yaml"
    recipe.write_text(
        "summary: GPTQ\nweights: {scheme: w4a16, method: {name: gptq, backend: llmcompressor}}\n"
        "calibration: {source: reference, sequences: 2, length: 64}\n"
    )
    quantize = ("quantize", "reference", "--recipe", str(recipe), "-o")
    shared = subprocess.run(
        [sys.executable, "-m", *TORCHRUN, *quantize, str(tmp_path / "two")],
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"},
    )
    assert shared.returncode == 0, shared.stderr
    assert shared.stdout.count("bits per weight") == 1  # the second process says nothing
    assert "".join(shared.stderr.split()).count(f"wrote{tmp_path / 'two'}in") == 1  # however the line is wrapped
    assert '"processes": 2' in (tmp_path / "two" / "quantization_log.jsonl").read_text()
    code, _, err = mvquant(*quantize, tmp_path / "one")
    assert code == 0, err
    one, two = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two"))
    assert one == two
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gptq.yaml", "one", "two"]
