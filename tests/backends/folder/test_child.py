import os
import signal
import socket
import subprocess
import sys

import huggingface_hub.constants
import pytest
import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn

from mvquant.backends.child import PARENT
from mvquant.backends.folder.child import SeenRows, as_stored, no_network
from mvquant.backends.folder.programs import child_environment
from mvquant.backends.replaced import replaced
from tests.backends.folder.jobs import write_job


@given(st.lists(st.floats(2**-23, 1000.0, width=32), min_size=1), st.sampled_from([torch.bfloat16, torch.float16]))
def test_stored_scales_survive_both_dtypes(values, dtype):
    scale = torch.tensor(values)
    stored = as_stored(scale, dtype)
    for other in (torch.float16, dtype):
        assert torch.equal(stored.to(other).float(), stored)
    near = scale.abs() > 2**-14
    assert bool(((stored - scale).abs() <= 2**-8 * scale)[near].all())


def test_no_scale_is_stored_as_zero():
    stored = as_stored(torch.tensor([1e-12, -1e-12, 0.0]), torch.bfloat16)
    assert bool((stored != 0).all())
    assert stored.sign().tolist() == [1, -1, 1]


def test_packages_reach_no_network_for_a_while(tmp_path):
    connect = ("socket.connect", None, ("192.0.2.1", 443))
    with no_network():
        with pytest.raises(PermissionError, match="network"):
            sys.audit(*connect)
        with pytest.raises(PermissionError, match="network"):
            sys.audit("socket.getaddrinfo", "example.org", 443, socket.AF_UNSPEC, 0, 0)
        sys.audit("socket.connect", None, str(tmp_path / "unix"))
        sys.audit("open", "file", "r", 0)
        with pytest.raises(LocalEntryNotFoundError), replaced(huggingface_hub.constants, HF_HUB_CACHE=str(tmp_path)):
            snapshot_download("someone/model")
    sys.audit(*connect)


def test_a_program_does_each_job_in_its_folder(tmp_path):
    files = [write_job(tmp_path / name) for name in ("one", "zw\u00f6lf")]
    works = "run_child(lambda job: print(os.getcwd() == str(job.out.parent)) or [])"
    code = f"import os; from mvquant.backends.folder.child import run_child; {works}"
    environment = {**os.environ, **child_environment(1), PARENT: str(os.getpid())}
    command = [sys.executable, "-c", code, *map(str, files)]
    assert subprocess.check_output(command, env=environment, text=True, timeout=120).split() == ["True", "True"]
    assert all((file.parent / "records").read_text() == "[]" for file in files)


def test_attributes_are_put_back_after_an_error():
    with pytest.raises(RuntimeError, match="in between"), replaced(nn.Linear, forward=None):
        assert nn.Linear.forward is None
        raise RuntimeError("in between")
    assert nn.Linear(2, 2)(torch.ones(1, 2)).shape == (1, 2)
    with pytest.raises(AttributeError), replaced(nn.Linear, no_such_method=None):
        pass


def test_seen_rows_are_copies(tmp_path):
    linear = nn.Linear(4, 3)
    seen, before = SeenRows({"layer.q_proj": (0, 2)}), linear.weight.detach().clone()
    seen.take({"layer.q_proj": linear, "layer.k_proj": nn.Linear(4, 2)})
    with torch.no_grad():
        linear.weight.zero_()
    seen.save(tmp_path / "seen.safetensors")
    saved = load_file(tmp_path / "seen.safetensors")
    assert list(saved) == ["layer.q_proj"]
    assert torch.equal(saved["layer.q_proj"], before[[0, 2]])


def test_a_child_does_not_go_on_without_the_process_that_it_works_for(tmp_path):
    file = write_job(tmp_path)
    works = "run_child(lambda job: time.sleep(600))"
    code = f"import time; from mvquant.backends.folder.child import run_child; {works}"
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        pass
    environment = {**os.environ, **child_environment(1), PARENT: str(gone.pid)}
    command = [sys.executable, "-c", code, str(file)]
    assert subprocess.run(command, env=environment, timeout=120, check=False).returncode == -signal.SIGKILL
