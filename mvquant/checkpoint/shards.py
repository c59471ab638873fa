"""Writing tensors as safetensors files of bounded size, one file in memory at a time."""

import json
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from mvquant.checkpoint.folder import INDEX, WEIGHTS


class ShardWriter:
    """Collects tensors and writes them out whenever a file is full.

    Attributes:
        folder: where the files go.
        shard_bytes: a file is written before it would grow beyond this, unless one tensor alone does.
        total_bytes: bytes of all tensors so far.
    """

    def __init__(self, folder: Path, shard_bytes: int, metadata: dict[str, str]) -> None:
        self.folder = folder
        self.shard_bytes = shard_bytes
        self.total_bytes = 0
        self._metadata = metadata
        self._pending: dict[str, Tensor] = {}
        self._pending_bytes = 0
        self._shards: list[list[str]] = []

    def add(self, name: str, tensor: Tensor) -> None:
        """Take a tensor in; it must not be changed afterwards."""
        if self._pending and self._pending_bytes + tensor.nbytes > self.shard_bytes:
            self._flush()
        self._pending[name] = tensor.contiguous()
        self._pending_bytes += tensor.nbytes
        self.total_bytes += tensor.nbytes

    def close(self) -> None:
        """Write the rest, and give the files their final names: one file, or several and an index."""
        self._flush()
        if len(self._shards) == 1:
            self._part(0).rename(self.folder / WEIGHTS)
            return
        weight_map: dict[str, str] = {}
        for number, names in enumerate(self._shards):
            file = f"model-{number + 1:05d}-of-{len(self._shards):05d}.safetensors"
            self._part(number).rename(self.folder / file)
            weight_map |= dict.fromkeys(names, file)
        index = {"metadata": {"total_size": self.total_bytes}, "weight_map": dict(sorted(weight_map.items()))}
        (self.folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")

    def _part(self, number: int) -> Path:
        return self.folder / f"part-{number}.safetensors"

    def _flush(self) -> None:
        if not self._pending:
            return
        save_file(self._pending, self._part(len(self._shards)), metadata=self._metadata)
        self._shards.append(list(self._pending))
        self._pending = {}
        self._pending_bytes = 0
