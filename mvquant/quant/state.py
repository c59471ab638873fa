"""One weight matrix as named tensors: base rows in one scheme, protected rows in another.

Pure functions on local names, in the layout of compressed-tensors' `pack-quantized`:

    weight_packed       int32 [base rows, words]        base rows in order, without the protected ones
    weight_scale        float [base rows, groups]       in the weight's dtype
    weight_zero_point   int32 [words, groups]           asymmetric schemes; packed along the rows
    protected_rows      int32 [protected rows]          ascending
    protected_packed, protected_scale, protected_zero_point      the same for the protected rows, or
    protected_weight    float [protected rows, columns]          where they are kept as floats
    input_scale         float [1]                       of activations rounded with one scale for all of them

A part without rows is absent. 3-D expert weights are stored flat, `[experts * rows, columns]`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int8, Int32, Int64
from torch import Tensor

from mvquant.errors import PlanError
from mvquant.quant.grid import Grid, dequantize, fit_grid, quantize, row_blocks
from mvquant.quant.packing import pack, packed_words, unpack
from mvquant.scheme import WeightScheme

PartName = Literal["weight", "protected"]
"""The prefix of the tensors of base rows and of protected rows."""

DEQUANTIZE_BLOCK = 1 << 21
"""Weights dequantized at once: few enough for the cache (4 MiB), enough for an efficient product."""


def quantize_weight(
    weight: Float[Tensor, "rows columns"],
    scheme: WeightScheme,
    protected_scheme: WeightScheme | None = None,
    protected_rows: Sequence[int] = (),
) -> dict[str, Tensor]:
    """Round a weight matrix to nearest; the input is untouched.

    Raises:
        PlanError: protected rows without a scheme, that the matrix lacks, or that are named twice; a scheme whose
            activations have a scale from calibration, which no weight tells (see `mixed_state`).
    """
    if scheme.activations == "tensor":
        message = f"{scheme.name} needs the scale of its activations, which comes from calibration: see `mixed_state`"
        raise PlanError(message)
    if not protected_rows:
        return _quantize_part("weight", weight, scheme)
    if protected_scheme is None:
        message = f"{len(protected_rows)} protected rows have no scheme: give protected_scheme"
        raise PlanError(message)
    rows = checked_rows(protected_rows, len(weight)).to(weight.device)
    base = base_rows(rows, len(weight))
    base_state = _quantize_part("weight", weight[base], scheme) if len(base) else {}
    return {
        **base_state,
        **_quantize_part("protected", weight[rows], protected_scheme),
        "protected_rows": rows,
    }


def dequantize_state(
    state: Mapping[str, Tensor],
    scheme: WeightScheme,
    protected_scheme: WeightScheme | None,
    shape: tuple[int, int],
    dtype: torch.dtype,
    *,
    start: int = 0,
    stop: int | None = None,
) -> Float[Tensor, "window columns"]:
    """Return the weights of rows `start` to `stop` (all of them by default).

    This is the definition that every faster path has to match.
    """
    stop = shape[0] if stop is None else stop
    device = next(iter(state.values())).device
    weight = torch.empty(stop - start, shape[1], dtype=dtype, device=device)
    for part in state_parts(state, scheme, protected_scheme, shape[0], start=start, stop=stop):
        for block, values in dequantized_blocks(state, part, shape[1], dtype):
            weight[part.targets[block]] = values
    return weight


def empty_state(
    shape: tuple[int, int],
    scheme: WeightScheme,
    protected_scheme: WeightScheme | None,
    protected_count: int,
    dtype: torch.dtype,
) -> dict[str, Tensor]:
    """Return the names, shapes and dtypes of a state as meta tensors, for a loader to fill."""
    rows, columns = shape
    state: dict[str, Tensor] = {}
    if protected_count < rows:
        state |= _empty_part("weight", rows - protected_count, columns, scheme, dtype)
    if protected_count and protected_scheme is not None:
        state |= _empty_part("protected", protected_count, columns, protected_scheme, dtype)
        state["protected_rows"] = torch.empty(protected_count, dtype=torch.int32, device="meta")
    if scheme.activations == "tensor":
        state["input_scale"] = torch.empty(1, dtype=dtype, device="meta")
    return state


def base_rows(protected: Tensor, rows: int) -> Tensor:
    """Return the rows that are not protected, ascending.

    >>> base_rows(torch.tensor([1, 3], dtype=torch.int32), rows=5)
    tensor([0, 2, 4])
    """
    is_base = torch.ones(rows, dtype=torch.bool, device=protected.device)
    is_base[protected] = False
    return is_base.nonzero().squeeze(1)


@dataclass(frozen=True)
class Part:
    """Rows `window` of the base or the protected part, and which rows of the (cut-out) matrix they are."""

    name: PartName
    scheme: WeightScheme
    window: slice
    targets: Int64[Tensor, " rows"]


def state_parts(
    state: Mapping[str, Tensor],
    scheme: WeightScheme,
    protected_scheme: WeightScheme | None,
    rows: int,
    *,
    start: int = 0,
    stop: int | None = None,
) -> list[Part]:
    """Return the parts that have rows between `start` and `stop` of a matrix of `rows` rows."""
    stop = rows if stop is None else stop
    protected = state.get("protected_rows")
    if protected is None or protected_scheme is None:
        targets = torch.arange(stop - start, device=next(iter(state.values())).device)
        return [Part("weight", scheme, slice(start, stop), targets)]
    # counting needs the values, for which a device would have to be waited for: not for whole matrices
    first = int((protected < start).sum()) if start > 0 else 0
    last = int((protected < stop).sum()) if stop < rows else len(protected)
    inside = protected[first:last].long() - start
    parts = [
        Part("weight", scheme, slice(start - first, stop - last), base_rows(inside, stop - start)),
        Part("protected", protected_scheme, slice(first, last), inside),
    ]
    return [part for part in parts if len(part.targets)]


def integer_blocks(
    state: Mapping[str, Tensor], part: Part, columns: int
) -> Iterator[tuple[slice, Int8[Tensor, "rows columns"], Grid]]:
    """Unpack a quantized part block by block: which of its `targets`, their integers, their grid."""
    packed, scale = state[f"{part.name}_packed"], state[f"{part.name}_scale"]
    zero_point = None
    if not part.scheme.symmetric:
        zero_point = unpack(state[f"{part.name}_zero_point"].T, part.scheme.bits, len(scale)).T
    for block in row_blocks(len(part.targets), columns, DEQUANTIZE_BLOCK):
        rows = slice(part.window.start + block.start, part.window.start + block.stop)
        grid = Grid(scale[rows], None if zero_point is None else zero_point[rows])
        yield block, unpack(packed[rows], part.scheme.bits, columns), grid


def dequantized_blocks(
    state: Mapping[str, Tensor], part: Part, columns: int, dtype: torch.dtype
) -> Iterator[tuple[slice, Float[Tensor, "rows columns"]]]:
    """Dequantize a part block by block: which of its `targets`, and their weights."""
    if not part.scheme.is_quantized:
        yield slice(0, len(part.targets)), state[f"{part.name}_weight"][part.window].to(dtype)
        return
    for block, integers, grid in integer_blocks(state, part, columns):
        yield block, dequantize(integers, grid, part.scheme, dtype)


def _quantize_part(part: PartName, weight: Float[Tensor, "rows columns"], scheme: WeightScheme) -> dict[str, Tensor]:
    if not scheme.is_quantized:
        return {f"{part}_weight": weight.clone()}
    grid = fit_grid(weight, scheme)
    return packed_part(part, quantize(weight, grid, scheme), grid, scheme)


def packed_part(
    part: PartName, integers: Int8[Tensor, "rows columns"], grid: Grid, scheme: WeightScheme
) -> dict[str, Tensor]:
    """Return integers and their grid as the tensors of a part."""
    state = {f"{part}_packed": pack(integers, scheme.bits), f"{part}_scale": grid.scale}
    if grid.zero_point is not None:
        state[f"{part}_zero_point"] = pack(grid.zero_point.T.contiguous(), scheme.bits).T.contiguous()
    return state


def _empty_part(part: PartName, rows: int, columns: int, scheme: WeightScheme, dtype: torch.dtype) -> dict[str, Tensor]:
    if not scheme.is_quantized:
        return {f"{part}_weight": torch.empty(rows, columns, dtype=dtype, device="meta")}
    groups = scheme.groups(columns)
    shapes = {f"{part}_packed": (rows, packed_words(columns, scheme.bits))}
    if not scheme.symmetric:
        shapes[f"{part}_zero_point"] = (packed_words(rows, scheme.bits), groups)
    state = {name: torch.empty(shape, dtype=torch.int32, device="meta") for name, shape in shapes.items()}
    return {**state, f"{part}_scale": torch.empty(rows, groups, dtype=dtype, device="meta")}


def checked_rows(protected_rows: Sequence[int], rows: int) -> Int32[Tensor, " protected"]:
    """Return protected rows as ascending int32.

    Raises:
        PlanError: rows that the matrix lacks, or that are named twice.
    """
    ordered = sorted(protected_rows)
    if ordered[0] < 0 or ordered[-1] >= rows or len(set(ordered)) < len(ordered):
        message = f"protected rows {ordered[0]}..{ordered[-1]} are not different rows of 0..{rows - 1}"
        raise PlanError(message)
    return torch.tensor(ordered, dtype=torch.int32)
