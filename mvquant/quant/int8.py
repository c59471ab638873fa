"""Products of 8-bit activations and 8-bit weights as integers, summed in int32 by torch's own kernel.

The integers are those of the definition (`mvquant.quant.products`), and their sums are exact. So the result is off
from the real product of integers and scales by three float32 roundings and that to the dtype of the states (and of
the bias, if there is one), where the definition rounds every dequantized state and weight, and the sums too.

A layout holds a second copy of the base rows' integers, 8 bits each. It is made at first use, is never saved, and is
dropped when the module is moved, cast, loaded or copied. Protected rows are multiplied as in the definition.
"""

import functools
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int8, Int64
from torch import Tensor

from mvquant.quant.activations import HIGHEST, LOWEST, scale_of, to_integers
from mvquant.quant.products import multiply_part
from mvquant.quant.rows import MixedRows
from mvquant.quant.state import integer_blocks, state_parts

LEAST_CUDA_STATES = 17
"""CUDA's integer product takes no fewer rows of states, and sizes in multiples of 8 only."""

_TRIED_COLUMNS = 256
_MULTIPLY = torch.ops.aten._int_mm.default


@dataclass(frozen=True)
class Int8Layout:
    """The base rows of a weight as integers, columns first as the product wants them; which rows they are."""

    sources: tuple[Tensor, ...]
    integers: Int8[Tensor, "columns base"]
    scale: Float[Tensor, " base"]
    targets: Int64[Tensor, " base"]


def has_int8_kernel(module: MixedRows, states: Float[Tensor, "*batch columns"]) -> bool:
    """Tell whether the product can be computed with integers here."""
    if "weight_scale" not in module.state_names:
        return False
    if states.is_cuda:
        (base, _), columns = module.weight_state["weight_scale"].shape, module.matrix_shape[1]
        return states.numel() >= LEAST_CUDA_STATES * columns and columns % 8 == 0 and base % 8 == 0
    return states.is_cpu and _cpu_is_exact()


@torch.no_grad()
def make_int8_layout(module: MixedRows) -> Int8Layout:
    """Unpack the base rows and turn them the way that the kernel reads them."""
    (rows, columns), state = module.matrix_shape, module.weight_state
    base = state_parts(state, module.scheme, module.protected_scheme, rows)[0]
    integers = torch.empty(len(base.targets), columns, dtype=torch.int8, device=base.targets.device)
    for block, values, _ in integer_blocks(state, base, columns):
        integers[block] = values
    by_columns = integers.T if integers.is_cuda else integers.T.contiguous()
    return Int8Layout(tuple(state.values()), by_columns, state["weight_scale"].squeeze(1).float(), base.targets)


@torch.no_grad()
def int8_linear(
    states: Float[Tensor, "*batch columns"], module: MixedRows, layout: Int8Layout, bias: Tensor | None
) -> Float[Tensor, "*batch rows"]:
    """Multiply by a weight whose base rows see rounded activations; not differentiable."""
    (rows, columns), state = module.matrix_shape, module.weight_state
    flat = states.reshape(-1, columns)
    scale = scale_of(flat, module.scheme, state.get("input_scale"))
    sums = _MULTIPLY(to_integers(flat, scale).to(torch.int8), layout.integers)
    products = sums.float().mul_(scale.float()).mul_(layout.scale)
    if bias is not None:
        products += bias[layout.targets]
    products = products.to(states.dtype)
    if len(layout.targets) == rows:
        return products.view(*states.shape[:-1], rows)
    result = products.new_empty(len(flat), rows).index_copy_(1, layout.targets, products)
    for part in state_parts(state, module.scheme, module.protected_scheme, rows):
        if part.name == "protected":
            multiply_part(flat, module, part, bias, result)
    return result.view(*states.shape[:-1], rows)


@functools.cache
def _cpu_is_exact() -> bool:
    """Whether oneDNN's product is there, and exact at the extremes.

    Elsewhere it is a plain loop; and kernels without instructions for it may add up in 16 bits, which overflow.
    """
    if torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512") or not torch.backends.mkldnn.is_available():
        return False
    return all(
        bool(
            (
                _MULTIPLY(_constant(count, left), _constant(16, right).T.contiguous()) == left * right * _TRIED_COLUMNS
            ).all()
        )
        for count in (1, 16)
        for left in (LOWEST, HIGHEST)
        for right in (LOWEST, HIGHEST)
    )


def _constant(count: int, value: int) -> Int8[Tensor, "count columns"]:
    return torch.full((count, _TRIED_COLUMNS), value, dtype=torch.int8)
