"""Writing tensors as safetensors files of bounded size, straight to disk.

`safetensors.torch.save_file` wants all tensors of a file in memory at once. Kept there until a file is full,
they would not only take their own room: they lie between the short-lived tensors of quantizing, and the
memory of those could not be used again.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mvquant.checkpoint.folder import INDEX, WEIGHTS

CODES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""Dtypes as safetensors calls them."""

COPY_BYTES = 1 << 20


@dataclass(frozen=True)
class _Entry:
    """A tensor that lies on disk, in the part for elements of its size."""

    code: str
    shape: tuple[int, ...]
    itemsize: int
    start: int
    stop: int


class ShardWriter:
    """Writes tensors out as they come, and makes a safetensors file of them whenever it would get too large.

    Attributes:
        folder: where the files go.
        shard_bytes: a file is closed before it would grow beyond this, unless one tensor alone does.
        total_bytes: bytes of all tensors so far.
    """

    def __init__(self, folder: Path, shard_bytes: int, metadata: dict[str, str]) -> None:
        self.folder = folder
        self.shard_bytes = shard_bytes
        self.total_bytes = 0
        self._metadata = metadata
        self._pending: dict[str, _Entry] = {}
        self._pending_bytes = 0
        self._shards: list[list[str]] = []

    def add(self, name: str, tensor: Tensor) -> None:
        """Write a tensor."""
        if self._pending and self._pending_bytes + tensor.nbytes > self.shard_bytes:
            self._finish()
        with self._part(tensor.itemsize).open("ab") as part:
            start = part.tell()
            part.write(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
        stop = start + tensor.nbytes
        self._pending[name] = _Entry(CODES[tensor.dtype], tuple(tensor.shape), tensor.itemsize, start, stop)
        self._pending_bytes += tensor.nbytes
        self.total_bytes += tensor.nbytes

    def add_all(self, tensors: Mapping[str, Tensor]) -> None:
        """Write tensors."""
        for name, tensor in tensors.items():
            self.add(name, tensor)

    def close(self) -> None:
        """Finish the last file, and give all their final names: one file, or several and an index."""
        if self._pending:
            self._finish()
        if len(self._shards) == 1:
            self._shard(0).rename(self.folder / WEIGHTS)
            return
        weight_map: dict[str, str] = {}
        for number, names in enumerate(self._shards):
            file = f"model-{number + 1:05d}-of-{len(self._shards):05d}.safetensors"
            self._shard(number).rename(self.folder / file)
            weight_map |= dict.fromkeys(names, file)
        index = {"metadata": {"total_size": self.total_bytes}, "weight_map": dict(sorted(weight_map.items()))}
        (self.folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")

    def _finish(self) -> None:
        """Put the parts together, largest elements first so that all of them are aligned."""
        first: dict[int, int] = {}
        end = 0
        for itemsize in sorted({entry.itemsize for entry in self._pending.values()}, reverse=True):
            first[itemsize] = end
            end += self._part(itemsize).stat().st_size
        with self._shard(len(self._shards)).open("wb") as shard:
            shard.write(self._header(first))
            for itemsize in first:
                with self._part(itemsize).open("rb") as part:
                    shutil.copyfileobj(part, shard, COPY_BYTES)
                self._part(itemsize).unlink()
        self._shards.append(list(self._pending))
        self._pending = {}
        self._pending_bytes = 0

    def _header(self, first: dict[int, int]) -> bytes:
        header: dict[str, object] = {"__metadata__": self._metadata}
        for name, entry in self._pending.items():
            offsets = [first[entry.itemsize] + entry.start, first[entry.itemsize] + entry.stop]
            header[name] = {"dtype": entry.code, "shape": entry.shape, "data_offsets": offsets}
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text

    def _part(self, itemsize: int) -> Path:
        return self.folder / f"{itemsize}-byte.part"

    def _shard(self, number: int) -> Path:
        return self.folder / f"shard-{number}.safetensors"
