"""Turning K and V of one layer into packed integers and back, a chunk of tokens at a time.

Every part has the chunks at dim 2 and the batch at dim 0, so a cache appends by concatenation, crops by narrowing and
reorders beams by indexing; the past is never encoded again. Dim 1 is 1: the heads of a layer are packed together,
because they may have different bits.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from mvquant.cache_plan import CachePlan, LayerKeys
from mvquant.errors import PlanError
from mvquant.kvcache.grids import ChannelGrid, Grid, Parts, static_grid, token_grid, tops
from mvquant.kvcache.packing import Piece, pack, pieces_of, unpack

States = Float[Tensor, "batch head tokens head_dim"]


@dataclass(frozen=True, eq=False)
class Channels:
    """Which (head, dim) of a layer are packed, in which order, and which are kept as they are."""

    heads: int
    head_dim: int
    coded: Int64[Tensor, " coded"]
    """Flat indices `head * head_dim + dim`, widest first."""
    kept: Int64[Tensor, " kept"]
    places: Int64[Tensor, " channel"] | None
    """Where each (head, dim) lies among the coded and then the kept; None if they are in order."""
    pieces: tuple[Piece, ...]

    def in_order(self, values: list[Float[Tensor, "..."]]) -> Float[Tensor, "*rows channel"]:
        """Put the coded and the kept, whichever there are, in the order of heads and dims."""
        rows = values[0] if len(values) == 1 else torch.cat([each.float() for each in values], dim=-1)
        if self.places is None:
            return rows
        # rows of 32-bit numbers are what torch gathers fastest
        return rows.flatten(0, -2).index_select(1, self.places).view(rows.shape)

    def to(self, device: torch.device) -> "Channels":
        """The same with its indices on a device."""
        moved = {name: getattr(self, name).to(device) for name in ("coded", "kept")}
        return replace(self, places=None if self.places is None else self.places.to(device), **moved)


class Codec:
    """Encodes the K or V of one layer; made by `key_codec` and `value_codec`.

    Attributes:
        chunk: tokens that are encoded together.
        dtype: of the numbers that are kept as they are.
    """

    def __init__(self, channels: Channels, grid: Grid | None, chunk: int, dtype: torch.dtype) -> None:
        self.chunk = chunk
        self.dtype = dtype
        self._channels = channels
        self._grid = grid
        self._device = channels.coded.device

    @property
    def bytes_per_chunk(self) -> int:
        """Bytes of all parts of one chunk of one sequence: those of the plan, exactly."""
        return sum(columns * dtype.itemsize for columns, dtype in self._columns().values())

    @property
    def bytes_per_token(self) -> float:
        """Bytes of all parts by tokens."""
        return self.bytes_per_chunk / self.chunk

    def empty(self, batch: int, chunks: int, device: torch.device | None = None) -> Parts:
        """Storage for so many chunks, to write parts into."""
        return {
            name: torch.empty(batch, 1, chunks, columns, dtype=dtype, device=device)
            for name, (columns, dtype) in self._columns().items()
        }

    def encode(self, states: States) -> Parts:
        """Encode whole chunks.

        Args:
            states: K (before or after RoPE, as the plan says) or V, a multiple of `chunk` tokens.

        Returns:
            Parts of shape `[batch, 1, chunks, columns]`.

        Raises:
            PlanError: states of other heads than the plan's, or tokens that do not fill their chunks.
        """
        self._check(states)
        self._move(states.device)
        batch, _, tokens, _ = states.shape
        rows = states.transpose(1, 2).reshape(batch, 1, tokens // self.chunk, self.chunk, -1)
        parts: Parts = {}
        if len(self._channels.kept):
            parts["kept"] = rows[..., self._channels.kept].to(self.dtype).flatten(-2)
        if self._grid is not None:
            integers, beside = self._grid.encode(rows[..., self._channels.coded].float())
            parts |= {"codes": pack(integers, self._channels.pieces), **beside}
        return parts

    def decode(self, parts: Parts, dtype: torch.dtype) -> States:
        """Return the states that parts stand for."""
        any_part = next(iter(parts.values()))
        self._move(any_part.device)
        channels = self._channels
        rows: list[Tensor] = []
        if self._grid is not None:
            integers = unpack(parts["codes"], channels.pieces, self.chunk, len(channels.coded))
            rows.append(self._grid.decode(integers, parts))
        if len(channels.kept):
            rows.append(parts["kept"].unflatten(-1, (self.chunk, -1)))
        states = channels.in_order(rows).to(dtype)
        return states.flatten(1, 3).unflatten(-1, (channels.heads, channels.head_dim)).transpose(1, 2)

    def _columns(self) -> dict[str, tuple[int, torch.dtype]]:
        """Columns and dtype of every part."""
        columns: dict[str, tuple[int, torch.dtype]] = {}
        if len(self._channels.kept):
            columns["kept"] = (len(self._channels.kept) * self.chunk, self.dtype)
        if self._grid is not None:
            size = sum(piece.bytes(self.chunk) for piece in self._channels.pieces)
            columns |= {"codes": (size, torch.uint8), **self._grid.stored()}
        return columns

    def _check(self, states: States) -> None:
        _, heads, tokens, head_dim = states.shape
        expected = self._channels.heads, self._channels.head_dim
        if (heads, head_dim) != expected:
            message = f"states have {heads} KV heads of {head_dim} dims, the cache plan {expected[0]} of {expected[1]}"
            raise PlanError(f"{message}: it is for another model")
        if tokens % self.chunk:
            raise PlanError(f"{tokens} tokens do not fill chunks of {self.chunk}: keep the rest in full precision")

    def _move(self, device: torch.device) -> None:
        if device != self._device:
            self._channels = self._channels.to(device)
            self._grid = None if self._grid is None else self._grid.to(device)
            self._device = device


def key_codec(plan: CachePlan, layer: int, dtype: torch.dtype = torch.bfloat16) -> Codec:
    """Make the codec of K in a decoder layer.

    Args:
        plan: the cache plan.
        layer: number of the decoder layer.
        dtype: of the model's states; pairs of 16 bits are kept in it.

    Raises:
        PlanError: the plan has no such layer.

    >>> from mvquant.cache_formats import KeyFormat
    >>> from mvquant.cache_plan import HeadKeys
    >>> heads = (HeadKeys(bits=(8, 2)),)
    >>> layers = (LayerKeys(layer=0, heads=heads),)
    >>> plan = CachePlan(head_dim=4, rotary_dim=4, keys=KeyFormat(scales="token"), layers=layers)
    >>> codec = key_codec(plan, layer=0)
    >>> codec.bytes_per_token
    11.0
    >>> codec.decode(codec.encode(torch.tensor([[[[255.0, -2.0, 0.0, 1.0]]]])), torch.float32)
    tensor([[[[255.,  -2.,   0.,   1.]]]])
    """
    keys = _layer(plan, layer)
    widths = [width for head in keys.heads for width in plan.dim_bits(head)]
    channels = _channels(widths, len(keys.heads), plan.head_dim)
    return Codec(channels, _key_grid(plan, keys, widths, channels), plan.keys.chunk, dtype)


def value_codec(plan: CachePlan, layer: int, dtype: torch.dtype = torch.bfloat16) -> Codec:
    """Make the codec of V in a decoder layer; see `key_codec`."""
    heads = len(_layer(plan, layer).heads)
    widths = [int(plan.values.bits)] * (heads * plan.head_dim)
    channels = _channels(widths, heads, plan.head_dim)
    groups = heads * plan.values.groups(plan.head_dim)
    if not groups:
        return Codec(channels, None, 1, dtype)
    size = len(widths) // groups
    return Codec(channels, token_grid(widths, [index // size for index in range(len(widths))]), 1, dtype)


def _layer(plan: CachePlan, layer: int) -> LayerKeys:
    found = next((keys for keys in plan.layers if keys.layer == layer), None)
    if found is None:
        raise PlanError(f"the cache plan has no layer {layer}; it has {[keys.layer for keys in plan.layers]}")
    return found


def _channels(widths: list[int], heads: int, head_dim: int) -> Channels:
    coded = sorted((index for index, width in enumerate(widths) if width < 16), key=lambda index: -widths[index])
    kept = [index for index, width in enumerate(widths) if width >= 16]
    order = torch.tensor([*coded, *kept])
    return Channels(
        heads,
        head_dim,
        coded=torch.tensor(coded, dtype=torch.int64),
        kept=torch.tensor(kept, dtype=torch.int64),
        places=order.argsort() if coded + kept != sorted(coded + kept) else None,
        pieces=pieces_of([widths[index] for index in coded]),
    )


def _key_grid(plan: CachePlan, keys: LayerKeys, widths: list[int], channels: Channels) -> Grid | None:
    coded = channels.coded.tolist()
    if not coded:
        return None
    sorted_widths = [widths[index] for index in coded]
    if plan.keys.scales == "token":
        names = [(index // plan.head_dim, widths[index]) for index in coded]
        order = {name: number for number, name in enumerate(dict.fromkeys(names))}
        return token_grid(sorted_widths, [order[name] for name in names])
    if not plan.keys.measured:
        return ChannelGrid(tops(sorted_widths))
    center, spread = (
        torch.tensor([value for head in keys.heads for value in getattr(head, name)])[channels.coded]
        for name in ("center", "spread")
    )
    if plan.keys.scales == "static":
        return static_grid(sorted_widths, center, spread)
    return ChannelGrid(tops(sorted_widths), center, spread)
