"""Packages that can run layers on a device are told to."""

import sys
from dataclasses import replace

import pytest
import torch

from mvquant import calibrated
from mvquant.backends.folder.run import FOLDER_BACKENDS, run_folder_backend
from mvquant.errors import BackendError
from mvquant.method_settings import AutoRound, Gptq
from mvquant.workplace import Workplace
from tests.backends.folder.packages import calibration_tokens, plan_of, save_model

METHODS = {
    "gptqmodel": "scheme: w4a16-g64, method: {name: gptq, backend: gptqmodel}",
    "auto-round": "scheme: w4a16-g64, method: {name: autoround, iterations: 4}",
}


@pytest.mark.parametrize("method", [Gptq(backend="gptqmodel"), AutoRound()])
def test_a_device_that_a_package_can_use_is_left_to_it(method):
    said = []
    place = calibrated._usable_by_package(Workplace(device=torch.device("cuda", 1)), method, said.append)
    assert (place.device, said) == (torch.device("cuda", 1), [])
    elsewhere = calibrated._usable_by_package(Workplace(device=torch.device("meta")), method, said.append)
    assert elsewhere.device == torch.device("cpu")
    assert said == [f"{method.backend} runs on the CPU: it cannot use meta"]


@pytest.mark.parametrize("name", METHODS)
def test_the_job_says_the_device(tmp_path, monkeypatch, name):
    opened, told = save_model(tmp_path / "model"), []
    code = "import json, sys; print('mvquant-progress 1 2', json.load(open(sys.argv[1]))['device']); exit(1)"
    child = replace(FOLDER_BACKENDS[name], command=lambda job: [sys.executable, "-c", code, str(job)])
    monkeypatch.setitem(FOLDER_BACKENDS, name, child)
    with pytest.raises(BackendError):
        run_folder_backend(
            opened.checkpoint,
            opened.view,
            plan_of(opened, METHODS[name]),
            calibration_tokens(),
            tmp_path / "package",
            lambda *said: told.append(said),
            device="cuda:1",
        )
    assert told == [("cuda:1", 1, 2)]


@pytest.mark.cuda
@pytest.mark.parametrize("name", METHODS)
def test_what_a_device_computes_is_near_what_the_cpu_does(tmp_path, name):
    opened = save_model(tmp_path / "model")
    plan = plan_of(opened, METHODS[name])
    made = {
        device: run_folder_backend(
            opened.checkpoint, opened.view, plan, calibration_tokens(), tmp_path / device, device=device
        )
        for device in ("cpu", "cuda")
    }
    for module in plan.modules:
        cpu, cuda = (made[device].module(module.name).base for device in ("cpu", "cuda"))
        # sums in another order move an integer by a step where a value lies between two
        assert (cpu.integers.int() - cuda.integers.int()).abs().float().mean() < 0.1
        torch.testing.assert_close(cuda.grid.scale, cpu.grid.scale, rtol=0.05, atol=0)
