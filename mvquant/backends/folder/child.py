"""What all programs of packages share: they read a job, keep off the network, and say how far they are."""

import json
import os
import sys
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from mvquant.backends.child import end_process, end_with_parent
from mvquant.backends.folder.job import Job
from mvquant.backends.layer import ModuleRecord
from mvquant.backends.memory import release_freed_memory, share_one_heap
from mvquant.backends.replaced import replaced
from mvquant.progress import Progress

PROGRESS = "mvquant-progress"
"""First word of a line that says how far the work is: layers done, layers in all, and what to show of it."""

FP16_SMALLEST = 2.0**-24


def run_child(quantize: Callable[[Job], Sequence[ModuleRecord]]) -> None:
    """Do the jobs whose files are the arguments, for as long as who asked for them lives.

    Args:
        quantize: does one.
    """
    share_one_heap()
    end_with_parent()
    with no_network():
        for file in map(Path, sys.argv[1:]):
            do_job(quantize, file)
    end_process(0)


def do_job(quantize: Callable[[Job], Sequence[ModuleRecord]], file: Path) -> None:
    """Do what a file says, in its folder: some packages write where they are."""
    job = Job.model_validate_json(file.read_text(encoding="utf-8"))
    os.chdir(file.parent)
    records = quantize(job)
    job.records.write_text(json.dumps([record.model_dump() for record in records]), encoding="utf-8")


class _Network:
    """Lets no package phone home while it is closed: everything that it may read lies in the job's folder."""

    closed = False
    watched = False

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.closed or event not in ("socket.connect", "socket.getaddrinfo"):
            return
        if not isinstance(arguments[-1], str | bytes):
            raise PermissionError(f"{event}: a quantizer has no business on the network")


_NETWORK = _Network()


@contextmanager
def no_network() -> Generator[None]:
    """Refuse connections to other machines for a while, and have the Hub's library ask for none."""
    if not _NETWORK.watched:
        sys.addaudithook(_NETWORK)  # which cannot be taken back
        _NETWORK.watched = True
    _NETWORK.closed = True
    try:
        with replaced(huggingface_hub.constants, HF_HUB_OFFLINE=True):
            yield
    finally:
        _NETWORK.closed = False


_LISTENERS: list[Progress] = []


@contextmanager
def progress_to(listener: Progress) -> Generator[None]:
    """Tell a function of this process how far the work is, and nobody else."""
    _LISTENERS.append(listener)
    try:
        yield
    finally:
        _LISTENERS.remove(listener)


def say_progress(job: Job, module: str, loss: float | None = None) -> None:
    """Say that the layer of a module is done; names of layers and of modules in them will do.

    It is also the moment to give back what was freed: packages work with copies of whole weights.

    Args:
        job: that is done.
        module: or its layer.
        loss: of it, if it is known.
    """
    for done, layer in enumerate(job.layers, start=1):
        if module == layer or module.startswith(f"{layer}."):
            detail = layer if loss is None else f"{layer} loss {loss:.3g}"
            for listener in _LISTENERS:
                listener(detail, done, len(job.layers))
            if not _LISTENERS:
                sys.stdout.write(f"\n{PROGRESS} {done} {len(job.layers)} {detail}\n")
                sys.stdout.flush()
            release_freed_memory()


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


class SeenRows:
    """Protected rows, as a method that scales columns left them before it rounded.

    Attributes:
        wanted: rows by the full name of their module.
    """

    def __init__(self, wanted: Mapping[str, Sequence[int]]) -> None:
        self.wanted = wanted
        self._rows: dict[str, Tensor] = {}

    def take(self, modules: Mapping[str, nn.Module]) -> None:
        """Copy the wanted rows of those of the modules, by full name, that have any."""
        for name in self.wanted.keys() & modules.keys():
            weight = modules[name].weight
            assert isinstance(weight, Tensor), f"{name} has no weight"
            self._rows[name] = weight.detach()[list(self.wanted[name])].cpu()

    def save(self, file: Path) -> None:
        """Write them, if there are any."""
        if self._rows:
            save_file(self._rows, file)
