"""Small pictures with a palette, as PNG data addresses: one byte a cell, enlarged by the browser."""

import base64
import struct
import zlib
from collections.abc import Sequence

from matplotlib import colormaps

Palette = tuple[bytes, bytes]
"""256 colours (red, green, blue), and their opacities."""

_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def viridis() -> Palette:
    """Return the map of the other pictures: dark is little, bright is much, whatever the eyes."""
    table = (colormaps["viridis"]([index / 255 for index in range(256)])[:, :3] * 255).round().astype("uint8")
    return table.tobytes(), b"\xff" * 256


def ink(red: int, green: int, blue: int) -> Palette:
    """Return one colour from invisible to full, so that the page's own ground, light or dark, shows through."""
    return bytes((red, green, blue)) * 256, bytes(range(256))


def data_address(cells: Sequence[Sequence[float]], palette: Palette) -> str:
    """Return a picture of rows of numbers from 0 to 1 as a `data:` address; the same numbers give the same bytes."""
    rows = [bytes(round(255 * min(1.0, max(0.0, value))) for value in row) for row in cells]
    header = struct.pack(">IIBBBBB", len(rows[0]), len(rows), 8, 3, 0, 0, 0)
    chunks = (
        (b"IHDR", header),
        (b"PLTE", palette[0]),
        (b"tRNS", palette[1]),
        (b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows), 9)),
        (b"IEND", b""),
    )
    picture = _SIGNATURE + b"".join(_chunk(kind, content) for kind, content in chunks)
    return f"data:image/png;base64,{base64.b64encode(picture).decode('ascii')}"


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
