"""Products of states and a mixed-row weight in plain torch: the definition, and the same without the whole weight.

Rows of a scheme that rounds activations see them rounded; all others see them as they come.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mvquant.quant.activations import rounded
from mvquant.quant.rows import MixedRows
from mvquant.quant.state import Part, dequantized_blocks, state_parts


def definition_linear(
    states: Float[Tensor, "*batch columns"], module: MixedRows, bias: Tensor | None
) -> Float[Tensor, "*batch rows"]:
    """Multiply by the dequantized weight: what every faster way has to match; differentiable in the states."""
    weight = module.dequantize_rows(dtype=states.dtype)
    if not module.scheme.activations:
        return nn.functional.linear(states, weight, bias)
    state = module.weight_state
    result = nn.functional.linear(rounded(states, module.scheme, state.get("input_scale")), weight, bias)
    if "protected_rows" not in state:
        return result
    rows = state["protected_rows"].long()
    kept = nn.functional.linear(states, weight[rows], None if bias is None else bias[rows])
    return result.index_copy(-1, rows, kept)


@torch.no_grad()
def blocks_linear(
    states: Float[Tensor, "*batch columns"], module: MixedRows, bias: Tensor | None
) -> Float[Tensor, "*batch rows"]:
    """Dequantize and multiply some rows at a time, without ever holding the whole weight; not differentiable."""
    (rows, columns), state = module.matrix_shape, module.weight_state
    flat = states.reshape(-1, columns)
    result = flat.new_empty(len(flat), rows)
    for part in state_parts(state, module.scheme, module.protected_scheme, rows):
        seen = rounded(flat, part.scheme, state.get("input_scale")) if part.scheme.activations else flat
        multiply_part(seen, module, part, bias, result)
    return result.view(*states.shape[:-1], rows)


def multiply_part(
    states: Float[Tensor, "states columns"],
    module: MixedRows,
    part: Part,
    bias: Tensor | None,
    result: Float[Tensor, "states rows"],
) -> None:
    """Put the products of a part of the rows where they belong in the result."""
    for block, weight in dequantized_blocks(module.weight_state, part, states.shape[1], states.dtype):
        targets = part.targets[block]
        products = nn.functional.linear(states, weight, None if bias is None else bias[targets])
        if len(part.targets) == result.shape[1]:
            result[:, block] = products  # much cheaper than by index
        else:
            result.index_copy_(1, targets, products)
