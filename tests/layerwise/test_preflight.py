"""What is predicted is near what is taken, and what cannot fit is refused with the numbers."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mvquant.errors import UsageError
from mvquant.layerwise import (
    Needs,
    available_disk,
    available_memory,
    operations_per_second,
    predict,
    require_room,
)
from tests.layerwise.examples import planned, saved

SIZES = {
    "small": {},
    "large": {"hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8, "num_key_value_heads": 8},
}

MEASURED = """
import sys
from pathlib import Path
from tests.layerwise.examples import *
from mvquant.backends.rtn import RoundToNearest
from mvquant.layerwise import LayerModel, opened_work, quantize_layers

def resident(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024

for name in ("small", "large"):  # what is loaded when it is first used is no part of the work
    folder = Path(sys.argv[1]) / name
    checkpoint = open_checkpoint(str(folder))
    view = model_view(checkpoint.config)
    plan, model = planned(view), LayerModel(checkpoint, view)
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    with opened_work(folder / "work", fingerprint()) as work:
        quantize_layers(model, plan, batches(), RoundToNearest(), work)
print(resident("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the system does not tell the peak")
def test_the_predicted_peak_is_near_the_measured_one(tmp_path):
    worlds = {
        name: saved("llama", tmp_path / name, num_hidden_layers=6, head_dim=64, **size) for name, size in SIZES.items()
    }
    # memory that is freed goes back to the system, so that it is not taken for free
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd()), "MALLOC_MMAP_THRESHOLD_": "65536"}
    command = [sys.executable, "-c", MEASURED, str(tmp_path)]
    taken = int(subprocess.run(command, check=True, capture_output=True, env=environment).stdout)
    plan = planned(worlds["large"].view)
    needs = predict(plan, worlds["large"].view, [24, 16, 24], limit=1 << 30)
    assert needs.memory / 2 < taken < 1.25 * needs.memory
    assert taken < plan.bytes_before / 2  # of the whole model's weights


def needs_of(world, *, lengths=(512,) * 8, limit=1 << 30, method="gptq", **options):
    plan = planned(world.view)
    weights = plan.recipe.weights.model_validate({"scheme": plan.recipe.weights.scheme, "method": method})
    recipe = plan.recipe.model_copy(update={"weights": weights})
    return predict(plan.model_copy(update={"recipe": recipe}), world.view, list(lengths), limit, **options)


def test_more_of_anything_needs_more(tmp_path):
    world = saved("llama", tmp_path)
    plain = needs_of(world)
    assert plain.states == 8 * 512 * 64 * 4
    assert needs_of(world, limit=1000).states == 1000
    assert needs_of(world, processes=2).states == plain.states // 2
    assert needs_of(world, lengths=(512,) * 16).operations > plain.operations
    assert needs_of(world, method="rtn").layer < plain.layer
    assert needs_of(world, whole=True).layer > plain.layer + planned(world.view).bytes_before - 1
    assert needs_of(world).disk > 2 * plain.states


@pytest.mark.parametrize("family", ["mixtral", "gpt2", "gpt_neox", "gemma2"])
def test_every_family_has_needs(family, tmp_path):
    needs = needs_of(saved(family, tmp_path))
    assert 0 < needs.layer < needs.memory
    assert needs.operations > 0


def test_what_cannot_fit_is_refused_with_the_numbers():
    needs = Needs(memory=3 * 10**9, layer=2 * 10**9, states=10**9, disk=5 * 10**9, operations=1e12)
    require_room(needs, available=3 * 10**9, disk=5 * 10**9)
    with pytest.raises(UsageError, match=r"3\.0 GB of memory.* 2\.0 GB are free.*--states-memory"):
        require_room(needs, available=2 * 10**9, disk=5 * 10**9)
    with pytest.raises(UsageError, match=r"5\.0 GB of disk.* 4\.0 GB are free"):
        require_room(needs, available=3 * 10**9, disk=4 * 10**9)


def test_the_machine_says_what_it_has(tmp_path):
    cpu = torch.device("cpu")
    assert available_memory(cpu) > 0
    assert available_disk(tmp_path / "not" / "there") > 0
    assert operations_per_second(cpu, torch.float32) > 0
