"""Packed chunks of states in memory, as a codec made them: what is there is never encoded or copied again.

Buffers grow by an eighth, so that appending a token costs the same however many there are.
"""

from jaxtyping import Int
from torch import Tensor

Parts = dict[str, Tensor]
"""Tensors of some chunks by name, `[batch, ..., chunk, ...]`: rows of the batch in dim 0, chunks in dim 2."""


class PackedStore:
    """A queue of chunks: appended at the end, dropped at either side.

    >>> import torch
    >>> store = PackedStore()
    >>> store.append({"integers": torch.arange(6).view(1, 1, 6)})
    >>> store.drop_first(4)
    >>> len(store), store.read(0, 2)["integers"].tolist(), store.nbytes, store.reserved > 0
    (2, [[[4, 5]]], 16, True)
    """

    def __init__(self) -> None:
        self._buffers: Parts = {}
        self._start = 0
        self._stop = 0

    def __len__(self) -> int:
        """Chunks that are held."""
        return self._stop - self._start

    @property
    def nbytes(self) -> int:
        """Bytes of the chunks that are held."""
        return sum(part.nbytes for part in self.read(0, len(self)).values())

    @property
    def reserved(self) -> int:
        """Bytes allocated beyond them: room to grow, and dropped chunks whose room is not free yet."""
        return sum(buffer.nbytes for buffer in self._buffers.values()) - self.nbytes

    def append(self, parts: Parts) -> None:
        """Add chunks at the end."""
        count = _chunks(parts)
        if not self._buffers or self._stop + count > self._capacity():
            self._make_room(parts, count)
        for name, part in parts.items():
            self._buffers[name][:, :, self._stop : self._stop + count] = part
        self._stop += count

    def read(self, first: int, last: int) -> Parts:
        """Views of chunks `first` to `last - 1`, counted from the oldest that is held."""
        chunks = slice(self._start + first, self._start + last)
        return {name: buffer[:, :, chunks] for name, buffer in self._buffers.items()}

    def drop_first(self, count: int) -> None:
        """Forget the oldest chunks; their room is freed when a buffer is full."""
        self._start += count

    def drop_last(self, count: int) -> None:
        """Forget the newest chunks."""
        self._stop -= count

    def select(self, rows: Int[Tensor, " row"]) -> None:
        """Keep these rows of the batch, in this order; a row may come more than once."""
        self._buffers = {name: buffer.index_select(0, rows.to(buffer.device)) for name, buffer in self._buffers.items()}

    def _capacity(self) -> int:
        return _chunks(self._buffers)

    def _make_room(self, parts: Parts, count: int) -> None:
        needed = len(self) + count
        capacity = needed + max(needed // 8, 1)
        held = self.read(0, len(self))
        for name, part in parts.items():
            grown = part.new_empty((*part.shape[:2], capacity, *part.shape[3:]))
            if held:
                grown[:, :, : len(self)] = held[name]
            self._buffers[name] = grown
        self._start, self._stop = 0, len(self)


def _chunks(parts: Parts) -> int:
    return next(iter(parts.values())).shape[2]
