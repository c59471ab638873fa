"""What all child processes share: they read a job, keep off the network, and say how far they are."""

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from mvquant.backends.child import end_with_parent
from mvquant.backends.folder.job import Job
from mvquant.backends.layer import ModuleRecord

PROGRESS = "mvquant-progress"
"""First word of a line that says how far the work is: layers done, layers in all, a name."""

FP16_SMALLEST = 2.0**-24


def run_child(quantize: Callable[[Job], Sequence[ModuleRecord]]) -> None:
    """Do the jobs whose files are the arguments, for as long as the process that asked for them lives."""
    end_with_parent()
    sys.addaudithook(_refuse_network)
    for file in sys.argv[1:]:
        job = Job.model_validate_json(Path(file).read_text(encoding="utf-8"))
        records = quantize(job)
        job.records.write_text(json.dumps([record.model_dump() for record in records]), encoding="utf-8")


def _refuse_network(event: str, arguments: tuple[Any, ...]) -> None:
    """Let no package phone home: everything that it may read lies in the job's folder."""
    if event in ("socket.connect", "socket.getaddrinfo") and not isinstance(arguments[-1], str | bytes):
        raise PermissionError(f"{event}: a quantizer has no business on the network")


def say_progress(job: Job, module: str) -> None:
    """Say that the layer of a module is done; names of layers and of modules in them will do."""
    for done, layer in enumerate(job.layers, start=1):
        if module == layer or module.startswith(f"{layer}."):
            sys.stdout.write(f"\n{PROGRESS} {done} {len(job.layers)} {layer}\n")
            sys.stdout.flush()


def as_stored(scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Round scales to values that the packages' float16 and the model's dtype both hold, so that they are stored as is.

    Integers are then chosen against the scale that they will be multiplied with.

    >>> as_stored(torch.tensor([0.1]), torch.bfloat16).item()
    0.10009765625
    """
    direct = scale.to(dtype)
    both = direct.to(torch.float16).to(dtype)
    # where float16 has fewer digits, below 2^-14, all that it has are kept; rounding twice elsewhere would lose one
    stored = torch.where(both == direct, direct, scale.to(torch.float16).to(dtype)).to(scale.dtype)
    return torch.where(stored == 0, torch.full_like(scale, FP16_SMALLEST).copysign(scale), stored)


class SeenWeights:
    """Weights of modules with protected rows, as a method that scales columns left them before it rounded.

    Attributes:
        wanted: full names of the modules.
    """

    def __init__(self, wanted: Sequence[str]) -> None:
        self.wanted = frozenset(wanted)
        self._weights: dict[str, Tensor] = {}

    def take(self, modules: Mapping[str, nn.Module]) -> None:
        """Copy the weights of those of the modules, by full name, that are wanted."""
        for name in self.wanted & set(modules):
            weight = modules[name].weight
            assert isinstance(weight, Tensor), f"{name} has no weight"
            self._weights[name] = weight.detach().cpu().clone()

    def save(self, file: Path) -> None:
        """Write them, if there are any."""
        if self._weights:
            save_file(self._weights, file)


QUIET = {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONUNBUFFERED": "1",
}
"""Environment variables of every child."""


def child_environment(threads: int, more: Mapping[str, str] | None = None) -> dict[str, str]:
    """Environment variables of a child that may use as many threads as its parent."""
    path = os.pathsep.join([str(Path(__file__).parents[3]), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**QUIET, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": path, **(more or {})}
