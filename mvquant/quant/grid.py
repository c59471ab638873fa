"""Grids: which integers stand for which weights. Fitting a grid and applying it are two functions.

A group of `group_size` neighbouring columns of one row has one scale and, if asymmetric, one zero point:
`weight ~ (integer - zero_point) * scale` with integers in `[-2^(bits-1), 2^(bits-1) - 1]`.

The grid is compressed-tensors' (`calculate_qparams`): zero always lies on it, a symmetric scale is
`2 * amax / (2^bits - 1)`, a group of zeros gets the scale `eps`, and scales are stored in the weight's dtype.
But quotients are float32, where theirs have the weight's dtype: bfloat16 weights are rounded once, not twice.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int8
from torch import Tensor

from mvquant.errors import PlanError
from mvquant.scheme import WeightScheme

QUANTIZE_BLOCK = 1 << 18
"""Weights rounded at once: their float32 copy (1 MiB) stays in the cache."""


@dataclass(frozen=True)
class Grid:
    """Scales and zero points of the groups of a weight matrix; no zero points if symmetric."""

    scale: Float[Tensor, "rows groups"]
    zero_point: Int8[Tensor, "rows groups"] | None = None


def fit_grid(weight: Float[Tensor, "rows columns"], scheme: WeightScheme) -> Grid:
    """Fit the grid of `scheme` to the range of every group (round to nearest).

    NaN and infinite weights give NaN and infinite scales; callers refuse them beforehand.

    Raises:
        PlanError: the group size does not divide the columns, or the scheme keeps floats.

    >>> fit_grid(torch.tensor([[0.0, -1.5, 0.75, 0.0]]), WeightScheme(bits=4, group_size=-1)).scale
    tensor([[0.2000]])
    """
    grouped = _grouped(weight, scheme)
    low, high = grouped.amin(dim=-1).float().clamp(max=0), grouped.amax(dim=-1).float().clamp(min=0)
    if scheme.symmetric:
        return Grid(_stored(torch.maximum(-low, high) / (steps(scheme) / 2), weight.dtype))
    scale = (high - low) / steps(scheme)
    smallest = -(1 << (scheme.bits - 1))
    zero_point = (smallest - low / scale).clamp(smallest, -smallest - 1).nan_to_num(nan=0.0).round()
    return Grid(_stored(scale, weight.dtype), zero_point.to(torch.int8))


def quantize(weight: Float[Tensor, "rows columns"], grid: Grid, scheme: WeightScheme) -> Int8[Tensor, "rows columns"]:
    """Round weights to the integers of their grid.

    >>> scheme = WeightScheme(bits=4, group_size=-1)
    >>> quantize(torch.tensor([[-1.5, 0.5]]), Grid(torch.tensor([[0.2]])), scheme)
    tensor([[-8,  2]], dtype=torch.int8)
    """
    integers = torch.empty_like(weight, dtype=torch.int8)
    grouped, target = _grouped(weight, scheme), _grouped(integers, scheme)
    smallest = -(1 << (scheme.bits - 1))
    for block in row_blocks(len(weight), weight.shape[1], QUANTIZE_BLOCK):
        ratio = grouped[block].float() / grid.scale[block, :, None].float()
        if grid.zero_point is not None:
            ratio += grid.zero_point[block, :, None]
        target[block] = ratio.round_().clamp_(smallest, -smallest - 1)
    return integers


def dequantize(
    integers: Int8[Tensor, "rows columns"], grid: Grid, scheme: WeightScheme, dtype: torch.dtype
) -> Float[Tensor, "rows columns"]:
    """Return the weights that integers stand for: exact products, rounded once to `dtype`.

    >>> scheme = WeightScheme(bits=4, group_size=-1)
    >>> dequantize(torch.tensor([[-8, 2]], dtype=torch.int8), Grid(torch.tensor([[0.5]])), scheme, torch.float32)
    tensor([[-4.,  1.]])
    """
    # int8 differences are exact in every floating dtype, so that the wider of the two dtypes is wide enough.
    working = torch.promote_types(grid.scale.dtype, dtype)
    value = _grouped(integers, scheme).to(working)
    if grid.zero_point is not None:
        value -= grid.zero_point[:, :, None]
    return value.mul_(grid.scale[:, :, None]).to(dtype).view(integers.shape)


def steps(scheme: WeightScheme) -> int:
    """Steps from the smallest to the largest integer.

    >>> steps(WeightScheme(bits=4))
    15
    """
    return (1 << scheme.bits) - 1


def row_blocks(rows: int, columns: int, weights: int) -> Iterator[slice]:
    """Cut rows into blocks of at most `weights` weights, or of one row.

    >>> list(row_blocks(5, columns=10, weights=20))
    [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    size = max(1, weights // columns)
    return (slice(start, min(start + size, rows)) for start in range(0, rows, size))


def _grouped(matrix: Tensor, scheme: WeightScheme) -> Tensor:
    """View `[rows, columns]` as `[rows, groups, group_size]`."""
    rows, columns = matrix.shape
    if not scheme.is_quantized:
        message = f"scheme {scheme.name} keeps rows as floats: there is no grid to fit"
        raise PlanError(message)
    if scheme.group_size > 0 and columns % scheme.group_size:
        message = (
            f"group size {scheme.group_size} does not divide {columns} columns: "
            "choose a smaller group_size, or -1 for the whole row"
        )
        raise PlanError(message)
    return matrix.view(rows, scheme.groups(columns), -1)


def _stored(scale: Float[Tensor, "rows groups"], dtype: torch.dtype) -> Float[Tensor, "rows groups"]:
    """Round scales to their storage dtype and keep zero out of it."""
    scale = scale.to(dtype)
    return scale.masked_fill(scale == 0, torch.finfo(dtype).eps)
