"""A whole matrix as a method rounded it, and a state made of two: base rows of one, protected rows of another."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int8
from torch import Tensor

from mvquant.errors import PlanError
from mvquant.quant.grid import Grid, dequantize, fit_grid, quantize
from mvquant.quant.state import base_rows, checked_rows, packed_part
from mvquant.scheme import WeightScheme


@dataclass(frozen=True, eq=False)
class RoundedWeight:
    """Integers, and the grid that they stand on.

    Attributes:
        integers: between `-2^(bits-1)` and `2^(bits-1) - 1`.
        grid: scales in the model's dtype; zero points where the scheme is asymmetric.
    """

    integers: Int8[Tensor, "rows columns"]
    grid: Grid

    def dequantize(self, scheme: WeightScheme, dtype: torch.dtype) -> Float[Tensor, "rows columns"]:
        """Return the weights that the integers stand for."""
        return dequantize(self.integers, self.grid, scheme, dtype)

    def rows(self, chosen: Tensor) -> "RoundedWeight":
        """Return some of the rows."""
        zero_point = None if self.grid.zero_point is None else self.grid.zero_point[chosen]
        return RoundedWeight(self.integers[chosen], Grid(self.grid.scale[chosen], zero_point))


def round_to_nearest(weight: Float[Tensor, "rows columns"], scheme: WeightScheme) -> RoundedWeight:
    """Round every weight to the closest point of its group's grid."""
    grid = fit_grid(weight, scheme)
    return RoundedWeight(quantize(weight, grid, scheme), grid)


def mixed_state(
    base: RoundedWeight,
    scheme: WeightScheme,
    kept: RoundedWeight | Float[Tensor, "rows columns"] | None = None,
    protected_scheme: WeightScheme | None = None,
    protected_rows: Sequence[int] = (),
    input_scale: Float[Tensor, "1"] | None = None,
) -> dict[str, Tensor]:
    """Put a state together (see `mvquant.quant.state`) without touching an integer.

    Args:
        base: all rows in the base scheme; those of protected rows are left out.
        scheme: the base scheme.
        kept: all rows in the protected scheme, or as floats; only the protected ones are taken.
        protected_scheme: their scheme.
        protected_rows: which they are.
        input_scale: of activations with one scale per tensor.

    Raises:
        PlanError: rows that the matrix lacks, or that are named twice; an input scale that the scheme lacks, or has
            no use for.
    """
    if (scheme.activations == "tensor") != (input_scale is not None):
        given = "no input_scale was given" if input_scale is None else "an input_scale was given"
        message = f"{scheme.name}: {given}; w8a8-static needs one, and no other scheme has any"
        raise PlanError(message)
    static = {} if input_scale is None else {"input_scale": input_scale}
    if not protected_rows or kept is None or protected_scheme is None:
        return {**packed_part("weight", base.integers, base.grid, scheme), **static}
    count = len(base.integers)
    rows = checked_rows(protected_rows, count).to(base.integers.device)
    others = base.rows(base_rows(rows, count))
    state = packed_part("weight", others.integers, others.grid, scheme) if len(others.integers) else {}
    if isinstance(kept, RoundedWeight):
        chosen = kept.rows(rows)
        state |= packed_part("protected", chosen.integers, chosen.grid, protected_scheme)
    else:
        state["protected_weight"] = kept[rows].clone()
    return {**state, "protected_rows": rows, **static}
