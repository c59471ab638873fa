"""Dense packing of integers of 1 to 8 bits into bytes, many channels of different widths together.

An integer is cut into pieces of 8, 4, 2 and 1 bits (5 = 4 + 1), largest piece in its low bits. Pieces of one size lie
together, filled up to whole bytes: so a byte holds 1, 2, 4 or 8 of them, and no integer straddles two bytes. Bytes
hold pieces that lie far apart, the first ones in their low bits, so that all pieces of one field are neighbours and
unpacking moves long runs. `mvquant.quant.packing` keeps one width for whole rows of 32-bit words instead; here widths
differ within a row.
"""

from dataclasses import dataclass

import torch
from jaxtyping import UInt8
from torch import Tensor, nn

from mvquant.cache_formats import PIECES


@dataclass(frozen=True)
class Piece:
    """The channels that have a piece of `bits` bits, and by how much it is shifted in each.

    Channels are sorted by width, so they are few runs: `runs` holds (start, stop, shift) of each.
    """

    bits: int
    runs: tuple[tuple[int, int, int], ...]

    @property
    def channels(self) -> int:
        """How many channels have such a piece."""
        return sum(stop - start for start, stop, _ in self.runs)

    def bytes(self, chunk: int) -> int:
        """Bytes of this piece of all its channels, for `chunk` tokens."""
        return -(-self.channels * chunk * self.bits // 8)


def pieces_of(widths: list[int]) -> tuple[Piece, ...]:
    """Cut channels of these widths, sorted downwards, into pieces.

    >>> [(piece.bits, piece.runs) for piece in pieces_of([4, 3, 3, 2])]
    [(4, ((0, 1, 0),)), (2, ((1, 3, 0), (3, 4, 0))), (1, ((1, 3, 2),))]
    """
    found: list[Piece] = []
    for bits in PIECES:
        runs = tuple(
            (widths.index(width), widths.index(width) + widths.count(width), _shift(width, bits))
            for width in sorted(set(widths), reverse=True)
            if width & bits
        )
        if runs:
            found.append(Piece(bits, runs))
    return tuple(found)


def _shift(width: int, bits: int) -> int:
    """Where a piece lies in an integer: above the larger pieces.

    >>> _shift(7, 4), _shift(7, 2), _shift(7, 1)
    (0, 4, 6)
    """
    return sum(piece for piece in PIECES if piece > bits and width & piece)


def pack(integers: UInt8[Tensor, "*rows tokens channels"], pieces: tuple[Piece, ...]) -> UInt8[Tensor, "*rows bytes"]:
    """Pack the integers of a chunk of tokens; channels in the order that `pieces` were cut for.

    >>> pack(torch.tensor([[9, 5, 3, 1]], dtype=torch.uint8), pieces_of([4, 3, 3, 2])).tolist()
    [9, 29, 1]
    """
    streams = [_squeeze(_cut(integers, piece).flatten(-2), piece.bits) for piece in pieces]
    return torch.cat(streams, dim=-1) if streams else integers.new_empty((*integers.shape[:-2], 0))


def unpack(
    packed: UInt8[Tensor, "*rows bytes"], pieces: tuple[Piece, ...], tokens: int, channels: int
) -> UInt8[Tensor, "*rows tokens channels"]:
    """Undo `pack`.

    >>> unpack(torch.tensor([9, 29, 1], dtype=torch.uint8), pieces_of([4, 3, 3, 2]), tokens=1, channels=4).tolist()
    [[9, 5, 3, 1]]
    """
    integers = packed.new_empty((*packed.shape[:-1], tokens, channels))
    start = 0
    for piece in pieces:
        size = piece.bytes(tokens)
        loose = _spread(packed[..., start : start + size], piece.bits)[..., : tokens * piece.channels]
        loose = loose.unflatten(-1, (tokens, piece.channels))
        if len(pieces) == 1:
            return loose
        _place(integers, loose, piece)
        start += size
    return integers


def _cut(integers: UInt8[Tensor, "*rows tokens channels"], piece: Piece) -> UInt8[Tensor, "*rows tokens some"]:
    mask = (1 << piece.bits) - 1
    return torch.cat([integers[..., start:stop] >> shift & mask for start, stop, shift in piece.runs], dim=-1)


def _place(
    integers: UInt8[Tensor, "*rows tokens channels"], loose: UInt8[Tensor, "*rows tokens some"], piece: Piece
) -> None:
    """Put a piece into its integers; the largest of each comes first, and has no shift."""
    done = 0
    for start, stop, shift in piece.runs:
        run = loose[..., done : done + stop - start]
        if shift:
            integers[..., start:stop] |= run << shift
        else:
            integers[..., start:stop] = run
        done += stop - start


def _squeeze(loose: UInt8[Tensor, "*rows count"], bits: int) -> UInt8[Tensor, "*rows bytes"]:
    """Put as many pieces as fit into every byte: the first ones, one to a byte, in the low bits, and so on."""
    per_byte = 8 // bits
    if per_byte == 1:
        return loose
    missing = -loose.shape[-1] % per_byte
    fields = nn.functional.pad(loose, (0, missing)).unflatten(-1, (per_byte, -1))
    packed = fields[..., 0, :].clone()
    for field in range(1, per_byte):
        packed |= fields[..., field, :] << field * bits
    return packed


def _spread(packed: UInt8[Tensor, "*rows bytes"], bits: int) -> UInt8[Tensor, "*rows count"]:
    """Undo `_squeeze`, up to the pieces that fill the last byte."""
    if bits == 8:
        return packed
    mask = (1 << bits) - 1
    return torch.cat([packed >> shift & mask for shift in range(0, 8, bits)], dim=-1)
