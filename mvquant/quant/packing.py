"""Dense packing of small integers into int32 words, as compressed-tensors' `pack_to_int32` does.

Bit order: a row is one plain little-endian bit stream. Integer `i`, made non-negative by adding
`2^(bits-1)`, takes bits `i * bits` to `(i + 1) * bits - 1` of the row; bit `j` of the row is bit `j % 32` of
word `j // 32`. So 32 integers take `bits` words; at 3 bits an integer may straddle two words. The last word
of a row is filled up with zeros.
"""

import torch
from jaxtyping import Int8, Int32, UInt8
from torch import Tensor, nn


def packed_words(count: int, bits: int) -> int:
    """Words that `count` integers of `bits` bits take.

    >>> packed_words(32, 3), packed_words(33, 4)
    (3, 5)
    """
    return -(-count * bits // 32)


def pack(integers: Int8[Tensor, "rows columns"], bits: int) -> Int32[Tensor, "rows words"]:
    """Pack integers of `bits` bits (2, 3, 4 or 8) along the columns.

    >>> pack(torch.tensor([[-8, -7, -6]], dtype=torch.int8), 4)
    tensor([[528]], dtype=torch.int32)
    """
    rows, columns = integers.shape
    loose = torch.zeros(rows, -(-columns // 32) * 32, dtype=torch.uint8, device=integers.device)
    loose[:, :columns] = integers.view(torch.uint8) + (1 << (bits - 1)) & (1 << bits) - 1
    stream = loose if bits == 8 else _squeeze(loose, bits)
    return stream.view(torch.int32)[:, : packed_words(columns, bits)].contiguous()


def unpack(words: Int32[Tensor, "rows words"], bits: int, columns: int) -> Int8[Tensor, "rows columns"]:
    """Unpack `columns` integers of every row; the inverse of `pack`.

    >>> unpack(torch.tensor([[528]], dtype=torch.int32), 4, columns=3)
    tensor([[-8, -7, -6]], dtype=torch.int8)
    """
    missing = packed_words(-(-columns // 32) * 32, bits) - words.shape[1]
    whole = nn.functional.pad(words, (0, missing)) if missing else words
    stream = whole.contiguous().view(torch.uint8)
    loose = stream.clone() if bits == 8 else _spread(stream, bits)
    return loose[:, :columns].sub_(1 << (bits - 1)).view(torch.int8)


_GATHERED = {2: torch.int32, 3: torch.int64, 4: torch.int16}
"""Integers that fill whole bytes together (4, 8 and 2 of them), one byte each, are worked on as one of these."""


def _squeeze(loose: UInt8[Tensor, "rows bytes"], bits: int) -> UInt8[Tensor, "rows packed"]:
    """Close the gaps between integers of `bits` bits that lie in one byte each."""
    gathered = loose.view(_GATHERED[bits])
    for width in _widths(bits):
        used = bits * width // 8
        gathered = (gathered | gathered >> (width - used)) & _mask(2 * used, 2 * width, gathered.dtype)
    if bits == 3:
        return gathered.view(torch.uint8).view(len(loose), -1, 8)[..., :3].reshape(len(loose), -1)
    return gathered.to(torch.uint8)


def _spread(stream: UInt8[Tensor, "rows packed"], bits: int) -> UInt8[Tensor, "rows bytes"]:
    """Undo `_squeeze`."""
    if bits == 3:
        threes = stream.view(len(stream), -1, 3)
        gathered = nn.functional.pad(threes, (0, 5)).view(torch.int64).squeeze(-1)
    else:
        gathered = stream.to(_GATHERED[bits])
    for width in reversed(_widths(bits)):
        used = bits * width // 8
        gathered |= gathered << (width - used)
        gathered &= _mask(used, width, gathered.dtype)
    return gathered.view(torch.uint8)


def _widths(bits: int) -> list[int]:
    """Widths of the fields, from a byte on, that are moved together in pairs.

    >>> _widths(4), _widths(2), _widths(3)
    ([8], [8, 16], [8, 16, 32])
    """
    return [width for width in (8, 16, 32) if width < 8 * _GATHERED[bits].itemsize]


def _mask(used: int, width: int, dtype: torch.dtype) -> int:
    """The low `used` bits of every field of `width` bits.

    >>> hex(_mask(3, 16, torch.int64))
    '0x7000700070007'
    """
    return sum(((1 << used) - 1) << start for start in range(0, 8 * dtype.itemsize, width))
