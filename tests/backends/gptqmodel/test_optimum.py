import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from mvquant.backends.folder.job import save_tokens
from mvquant.backends.folder.programs import child_environment
from mvquant.backends.folder.results import FolderResults, PackedFolder
from mvquant.backends.folder.source import SourceWeights
from mvquant.methods import apply_plan
from tests.backends.folder.packages import calibration_tokens, plan_of, save_model
from tests.tiny_models import tiny_tokens

ROUTE = Path(__file__).parent / "optimum_route.py"


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """A model in float16, which is what optimum stores scales in, and the folders that the packages made of it."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base) / "optimum"
    with FileLock(f"{folder}.lock"):
        model = save_model(folder / "model", torch.float16)
        if not (folder / "by optimum").exists():
            save_tokens(calibration_tokens(), folder / "tokens.safetensors")
            save_file({"tokens": tiny_tokens()}, folder / "asked.safetensors")
            run_route(folder)
    return model


def run_route(folder):
    environment = {**os.environ, **child_environment(1), "GPTQMODEL_DISABLE_PACK_EXT": "1", "TORCHDYNAMO_DISABLE": "1"}
    done = subprocess.run([sys.executable, ROUTE, folder], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize(("who", "scheme"), [("transformers", "w4a16-g64-asym"), ("optimum", "w4a16-g64")])
def test_folders_of_others_give_the_logits_that_they_give(opened, who, scheme):
    plan = plan_of(opened, f"scheme: {scheme}, method: {{name: gptq, backend: gptqmodel}}")
    folder = opened.checkpoint.folder.parent
    weights = SourceWeights(opened.checkpoint, opened.view, plan)
    results = FolderResults(folder / f"by {who}", weights, opened.view, plan)
    model = apply_plan(AutoModelForCausalLM.from_pretrained(opened.checkpoint.folder), plan, results)
    with torch.no_grad():
        ours = model(tiny_tokens()).logits.float()
    theirs = load_file(folder / "theirs.safetensors")[f"by {who}"].float()
    assert (ours - theirs).norm() < 0.005 * theirs.norm()  # sums in another order, in float16


def test_optimums_label_is_wrong(opened):
    """It stores 8, the middle of 4 bits, less one, and calls that `gptq_v2`, where 8 is stored as 8."""
    folder = opened.checkpoint.folder.parent / "by optimum"
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    stored = PackedFolder(folder).module("model.layers.0.self_attn.q_proj")["qzeros"]
    assert config["format"] == "gptq_v2"
    assert bool((stored == 0x77777777).all())
