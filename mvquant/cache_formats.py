"""Number formats of a cache: bits of K and of V, and where their scales come from. Pure data, no torch."""

from collections import Counter
from typing import Literal

from pydantic import BaseModel, ConfigDict, model_validator

KEY_BITS = (1, 2, 3, 4, 5, 6, 7, 8, 16)
"""Bits that a pair of K may have; 16 keeps it as it is."""

VALUE_BITS = (2, 3, 4, 8, 16)
"""Bits that V may have; 16 keeps it as it is."""

PIECES = (8, 4, 2, 1)
"""Integers are packed in pieces of so many bits: 7 bits are a piece of 4, one of 2 and one of 1."""

KeyScales = Literal["static", "channel", "token"]


class _Data(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class KeyFormat(_Data):
    """Where the scales of K come from.

    static   mean and deviation of every channel, measured beforehand and kept in the plan; nothing per token
    channel  one offset and one step for each channel of a chunk of tokens (Liu et al., KIVI, arXiv 2402.02750)
    token    one offset and one step for each token, head and width: pairs of other widths do not set the range

    With `scale_bits=8` the offset and step of a channel are stored relative to its measured mean and deviation.

    >>> KeyFormat(scales="channel", chunk=32).name
    'channel-32, scales of 16 bits, post-rope'
    """

    scales: KeyScales = "channel"
    chunk: int = 1
    scale_bits: Literal[8, 16] = 16
    stage: Literal["post-rope", "pre-rope"] = "post-rope"
    inv_freq: tuple[float, ...] = ()
    """Radians per token of each RoPE pair, for round trips of pre-RoPE plans; a cache takes the model's own."""

    @model_validator(mode="after")
    def _consistent(self) -> "KeyFormat":
        mistakes: list[str] = []
        if self.scales == "channel" and (self.chunk < 8 or self.chunk % 8):
            mistakes.append(f"chunk: {self.chunk} tokens; scales per channel need a multiple of 8, such as 32")
        if self.scales != "channel" and self.chunk != 1:
            mistakes.append(f"chunk: {self.chunk}, but {self.scales} scales encode every token alone: leave it at 1")
        if self.scales == "token" and self.scale_bits != 16:
            mistakes.append(f"scale_bits: {self.scale_bits}, but scales per token are stored in 16 bits")
        if mistakes:
            raise ValueError("; ".join(mistakes))
        return self

    @property
    def measured(self) -> bool:
        """Whether every channel needs its measured mean and deviation."""
        return self.scales == "static" or (self.scales == "channel" and self.scale_bits == 8)

    @property
    def name(self) -> str:
        """The format in a few words."""
        chunk = f"-{self.chunk}" if self.scales == "channel" else ""
        stored = "" if self.scales == "static" else f", scales of {self.scale_bits} bits"
        return f"{self.scales}{chunk}{stored}, {self.stage}"


class ValueFormat(_Data):
    """V: integers of `bits` bits per token, in groups of neighbouring dims with a scale and an offset each."""

    bits: Literal[2, 3, 4, 8, 16] = 16
    group_size: int = -1
    """Dims in a group; -1 for the whole head."""

    def groups(self, head_dim: int) -> int:
        """Groups in one head; 0 where V is kept as it is."""
        if self.bits == 16:
            return 0
        return 1 if self.group_size == -1 else head_dim // self.group_size

    def token_bytes(self, heads: int, head_dim: int, float_bits: int = 16) -> int:
        """Bytes of one token of one layer, scales and offsets included.

        >>> ValueFormat(bits=4, group_size=64).token_bytes(heads=2, head_dim=128)
        144
        """
        if self.bits == 16:
            return heads * head_dim * float_bits // 8
        packed = packed_bytes(Counter({self.bits: heads * head_dim}), chunk=1)
        return packed + 2 * SCALE_BYTES * heads * self.groups(head_dim)


SCALE_BYTES = 2
"""Scales, offsets and tables are float16 where they are not 8-bit codes."""


def packed_bytes(widths: Counter[int], chunk: int) -> int:
    """Bytes of packed integers, `widths[b]` channels of `b` bits, `chunk` tokens of each; pieces fill whole bytes.

    >>> packed_bytes(Counter({3: 6, 4: 2}), chunk=1)
    4
    """
    channels = {piece: sum(n for width, n in widths.items() if width & piece) for piece in PIECES}
    return sum(-(-count * chunk * piece // 8) for piece, count in channels.items())
