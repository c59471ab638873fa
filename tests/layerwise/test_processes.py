"""Two processes on the same sequences make what one makes: sums, statistics and integers."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mvquant.errors import UsageError
from mvquant.layerwise import (
    ALONE,
    LayerModel,
    layerwise_stats,
    opened_work,
    own_device,
    quantize_layers,
    usable_device,
)
from mvquant.layerwise.processes import share
from mvquant.stats import load_stats
from tests.layerwise.examples import StoppedError, SumsInputs, batches, fingerprint, gptq, planned, saved
from tests.layerwise.test_measure import assert_equal_stats

SHARED = """
import sys
from pathlib import Path
from tests.layerwise.examples import *
from mvquant.layerwise import LayerModel, joined_processes, layerwise_stats, opened_work, quantize_layers
from mvquant.stats import save_stats

folder = Path(sys.argv[1])
checkpoint = open_checkpoint(str(folder / "model"))
view = model_view(checkpoint.config)
with joined_processes() as processes:
    assert processes.size == 2
    numbers = torch.tensor([0.1 + processes.rank, 2.0])
    assert processes.sum(numbers).tolist() == torch.tensor([0.1 + 1.1, 4.0]).tolist()
    assert processes.sum(torch.tensor(2**53 + processes.rank)).item() == 2**54 + 1
    assert processes.maximum(numbers).tolist() == torch.tensor([1.1, 2.0]).tolist()
    missing = torch.tensor([[1.0, torch.nan, 3.0], [torch.nan, 1.0, 4.0]])[processes.rank]  # gloo drops those of rank 1
    assert torch.equal(processes.maximum(missing).isnan(), torch.tensor([True, True, False]))
    assert processes.maximum(missing)[2] == 4.0
    assert processes.maximum(torch.tensor([processes.rank, -3])).tolist() == [1, -3]
    assert numbers.tolist() == torch.tensor([0.1 + processes.rank, 2.0]).tolist()
    assert processes.gather(processes.rank) == [0, 1]
    model = LayerModel(checkpoint, view)
    stats = layerwise_stats(model, batches(5), processes=processes)
    if processes.rank == 1:
        save_stats(stats, folder / "stats.safetensors")
    with opened_work(folder / "work", fingerprint(), processes=processes, resume=True) as work:
        backend = gptq() if sys.argv[2] == "gptq" else SumsInputs()
        quantize_layers(model, planned(view, bits=2), batches(5), backend, work, processes=processes)
        if sys.argv[2] == "sums":
            assert len(backend.seen[1]) == 3 - processes.rank
"""


def run_two(folder: Path, backend: str) -> subprocess.CompletedProcess[str]:
    (folder / "shared.py").write_text(SHARED)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.run(
        [*command, str(folder / "shared.py"), str(folder), backend],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path.cwd()), "OMP_NUM_THREADS": "1"},
    )


def plan_and_model(world):
    return planned(world.view, bits=2), LayerModel(world.checkpoint, world.view)


@pytest.mark.parametrize(
    ("family", "name", "backend"), [("gemma3_text", "sums", SumsInputs), ("mixtral", "gptq", gptq)]
)
def test_two_processes_make_the_integers_and_statistics_of_one(family, name, backend, tmp_path):
    world = saved(family, tmp_path / "model")
    done = run_two(tmp_path, name)
    assert done.returncode == 0, done.stderr
    plan, model = plan_and_model(world)
    assert_equal_stats(load_stats(tmp_path / "stats.safetensors"), layerwise_stats(model, batches(5)))
    with opened_work(tmp_path / "alone", fingerprint()) as work:
        alone = quantize_layers(model, plan, batches(5), backend(), work)
        with opened_work(tmp_path / "work", fingerprint(), resume=True) as shared:
            assert shared.finished == len(model)
            assert_same_results(plan, alone, shared.results(len(model)))


def test_work_of_one_process_goes_on_with_two(tmp_path):
    plan, model = plan_and_model(saved("gemma3_text", tmp_path / "model"))
    with opened_work(tmp_path / "alone", fingerprint()) as work:
        alone = quantize_layers(model, plan, batches(5), SumsInputs(), work)
        with pytest.raises(StoppedError), opened_work(tmp_path / "work", fingerprint()) as begun:
            quantize_layers(model, plan, batches(5), SumsInputs(stop_at=1), begun)
        done = run_two(tmp_path, "sums")
        assert done.returncode == 0, done.stderr
        with opened_work(tmp_path / "work", fingerprint(), resume=True) as shared:
            assert_same_results(plan, alone, shared.results(len(model)))


def assert_same_results(plan, one, two):
    for module in plan.modules:
        states = one.state(module.name), two.state(module.name)
        assert states[0].keys() == states[1].keys() != set()
        assert all(torch.equal(states[0][part], states[1][part]) for part in states[0])


def test_alone_is_everybody():
    tensor = torch.ones(2)
    for answer in (ALONE.sum(tensor), ALONE.maximum(tensor)):
        assert torch.equal(answer, tensor)
        assert answer is not tensor
    assert ALONE.gather("a") == ["a"]


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_every_sequence_is_someones(size):
    class Some(type(ALONE)):
        def __init__(self, rank):
            self.rank, self.size = rank, size

    parts = [share(["a", "b", "c", "d"], Some(rank)) for rank in range(size)]
    assert sorted(number for part in parts for number in part) == [0, 1, 2, 3]
    assert all(["a", "b", "c", "d"][number] == item for part in parts for number, item in part.items())


def test_every_process_has_its_own_device(monkeypatch):
    assert own_device("cuda") == "cuda"
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert [own_device(each) for each in ("cpu", "cuda", "cuda:1")] == ["cpu", "cuda:3", "cuda:1"]


def test_a_device_that_is_not_there_is_named():
    assert usable_device("cpu") == torch.device("cpu")
    with pytest.raises(UsageError, match="tpu9"):
        usable_device("tpu9")
