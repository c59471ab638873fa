"""Rounding one matrix by llmcompressor's GPTQ, with damping raised where its Hessian cannot be inverted."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from mvquant.backends.llmcompressor.inputs import InputSum
from mvquant.backends.llmcompressor.linears import stacked
from mvquant.backends.llmcompressor.package import package, weight_arguments
from mvquant.method_settings import Gptq
from mvquant.quant import Grid, RoundedWeight, quantize
from mvquant.scheme import WeightScheme

LARGEST_DAMPING = 1.0
"""Damping is raised tenfold up to here where a Hessian cannot be inverted: beyond it little of the Hessian is left."""


class Rounded(NamedTuple):
    """Rounded rows; the package's loss; the largest damping; how many matrices had to be rounded to nearest."""

    weight: RoundedWeight
    error: float | None
    damping: float
    failed: int


def gptq_round(
    weight: Float[Tensor, "rows columns"], inputs: InputSum, scheme: WeightScheme, settings: Gptq
) -> Rounded:
    """Round a matrix by the package's GPTQ, on the grid of its observer.

    Where the Hessian cannot be inverted, damping is raised tenfold, up to `LARGEST_DAMPING`; then the matrix is rounded
    to nearest, which is counted in `failed`.
    """
    arguments = weight_arguments(scheme, activation_order=settings.activation_order)
    observer = package("observers").Observer.load_from_registry("memoryless_minmax", base_name="weight", args=arguments)
    found = observer(weight).get_qparams()
    grid = Grid(found["scale"], None if scheme.symmetric else found["zero_point"])
    damping = settings.damping
    while (moved := _moved(weight, inputs, found, arguments, settings.block_size, damping)) is None:
        if damping * 10 > LARGEST_DAMPING:
            return Rounded(RoundedWeight(quantize(weight, grid, scheme), grid), None, damping, 1)
        damping *= 10
    values, error = moved
    return Rounded(RoundedWeight(quantize(values, grid, scheme), grid), error, damping, 0)


def joined(parts: Sequence[Rounded]) -> Rounded:
    """Put the parts of a weight together, in the order of its rows."""
    weights = [part.weight for part in parts]
    zero_points = [weight.grid.zero_point for weight in weights if weight.grid.zero_point is not None]
    grid = Grid(stacked([weight.grid.scale for weight in weights]), stacked(zero_points) if zero_points else None)
    errors = [part.error for part in parts if part.error is not None]
    return Rounded(
        RoundedWeight(stacked([weight.integers for weight in weights]), grid),
        sum(errors) if errors else None,
        max(part.damping for part in parts),
        sum(part.failed for part in parts),
    )


def _moved(
    weight: Float[Tensor, "rows columns"],
    inputs: InputSum,
    grid: Mapping[str, Tensor],
    arguments: Any,  # noqa: ANN401 - QuantizationArgs
    block_size: int,
    damping: float,
) -> tuple[Float[Tensor, "rows columns"], float] | None:
    """Return values on the grid, and the package's loss; None where the Hessian cannot be inverted."""
    try:
        values, losses, failed = package("modifiers.gptq.gptq_quantize").quantize_weight(
            weights=weight.to(torch.float32, copy=True)[None],  # the package works in place, on the Hessian too
            hessians=inputs.mean_hessian[None],
            scale=grid["scale"][None],
            zero_point=grid["zero_point"][None],
            global_scale=None,
            quant_args=arguments,
            blocksize=block_size,
            percdamp=damping,
        )
    except torch.linalg.LinAlgError:  # pyright: ignore[reportPrivateImportUsage] - its inverse cannot be factorized
        return None
    return None if bool(failed[0]) else (values[0].contiguous(), float(losses[0]))
