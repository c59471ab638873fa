"""The states of one role (K or V) in one layer as a cache holds them: packed, but for the newest and the first.

    column     0 ............................. packed .................. length
    held as    chunks, as the codec packs them | the newest, as they came
    and        the first columns of each row ("sinks") as they came as well

A column is a token's place in the batch, padding included. With `n` columns seen,
`packed = chunk * floor((n - window) / chunk)`: at least the newest `window` stay as they came, and up to `chunk - 1`
more until their chunk is whole. A chunk is packed once and never again.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mvquant.kvcache.keeping import HeldBytes, Keeping, RowStarts
from mvquant.kvcache.store import PackedStore, Parts

DECODE_BLOCK = 1 << 19
"""States decoded at once on the CPU, so that what the codec makes on the way stays in the processor's cache."""


class HeldStates:
    """The states of one role in one layer; see the top of the module."""

    def __init__(self, keeping: Keeping) -> None:
        self.keeping = keeping
        self.length = 0
        """Columns seen so far, those included that were dropped since."""
        self.packed = 0
        """First column that is not packed."""
        self._store = PackedStore()
        self._newest: Tensor | None = None
        self._sinks: Tensor | None = None
        self._row_starts: RowStarts | None = None

    @property
    def first(self) -> int:
        """First column that is still held."""
        return self.packed - len(self._store) * self.keeping.codec.chunk

    @property
    def due(self) -> int:
        """Columns that the settings want packed by now."""
        return self.keeping.packed_columns(self.length)

    @property
    def rows(self) -> int:
        """Rows of the batch."""
        return self._tail.shape[0]

    @property
    def nbytes(self) -> HeldBytes:
        """Bytes held."""
        exact = [tensor.nbytes for tensor in (self._newest, self._sinks) if tensor is not None]
        return HeldBytes(self._store.nbytes, sum(exact), self._store.reserved)

    def append(self, states: Float[Tensor, "batch head column head_dim"], starts: RowStarts) -> None:
        """Add columns as they came."""
        self._row_starts = starts
        self._keep_sinks(states)
        self._newest = states if self._newest is None else torch.cat([self._newest, states], dim=2)
        self.length += states.shape[2]

    def exact(self, first: int, last: int) -> Float[Tensor, "batch head column head_dim"]:
        """Columns that are not packed yet, as they came."""
        return self._tail[:, :, first - self.packed : last - self.packed]

    def pack(self) -> None:
        """Pack what the settings want packed by now."""
        if self.due > self.packed:
            until = self.due
            self._store.append(self._encode(until))
            # a view would keep alive what has just been packed
            self._newest = self._tail[:, :, until - self.packed :].clone()
            self.packed = until

    def read(self, first: int, rounded_until: int = 0) -> Float[Tensor, "batch head column head_dim"]:
        """Columns from `first` on.

        Args:
            first: the first column wanted.
            rounded_until: columns before this one are returned as packing them would leave them, packed or not.
        """
        tail = self._tail
        if max(self.packed, rounded_until) <= first:
            return tail[:, :, first - self.packed :]
        states = tail.new_empty((*tail.shape[:2], self.length - first, tail.shape[3]))
        self._decode_into(states, first)
        states[:, :, max(self.packed - first, 0) :] = tail[:, :, max(first - self.packed, 0) :]
        if rounded_until > self.packed:
            rounded = self._decode(self._encode(rounded_until), self.packed, tail.dtype)
            states[:, :, max(self.packed - first, 0) : rounded_until - first] = rounded[
                :, :, max(first - self.packed, 0) :
            ]
        self._put_sinks(states, first)
        return states

    def drop_before(self, column: int) -> None:
        """Forget whole chunks that end before `column`."""
        chunk = self.keeping.codec.chunk
        chunks = max(column - self.first, 0) // chunk
        stored = min(chunks, len(self._store))
        self._store.drop_first(stored)
        if chunks > stored:
            surplus = min((chunks - stored) * chunk, self.length - self.packed)
            self._newest = self._tail[:, :, surplus:].clone()
            self.packed += surplus

    def crop(self, length: int) -> None:
        """Forget the columns from `length` on; the others read as before.

        If that cuts a packed chunk, its rest is held decoded until the chunk is whole again, and then rounded anew.
        """
        if length < self.packed:
            chunk = self.keeping.codec.chunk
            whole = length // chunk * chunk
            rest = self.read(whole)[:, :, : length - whole].clone()
            self._store.drop_last((self.packed - whole) // chunk)
            self._newest, self.packed = rest, whole
        elif self._newest is not None:
            self._newest = self._newest[:, :, : length - self.packed].clone()
        self.length = length

    def select(self, rows: Int[Tensor, " row"]) -> None:
        """Keep these rows of the batch, in this order; a row may come more than once."""
        if self._newest is None:
            return
        self._store.select(rows)
        self._newest = self._newest.index_select(0, rows)
        self._sinks = None if self._sinks is None else self._sinks.index_select(0, rows)
        self._row_starts = self._starts.select(rows)

    @property
    def _tail(self) -> Tensor:
        if self._newest is None:
            raise RuntimeError("nothing has been appended yet")
        return self._newest

    @property
    def _starts(self) -> RowStarts:
        if self._row_starts is None:
            raise RuntimeError("nothing has been appended yet")
        return self._row_starts

    def _positions(self, first: int, last: int) -> Int[Tensor, "batch column"]:
        """Position of each column in its own row; below 0 on padding."""
        zero = self._starts.position
        return torch.arange(first, last, device=zero.device) - zero[:, None]

    def _encode(self, until: int) -> Parts:
        """Encode the columns from the first that is not packed."""
        states = self._tail[:, :, : until - self.packed]
        if self.keeping.frame is not None and not self.keeping.lossless:
            states = self.keeping.frame.turn_back(states, self._positions(self.packed, until))
        # only now: a copy turned back from another place would be another state
        return self.keeping.codec.encode(self._with_unread_filled(states))

    def _decode(self, parts: Parts, first: int, dtype: torch.dtype) -> Tensor:
        """Decode chunks whose first column is `first`."""
        states = self.keeping.codec.decode(parts, dtype)
        if self.keeping.frame is not None and not self.keeping.lossless:
            states = self.keeping.frame.turn(states, self._positions(first, first + states.shape[2]))
        return states

    def _decode_into(self, states: Tensor, first: int) -> None:
        """Decode the packed columns from `first` on, block by block."""
        chunk = self.keeping.codec.chunk
        block = len(self._store)
        if states.device.type == "cpu":
            block = max(1, DECODE_BLOCK // (states[:, :, 0].numel() * chunk))
        for start in range(max(first - self.first, 0) // chunk, len(self._store), block):
            parts = self._store.read(start, min(start + block, len(self._store)))
            column = self.first + start * chunk
            decoded = self._decode(parts, column, states.dtype)
            skipped = max(first - column, 0)
            place = column + skipped - first
            states[:, :, place : place + decoded.shape[2] - skipped] = decoded[:, :, skipped:]

    def _with_unread_filled(self, states: Tensor) -> Tensor:
        """Put into padding and sinks, which are never read from a chunk, the chunk's first state that is.

        So they do not widen the range of the others.
        """
        chunk = self.keeping.codec.chunk
        first_read = self._starts.token + self.keeping.sinks
        if chunk == 1 or self.packed >= int(first_read.max()):
            return states
        columns = torch.arange(states.shape[2], device=states.device)
        last_of_chunk = columns // chunk * chunk + chunk - 1
        source = torch.maximum(columns, (first_read - self.packed)[:, None]).minimum(last_of_chunk)
        return states.gather(2, source[:, None, :, None].expand_as(states))

    def _keep_sinks(self, states: Tensor) -> None:
        """Keep those of the new columns that are among the first tokens of their row."""
        if self.keeping.sinks == 0:
            return
        if self._sinks is None:
            self._sinks = states.new_zeros((*states.shape[:2], self.keeping.sinks, states.shape[3]))
        columns = self._sink_columns() - self.length
        row, slot = ((columns >= 0) & (columns < states.shape[2])).nonzero(as_tuple=True)
        self._sinks[row, :, slot] = states[row, :, columns[row, slot]]

    def _sink_columns(self) -> Int[Tensor, "batch sink"]:
        token = self._starts.token
        return token[:, None] + torch.arange(self.keeping.sinks, device=token.device)

    def _put_sinks(self, states: Tensor, first: int) -> None:
        """Put the sinks in their places among the columns from `first` on."""
        if self._sinks is None:
            return
        columns = self._sink_columns() - first
        row, slot = ((columns >= 0) & (columns < states.shape[2])).nonzero(as_tuple=True)
        states[row, :, columns[row, slot]] = self._sinks[row, :, slot]
