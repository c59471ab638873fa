"""Processes that share calibration sequences, started by torchrun: each runs the model over its part of them.

torchrun --nproc-per-node 2 -m mvquant quantize MODEL --scheme gptq-w4a16 -o OUT
"""

import os
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, distributed

from mvquant.backends.layer import Processes
from mvquant.errors import UsageError

CPU = torch.device("cpu")

PATIENCE = timedelta(hours=2)
"""How long processes wait for one that is slow."""

_Item = TypeVar("_Item")


@runtime_checkable
class SharedWork(Processes, Protocol):
    """What the driver needs of processes beyond what backends do."""

    def gather(self, value: Any) -> list[Any]:  # noqa: ANN401 - whatever can be pickled
        """Return every process's value, by rank, in all of them."""
        ...

    def wait(self) -> None:
        """Return once all have come here."""
        ...


class OneProcess:
    """A process that works alone."""

    rank = 0
    size = 1

    def sum(self, tensor: Tensor) -> Tensor:
        """Return a copy."""
        return tensor.clone()

    def maximum(self, tensor: Tensor) -> Tensor:
        """Return a copy."""
        return tensor.clone()

    def gather(self, value: Any) -> list[Any]:  # noqa: ANN401
        """Return the value alone."""
        return [value]

    def wait(self) -> None:
        """Return at once."""


ALONE = OneProcess()


class TorchProcesses:
    """The processes of `torch.distributed`'s default group."""

    def __init__(self) -> None:
        self.rank = distributed.get_rank()
        self.size = distributed.get_world_size()

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the sum over processes; floats are added in float64, where float32 values do not depend on order."""
        total = tensor.to(torch.float64 if tensor.is_floating_point() else torch.int64, copy=True)
        distributed.all_reduce(total)
        return total.to(tensor.dtype)

    def maximum(self, tensor: Tensor) -> Tensor:
        """Return the largest value of every element over processes, NaN where one of them has NaN.

        NaN is asked for apart: what MAX makes of it depends on the library, and on which process has it.
        """
        largest, missing = tensor.clone(), tensor.isnan().to(torch.uint8)
        for each in (largest, missing):
            distributed.all_reduce(each, distributed.ReduceOp.MAX)
        return largest.masked_fill_(missing.bool(), torch.nan) if tensor.is_floating_point() else largest

    def gather(self, value: Any) -> list[Any]:  # noqa: ANN401
        """Return every process's value, by rank, in all of them."""
        found: list[Any] = [None] * self.size
        distributed.all_gather_object(found, value)
        return found

    def wait(self) -> None:
        """Return once all have come here."""
        # on the CPU: a barrier would ask for a device
        distributed.all_reduce(torch.zeros(1))


@contextmanager
def joined_processes(device: str = "cpu") -> Generator[SharedWork]:
    """Give the processes that torchrun started, this one alone where it did not, until the end of the block.

    gloo joins them on CPUs, and with it each device's own library (nccl, say) on devices.

    Args:
        device: that the model runs on; see `own_device`.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or distributed.is_initialized():
        yield TorchProcesses() if distributed.is_initialized() else ALONE
        return
    on_cpu = torch.device(device).type == CPU.type
    if not on_cpu:
        torch.accelerator.set_device_index(torch.device(own_device(device)).index)
    distributed.init_process_group("gloo" if on_cpu else None, timeout=PATIENCE)
    try:
        yield TorchProcesses()
    finally:
        distributed.destroy_process_group()


def own_device(device: str) -> str:
    """Return the device of this process: where torchrun started several on one machine, each has its own."""
    local = os.environ.get("LOCAL_RANK")
    return device if local is None or device == CPU.type or ":" in device else f"{device}:{local}"


def usable_device(device: str) -> torch.device:
    """Return a device that tensors can be put on.

    Raises:
        UsageError: there is none of this name.
    """
    try:
        place = torch.device(device)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"device {device!r} cannot be used: {str(error).splitlines()[0]}") from None
    return place


def share(items: Sequence[_Item], work: SharedWork) -> dict[int, _Item]:
    """Return this process's part of the items, with their numbers: every `size`-th of them.

    >>> share(["a", "b", "c"], ALONE)
    {0: 'a', 1: 'b', 2: 'c'}
    """
    return {number: items[number] for number in range(work.rank, len(items), work.size)}
