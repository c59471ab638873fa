"""Two processes that share the calibration sequences, over a pipe."""

import multiprocessing
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection

import numpy as np
import torch
from torch import Tensor


@dataclass
class OverPipe:
    """`Processes` of two."""

    rank: int
    pipe: Connection
    size: int = 2

    def sum(self, tensor: Tensor) -> Tensor:
        return tensor + self._other(tensor)

    def maximum(self, tensor: Tensor) -> Tensor:
        return torch.maximum(tensor, self._other(tensor))

    def _other(self, tensor: Tensor) -> Tensor:
        mine = (tensor.numpy(), str(tensor.dtype))
        if self.rank == 0:  # one after the other: both would wait for the other to read
            self.pipe.send(mine)
        values, dtype = self.pipe.recv()
        if self.rank == 1:
            self.pipe.send(mine)
        assert dtype == str(tensor.dtype), "the processes share different tensors"
        return torch.from_numpy(np.array(values))


def in_two_processes(work: Callable[[OverPipe], dict[str, Tensor]]) -> list[dict[str, Tensor]]:
    """Run `work` in two processes; return what each made."""
    context = multiprocessing.get_context("fork")
    pipes = context.Pipe()
    results = [context.Pipe(duplex=False) for _ in pipes]

    def run(rank: int) -> None:
        made = work(OverPipe(rank, pipes[rank]))
        results[rank][1].send({name: value.numpy() for name, value in made.items()})

    processes = [context.Process(target=run, args=(rank,)) for rank in range(2)]
    for process in processes:
        process.start()
    made = [receiver.recv() if receiver.poll(120) else None for receiver, _ in results]
    for process in processes:
        process.join(10)
    assert None not in made, "a process failed"
    return [{name: torch.from_numpy(value) for name, value in each.items()} for each in made]
