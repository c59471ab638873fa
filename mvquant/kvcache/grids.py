"""Where the levels of a channel lie: measured beforehand, per channel of a chunk, or per token.

Each grid turns float32 values `[batch, 1, chunks, tokens, channels]` into small integers and what is stored beside
them, and back. The second axis is 1: channels are those of all KV heads of a layer, sorted by width, widest first.
"""

from collections import Counter
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Float32, Int32, Int64, UInt8
from torch import Tensor

from mvquant.kvcache.codebooks import borders, normal_levels

Parts = dict[str, Tensor]
Values = Float32[Tensor, "batch one chunks tokens channels"]
Integers = UInt8[Tensor, "batch one chunks tokens channels"]


@runtime_checkable
class Grid(Protocol):
    """How values become integers of the widths that its channels have."""

    def stored(self) -> dict[str, tuple[int, torch.dtype]]:
        """Numbers per chunk, and their dtype, of each part that is kept beside the integers."""
        ...

    def encode(self, values: Values) -> tuple[Integers, Parts]:
        """Round values; return the integers and the parts beside them."""
        ...

    def decode(self, integers: Integers, parts: Parts) -> Values:
        """Return the values that the integers stand for."""
        ...

    def to(self, device: torch.device) -> "Grid":
        """The same grid with its tables on a device."""
        ...


def tops(widths: list[int]) -> Float32[Tensor, " channels"]:
    """The largest integer of every channel.

    >>> tops([8, 2, 1])
    tensor([255.,   3.,   1.])
    """
    return torch.tensor([float((1 << width) - 1) for width in widths])


@dataclass(frozen=True, eq=False)
class StaticGrid:
    """Mean and deviation of every channel are known: normal levels around them, nothing stored."""

    widths: tuple[int, ...]
    center: Float32[Tensor, " channels"]
    spread: Float32[Tensor, " channels"]
    borders: tuple[Tensor, ...]
    """Of every width that occurs, widest first, as the channels are sorted."""
    levels: Float32[Tensor, " level"]
    """Of all these widths, one after the other."""
    start: Int32[Tensor, " channels"]
    """Where in `levels` a channel's own begin."""

    def stored(self) -> dict[str, tuple[int, torch.dtype]]:  # noqa: D102
        return {}

    def encode(self, values: Values) -> tuple[Integers, Parts]:  # noqa: D102
        normal = (values - self.center) / self.spread
        counts = [self.widths.count(width) for width in _distinct(self.widths)]
        runs = zip(normal.split(counts, dim=-1), self.borders, strict=True)
        return torch.cat(
            [torch.bucketize(run.contiguous(), inner, out_int32=True).to(torch.uint8) for run, inner in runs], dim=-1
        ), {}

    def decode(self, integers: Integers, parts: Parts) -> Values:  # noqa: ARG002, D102
        # a look-up in a flat table by 32-bit integers is what torch does fastest
        levels = self.levels.index_select(0, (integers + self.start).flatten()).view(integers.shape)
        return levels.mul_(self.spread).add_(self.center)

    def to(self, device: torch.device) -> "StaticGrid":  # noqa: D102
        moved = {name: getattr(self, name).to(device) for name in ("center", "spread", "levels", "start")}
        return replace(self, borders=tuple(inner.to(device) for inner in self.borders), **moved)


def static_grid(
    widths: list[int], center: Float[Tensor, " channels"], spread: Float[Tensor, " channels"]
) -> StaticGrid:
    """Make the grid of channels with these widths, sorted downwards, means and deviations."""
    distinct = _distinct(widths)
    levels = [normal_levels(width).float() for width in distinct]
    sizes = torch.tensor([0, *(len(each) for each in levels)]).cumsum(0)
    return StaticGrid(
        widths=tuple(widths),
        center=center.float(),
        spread=_positive(spread.float()),
        borders=tuple(borders(each.double()).float() for each in levels),
        levels=torch.cat(levels),
        start=torch.tensor([int(sizes[distinct.index(width)]) for width in widths], dtype=torch.int32),
    )


_CLIPS = (1.0, 0.8, 0.6)
"""Fractions of the range of a channel that its grid is first stretched over."""
_REFINEMENTS = 2
"""Rounds of least squares after that."""


@dataclass(frozen=True, eq=False)
class ChannelGrid:
    """One offset and one step for each channel of a chunk, with the least squared error that was found."""

    top: Float32[Tensor, " channels"]
    center: Float32[Tensor, " channels"] | None = None
    """With `spread`: offsets and steps are 8-bit codes relative to them. Without: float16."""
    spread: Float32[Tensor, " channels"] | None = None

    def stored(self) -> dict[str, tuple[int, torch.dtype]]:  # noqa: D102
        dtype = torch.float16 if self.center is None else torch.uint8
        return {"offset": (len(self.top), dtype), "step": (len(self.top), dtype)}

    def encode(self, values: Values) -> tuple[Integers, Parts]:  # noqa: D102
        parts = self._stored(*_fit(values, self.top))
        offset, step = self._read(parts)
        return _round(values, offset, step, self.top).to(torch.uint8), parts

    def decode(self, integers: Integers, parts: Parts) -> Values:  # noqa: D102
        offset, step = self._read(parts)
        return integers.float().mul_(step).add_(offset)

    def to(self, device: torch.device) -> "ChannelGrid":  # noqa: D102
        moved = [None if table is None else table.to(device) for table in (self.center, self.spread)]
        return ChannelGrid(self.top.to(device), *moved)

    def _stored(self, offset: Tensor, step: Tensor) -> Parts:
        if self.center is None or self.spread is None:
            return {"offset": _half(offset).squeeze(-2), "step": _half(step).squeeze(-2)}
        place = torch.asinh((offset - self.center) / self.spread / 2) * _PLACES + _MIDDLE
        size = torch.log2(step / self.spread) * _SIZES + _UNIT
        return {name: _byte(code).squeeze(-2) for name, code in (("offset", place), ("step", size))}

    def _read(self, parts: Parts) -> tuple[Tensor, Tensor]:
        offset, step = (parts[name].unsqueeze(-2).float() for name in ("offset", "step"))
        if self.center is None or self.spread is None:
            return offset, step
        place = 2 * torch.sinh((offset - _MIDDLE) / _PLACES)
        return self.center + self.spread * place, self.spread * torch.exp2((step - _UNIT) / _SIZES)


_PLACES, _MIDDLE = 32, 128
"""8-bit offsets: near a channel's mean in sixteenths of its deviation, then ever wider apart, up to 53 deviations.

Tokens that serve as attention sinks lie that far from all others, and may stand anywhere.
"""
_SIZES, _UNIT = 16, 160
"""8-bit steps: sixteenths of an octave, from 2^-10 to 2^5.9 deviations."""


@dataclass(frozen=True, eq=False)
class TokenGrid:
    """One offset and one step for each token and group of channels: the range of their values."""

    top: Float32[Tensor, " channels"]
    group: Int64[Tensor, " channels"]
    """Number of each channel's group, rising."""
    runs: tuple[tuple[int, int], ...]
    """Neighbouring groups of one size, as (groups, channels in each)."""

    @property
    def groups(self) -> int:
        """How many there are."""
        return sum(count for count, _ in self.runs)

    def stored(self) -> dict[str, tuple[int, torch.dtype]]:  # noqa: D102
        return {"offset": (self.groups, torch.float16), "step": (self.groups, torch.float16)}

    def encode(self, values: Values) -> tuple[Integers, Parts]:  # noqa: D102
        low, high = self._extreme(values, "amin"), self._extreme(values, "amax")
        group_top = torch.ones(self.groups, device=values.device).scatter(0, self.group, self.top)
        parts = {"offset": _half(low).squeeze(-2), "step": _half((high - low) / group_top).squeeze(-2)}
        offset, step = self._read(parts)
        return _round(values, offset, step, self.top).to(torch.uint8), parts

    def decode(self, integers: Integers, parts: Parts) -> Values:  # noqa: D102
        values = integers.float()
        channel = group = 0
        for count, size in self.runs:
            run = values[..., channel : channel + count * size].unflatten(-1, (count, size))
            offset, step = (parts[name][..., None, group : group + count, None].float() for name in ("offset", "step"))
            run.mul_(step).add_(offset)
            channel, group = channel + count * size, group + count
        return values

    def to(self, device: torch.device) -> "TokenGrid":  # noqa: D102
        return TokenGrid(self.top.to(device), self.group.to(device), self.runs)

    def _extreme(self, values: Values, reduce: str) -> Tensor:
        found = values.new_zeros((*values.shape[:-1], self.groups))
        return found.scatter_reduce_(-1, self.group.expand(values.shape), values, reduce, include_self=False)

    def _read(self, parts: Parts) -> tuple[Tensor, Tensor]:
        offset, step = (parts[name].unsqueeze(-2).float()[..., self.group] for name in ("offset", "step"))
        return offset, step


def token_grid(widths: list[int], groups: list[int]) -> TokenGrid:
    """Make the grid of channels with these widths, each in a group; groups are numbered upwards, without gaps.

    >>> token_grid([4, 4, 4, 4, 2], groups=[0, 0, 1, 1, 2]).runs
    ((2, 2), (1, 1))
    """
    sizes = Counter(groups).values()
    runs = tuple((len(list(same)), size) for size, same in groupby(sizes))
    return TokenGrid(tops(widths), torch.tensor(groups), runs)


def _fit(values: Values, top: Float32[Tensor, " channels"]) -> tuple[Tensor, Tensor]:
    """Find offset and step of every channel of a chunk: clipped ranges, refined by least squares; the best of them."""
    low, high = values.amin(-2, keepdim=True), values.amax(-2, keepdim=True)
    mean = values.mean(-2, keepdim=True)
    best = (low, torch.zeros_like(low), torch.full_like(low, torch.inf))
    for clip in _CLIPS:
        step = (high - low) * clip / top
        offset = (low + high - top * step) / 2
        for _ in range(_REFINEMENTS):
            offset, step = _least_squares(values, mean, _round(values, offset, step, top), step)
        error = (_round(values, offset, step, top) * step + offset - values).square().sum(-2, keepdim=True)
        better = error < best[2]
        best = tuple(torch.where(better, new, old) for new, old in zip((offset, step, error), best, strict=True))
    return best[0], best[1]


def _least_squares(values: Tensor, mean: Tensor, integers: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
    """The offset and step that fit the values best, their integers as they are."""
    middle = integers.mean(-2, keepdim=True)
    variance = (integers - middle).square().mean(-2, keepdim=True)
    covariance = ((integers - middle) * (values - mean)).mean(-2, keepdim=True)
    step = torch.where(variance > 0, covariance / variance, step)
    return mean - step * middle, step


def _round(values: Tensor, offset: Tensor, step: Tensor, top: Tensor) -> Tensor:
    """Round to the nearest integer from 0 to `top`; a grid without a step has integers 0 alone."""
    return torch.minimum(((values - offset) / _positive(step)).round_().clamp_(min=0), top)


def _positive(step: Tensor) -> Tensor:
    return torch.where(step > 0, step, torch.ones_like(step))


def _half(values: Tensor) -> Tensor:
    largest = torch.finfo(torch.float16).max
    return values.clamp(-largest, largest).half()


def _byte(codes: Tensor) -> Tensor:
    return codes.nan_to_num(nan=0.0).round().clamp(0, 255).to(torch.uint8)


def _distinct(widths: list[int] | tuple[int, ...]) -> list[int]:
    return sorted(set(widths), reverse=True)
