"""How states are kept: the settings of one role (K or V) in one layer, and what is kept in bytes."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mvquant.kvcache.frame import RotaryFrame
from mvquant.kvcache.store import Parts


@runtime_checkable
class StateCodec(Protocol):
    """What packs states: see `mvquant.kvcache.codec`."""

    @property
    def chunk(self) -> int:
        """Tokens that are encoded together; 1 where each has its own scales."""
        ...

    def encode(self, states: Float[Tensor, "batch head token head_dim"]) -> Parts:
        """Pack whole chunks of states."""
        ...

    def decode(self, parts: Parts, dtype: torch.dtype) -> Float[Tensor, "batch head token head_dim"]:
        """Return the states that packed chunks stand for."""
        ...


class AsTheyCome:
    """The codec of states that are not to be rounded."""

    chunk = 1

    def encode(self, states: Float[Tensor, "batch head token head_dim"]) -> Parts:
        """Return the states as they are."""
        return {"states": states}

    def decode(self, parts: Parts, dtype: torch.dtype) -> Float[Tensor, "batch head token head_dim"]:
        """Return the states as they were."""
        return parts["states"].to(dtype)


@dataclass(frozen=True)
class Keeping:
    """How the states of one role in one layer are kept: pure settings, shared by all caches of a plan."""

    codec: StateCodec
    window: int = 0
    """Newest tokens that stay in full precision."""
    sinks: int = 0
    """First tokens of each row that stay in full precision."""
    frame: RotaryFrame | None = None
    """Where given, the states are packed as they were before RoPE."""

    @property
    def lossless(self) -> bool:
        """Whether reading gives back the very states that came."""
        return isinstance(self.codec, AsTheyCome)

    def packed_columns(self, length: int) -> int:
        """Columns that are packed once `length` have been seen.

        >>> keeping = Keeping(AsTheyCome(), window=10)
        >>> [keeping.packed_columns(length) for length in (5, 42)]
        [0, 32]
        """
        return max(length - self.window, 0) // self.codec.chunk * self.codec.chunk


@dataclass(frozen=True)
class RowStarts:
    """Where each row of a batch begins: the column of its first token, and the column whose position is 0.

    These are the same where positions are counted from the first token, as `generate` does.
    """

    token: Int[Tensor, " row"]
    position: Int[Tensor, " row"]

    def select(self, rows: Int[Tensor, " chosen"]) -> "RowStarts":
        """Those of some rows."""
        return RowStarts(self.token.index_select(0, rows), self.position.index_select(0, rows))

    def to(self, device: torch.device) -> "RowStarts":
        """The same on a device."""
        return RowStarts(self.token.to(device), self.position.to(device))


@dataclass(frozen=True)
class HeldBytes:
    """Bytes that a cache holds: packed (scales included), in full precision, and allocated without use."""

    packed: int
    full_precision: int
    reserved: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.packed + self.full_precision + self.reserved

    def __add__(self, other: "HeldBytes") -> "HeldBytes":
        """Bytes of two layers together."""
        return HeldBytes(
            self.packed + other.packed,
            self.full_precision + other.full_precision,
            self.reserved + other.reserved,
        )
