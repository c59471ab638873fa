"""A faster way to compute a mixed-row linear for few rows of states: torch's int4 kernels.

The definition is plain torch, `mvquant.quant.products.definition_linear`; everything here equals it up to one
bfloat16 rounding of the weights and two of the result, and steps aside where it cannot.

The kernels multiply bfloat16 states by a matrix of 4-bit integers in groups of 32, 64 or 128 columns:
`weight = (nibble - 8) * scale + zero`. Every scheme fits:

    2, 3 bits     widened to 4; a zero point is subtracted from the integers, which is exact
    4 bits        as they are; a zero point becomes `zero = -zero_point * scale`
    8 bits        two rows, `16 * high + low`: the high nibbles in the row's own place, the low ones in an
                  extra row at the end, whose product is added to that of the row
    floats        the row's own place stays zero; its product comes from a small dense matrix

So one call computes base and protected rows together, in their final order. (torch's int8 kernel takes one
scale a row; called group by group it is no faster for protected rows: see benchmarks/linear.py.) A layout holds a
second copy of the weight (4 bits for each weight of up to 4 bits, 8 for protected ones). It is made at first use,
is never saved, and is dropped when the module is moved, cast, loaded or copied.
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int8, Int64
from torch import Tensor, nn

from mvquant.quant.grid import Grid
from mvquant.quant.int8 import has_int8_kernel
from mvquant.quant.rows import MixedRows
from mvquant.quant.state import DEQUANTIZE_BLOCK, integer_blocks, state_parts
from mvquant.scheme import WeightScheme

MOST_STATES = 48
"""Above this many rows of states, dequantizing and a dense product are faster (benchmarks/linear.py)."""

GROUP_SIZES = (128, 64, 32)
"""Group sizes that the kernels know, widest first."""

ROW_TILE = 64
"""The kernels read the matrix in tiles of rows; it is filled up with zeros to whole tiles."""

INNER_TILES = 8
"""Tiles of 16 columns that one CUDA thread block keeps together; without effect on the CPU."""

_MULTIPLY_CPU = torch.ops.aten._weight_int4pack_mm_for_cpu.default
_MULTIPLY_CUDA = torch.ops.aten._weight_int4pack_mm.default

Path = Literal["int4", "int8", "blocks", "definition"]
"""Ways to compute a product: a kernel for integers, dequantizing blocks of rows, or dequantizing all of them."""


@dataclass(frozen=True)
class Layout:
    """One weight as the int4 kernel reads it.

    `doubled` are the rows with 8 bits, whose low nibbles follow the `rows` rows; `dense_rows` those kept as floats.
    """

    sources: tuple[Tensor, ...]
    rows: int
    group_size: int
    nibbles: Tensor
    scale_and_zero: Float[Tensor, "groups padded_rows 2"]
    doubled: Int64[Tensor, " doubled"]
    dense_rows: Int64[Tensor, " dense"]
    dense_weight: Float[Tensor, "dense columns"] | None


def choose_path(module: MixedRows, states: Float[Tensor, "*batch columns"], int4_group: int | None) -> Path:
    """Return the fastest way to compute this product that is able to; `int4_group` comes from `common_group`."""
    rows, columns = module.matrix_shape
    count = states.numel()
    if not count or (states.requires_grad and torch.is_grad_enabled()):
        return "definition"
    if module.scheme.activations and has_int8_kernel(module, states):
        return "int8"
    few = count <= MOST_STATES * columns
    if few and int4_group and states.dtype is torch.bfloat16 is module.dtype and _has_kernel(states):
        return "int4"
    return "blocks" if rows * columns > DEQUANTIZE_BLOCK else "definition"


def common_group(columns: int, *schemes: WeightScheme | None) -> int | None:
    """Return the widest group of the kernel that fits into the groups of all schemes, if one does.

    None fits a scheme that rounds activations: the kernel's are floats.

    >>> common_group(256, WeightScheme(bits=4, group_size=-1), WeightScheme(bits=8, group_size=64))
    64
    """
    if any(scheme.activations for scheme in schemes if scheme):
        return None
    groups = [columns if scheme.group_size == -1 else scheme.group_size for scheme in schemes if scheme]
    fitting = (size for size in GROUP_SIZES if not any(width % size for width in (columns, *groups)))
    return next(fitting, None)


@torch.no_grad()
def make_layout(module: MixedRows) -> Layout:
    """Bring a weight into the kernel's order.

    Raises:
        ValueError: no group size of the kernel fits; `choose_path` says so beforehand.
    """
    group_size = common_group(module.matrix_shape[1], module.scheme, module.protected_scheme)
    if group_size is None:
        message = f"no group size of the int4 kernel ({GROUP_SIZES}) fits {module}"
        raise ValueError(message)
    (rows, columns), state = module.matrix_shape, module.weight_state
    parts = state_parts(state, module.scheme, module.protected_scheme, rows)
    doubled = torch.cat([part.targets[: len(part.targets) if part.scheme.bits == 8 else 0] for part in parts])
    padded = -(-(rows + len(doubled)) // ROW_TILE) * ROW_TILE
    nibbles = torch.full((padded, columns), 8, dtype=torch.int8, device=doubled.device)
    scale_and_zero = torch.zeros(padded, columns // group_size, 2, dtype=module.dtype, device=doubled.device)
    dense_rows, dense_weight, low_start = doubled[:0], None, rows
    for part in parts:
        if not part.scheme.is_quantized:
            dense_rows, dense_weight = part.targets, state[f"{part.name}_weight"]
            continue
        for block, integers, grid in integer_blocks(state, part, columns):
            for plane, (nibble, scale, zero) in enumerate(_planes(integers, grid, part.scheme)):
                place = slice(low_start + block.start, low_start + block.stop) if plane else part.targets[block]
                nibbles[place] = nibble
                pair = torch.stack([scale, zero], dim=-1)
                scale_and_zero[place] = pair.repeat_interleave(scale_and_zero.shape[1] // pair.shape[1], dim=1)
        low_start += len(part.targets) if part.scheme.bits == 8 else 0
    return Layout(
        sources=tuple(state.values()),
        rows=rows,
        group_size=group_size,
        nibbles=_tiled(nibbles),
        scale_and_zero=scale_and_zero.transpose(0, 1).contiguous(),
        doubled=doubled,
        dense_rows=dense_rows,
        dense_weight=dense_weight,
    )


def int4_linear(
    states: Float[Tensor, "*batch columns"], layout: Layout, bias: Tensor | None
) -> Float[Tensor, "*batch rows"]:
    """Multiply by the weight of a layout; not differentiable."""
    flat = states.reshape(-1, states.shape[-1]).contiguous()
    multiply = _MULTIPLY_CUDA if flat.is_cuda else _MULTIPLY_CPU
    products = multiply(flat, layout.nibbles, layout.group_size, layout.scale_and_zero)
    result = products[:, : layout.rows]
    if count := len(layout.doubled):
        result.index_add_(1, layout.doubled, products[:, layout.rows : layout.rows + count])
    if layout.dense_weight is not None:
        result.index_copy_(1, layout.dense_rows, nn.functional.linear(flat, layout.dense_weight))
    if bias is not None:
        result = result + bias
    return result.reshape(*states.shape[:-1], layout.rows)


def _planes(
    integers: Int8[Tensor, "rows columns"], grid: Grid, scheme: WeightScheme
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield nibbles `[rows, columns]`, scale and zero `[rows, groups]`, whose sum is the weight."""
    scale = grid.scale
    zero_point = torch.zeros_like(scale) if grid.zero_point is None else grid.zero_point.to(scale.dtype)
    if scheme.bits == 8:
        yield (integers >> 4) + 8, 16 * scale, (8 - zero_point) * scale
        yield integers & 15, scale, torch.zeros_like(scale)
    elif scheme.bits == 4 or grid.zero_point is None:
        yield integers + 8, scale, -zero_point * scale
    else:
        group_size = integers.shape[1] // scale.shape[1]
        yield integers - grid.zero_point.repeat_interleave(group_size, dim=1) + 8, scale, torch.zeros_like(scale)


def _tiled(nibbles: Tensor) -> Tensor:
    """Convert nibbles to the kernel's order, some row tiles at a time: the CPU's converter reads int32."""
    size = 8 * ROW_TILE
    return torch.cat([_converted(nibbles[start : start + size]) for start in range(0, len(nibbles), size)])


def _converted(nibbles: Tensor) -> Tensor:
    if nibbles.is_cuda:
        nibbles = nibbles.view(torch.uint8)
        pairs = nibbles[:, ::2] << 4 | nibbles[:, 1::2]
        return torch.ops.aten._convert_weight_to_int4pack(pairs, INNER_TILES)
    return torch.ops.aten._convert_weight_to_int4pack_for_cpu(nibbles.int(), INNER_TILES)


def _has_kernel(states: Tensor) -> bool:
    if states.is_cuda:
        whole_tiles = states.shape[-1] % (16 * INNER_TILES) == 0
        return whole_tiles and torch.cuda.get_device_capability(states.device) >= (8, 0)
    return states.is_cpu and _cpu_is_vectorized()


@functools.cache
def _cpu_is_vectorized() -> bool:
    """Elsewhere the CPU kernels are plain loops."""
    return torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
