"""Mixed rows with rounded activations: base rows see them rounded, protected rows as they come."""

import pytest
import torch
from torch import nn

from mvquant.quant import RoundedWeight, kernels, mixed_state, products, round_to_nearest, state
from mvquant.quant.activations import activation_scale, rounded
from mvquant.quant.linear import MixedRowLinear
from mvquant.scheme import WeightScheme

SHAPE = ROWS, COLUMNS = 96, 160
TOKEN, TENSOR = (WeightScheme.model_validate(name) for name in ("w8a8", "w8a8-static"))
KEPT = [WeightScheme.model_validate(name) for name in ("bf16", "w8a16-row", "w8a16-g32-asym")]
PROTECTED = [0, 5, 6, 50, 95]
BASE = [row for row in range(ROWS) if row not in PROTECTED]


def states(*batch: int, dtype=torch.float32) -> torch.Tensor:
    values = torch.randn(*batch, COLUMNS, generator=torch.Generator().manual_seed(1))
    values[..., 3] *= 40  # a massive column, which makes rounding visible
    return values.to(dtype)


def built(scheme=TOKEN, protected=None, dtype=torch.float32, bias=True, rows=PROTECTED) -> MixedRowLinear:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(SHAPE, generator=generator).to(dtype)
    kept: torch.Tensor | RoundedWeight | None = weight
    if protected is not None and protected.is_quantized:
        kept = round_to_nearest(weight, protected)
    scale = activation_scale(torch.tensor([30.0], dtype=dtype)) if scheme is TENSOR else None
    chosen = rows if protected else []
    tensors = mixed_state(round_to_nearest(weight, scheme), scheme, kept, protected, chosen, scale)
    values = torch.randn(ROWS, generator=generator).to(dtype) if bias else None
    return MixedRowLinear(SHAPE, tensors, scheme, protected, values)


@pytest.mark.parametrize("protected", KEPT, ids=lambda scheme: scheme.name)
@pytest.mark.parametrize("scheme", [TOKEN, TENSOR], ids=lambda scheme: scheme.name)
def test_base_rows_see_rounded_activations_and_protected_rows_see_them_as_they_come(scheme, protected):
    module, inputs = built(scheme, protected), states(3, 7)
    weight = module.dequantize()
    seen = rounded(inputs, scheme, module.weight_state.get("input_scale"))
    assert not torch.equal(seen, inputs)
    result = products.definition_linear(inputs, module, module.bias)
    expected = torch.empty(3, 7, ROWS)
    expected[..., BASE] = nn.functional.linear(seen, weight[BASE], module.bias[BASE])
    expected[..., PROTECTED] = nn.functional.linear(inputs, weight[PROTECTED], module.bias[PROTECTED])
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-4)
    plain = nn.functional.linear(inputs, weight, module.bias)
    assert ((result - plain).abs().amax(dim=(0, 1))[BASE] > 1e-2).all()


@pytest.mark.parametrize("scheme", [TOKEN, TENSOR], ids=lambda scheme: scheme.name)
def test_protecting_rows_leaves_the_products_of_all_others_as_they_were(scheme):
    mixed, plain = (products.definition_linear(states(5), built(scheme, kept), None) for kept in (KEPT[0], None))
    torch.testing.assert_close(mixed[:, BASE], plain[:, BASE], rtol=1e-6, atol=1e-5)
    assert not torch.allclose(mixed[:, PROTECTED], plain[:, PROTECTED], atol=1e-2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("protected", [None, *KEPT[:2]], ids=lambda scheme: scheme.name if scheme else "none")
def test_blocks_match_the_definition(protected, dtype, monkeypatch):
    monkeypatch.setattr(state, "DEQUANTIZE_BLOCK", 37 * COLUMNS)
    monkeypatch.setattr(kernels, "DEQUANTIZE_BLOCK", 37 * COLUMNS)
    monkeypatch.setattr(kernels, "has_int8_kernel", lambda module, inputs: False)
    module, inputs = built(TENSOR, protected, dtype), states(4, 25, dtype=dtype)
    assert kernels.choose_path(module, inputs, module.int4_group) == "blocks"
    expected = products.definition_linear(inputs, module, module.bias)
    unit = torch.finfo(dtype).eps
    torch.testing.assert_close(module(inputs), expected, rtol=2 * unit, atol=64 * unit)


def test_gradients_reach_the_states_through_both_kinds_of_rows():
    module, inputs = built(TOKEN, KEPT[0]), states(2).requires_grad_()
    module(inputs).sum().backward()
    torch.testing.assert_close(inputs.grad, module.dequantize().sum(0).expand(2, -1), rtol=1e-4, atol=1e-4)


def test_every_row_protected_rounds_nothing():
    module = built(TOKEN, KEPT[0], rows=range(ROWS))
    torch.testing.assert_close(module(states(3)), nn.functional.linear(states(3), module.dequantize(), module.bias))
