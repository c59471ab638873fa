"""Rounding a weight to nearest, as it is or as a method has scaled it."""

import torch
from jaxtyping import Float
from torch import Tensor

from mvquant.backends.layer import RoundedModule
from mvquant.plan import ModulePlan
from mvquant.quant import round_to_nearest

ROWS = 512
"""Held as 32-bit floats at once."""


def rounded(
    plan: ModulePlan, weight: Float[Tensor, "rows columns"], input_scale: Float[Tensor, "1"] | None = None
) -> RoundedModule:
    """Round all rows in the scheme of a plan, and all in the scheme of its protected rows, if it has any."""
    kept = None
    if plan.protected_scheme is not None:
        quantizes = plan.protected_scheme.is_quantized
        kept = round_to_nearest(weight, plan.protected_scheme) if quantizes else weight.clone()
    return RoundedModule(round_to_nearest(weight, plan.scheme), kept, input_scale)


def lost_share(plan: ModulePlan, weight: Float[Tensor, "rows columns"], made: RoundedModule) -> float:
    """Return the share of a weight's energy that rounding took."""
    return lost_energy(weight, made.base.dequantize(plan.scheme, torch.float32))


def lost_energy(weight: Float[Tensor, "rows columns"], values: Float[Tensor, "rows columns"]) -> float:
    """Return the share of a weight's energy that is lost by other values in its place."""
    lost = energy = 0.0
    for some, others in zip(weight.split(ROWS), values.split(ROWS), strict=True):  # never all of them as floats
        exact = some.float()
        lost += float((others.float() - exact).square().sum())
        energy += float(exact.square().sum())
    return lost / energy if energy else 0.0
