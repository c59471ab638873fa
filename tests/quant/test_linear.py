"""The mixed-row linear behaves as a linear layer with the dequantized weight, and as a module."""

import copy
import io

import pytest
import torch
from torch import nn

from mvquant.quant.linear import MixedRowLinear
from mvquant.quant.state import quantize_weight
from mvquant.scheme import WeightScheme

SHAPE = ROWS, COLUMNS = 48, 128
W4, W8, BF16 = WeightScheme(bits=4, group_size=64), WeightScheme(bits=8, group_size=64), WeightScheme(bits=16)
PROTECTED = [1, 17, 40]


def built(
    scheme: WeightScheme = W4, protected: WeightScheme = W8, rows=PROTECTED, dtype=torch.float32, bias: bool = True
) -> MixedRowLinear:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(SHAPE, generator=generator).to(dtype)
    state = quantize_weight(weight, scheme, protected, rows)
    return MixedRowLinear(SHAPE, state, scheme, protected, torch.randn(ROWS).to(dtype) if bias else None)


def states(*batch: int, dtype=torch.float32) -> torch.Tensor:
    return torch.randn(*batch, COLUMNS, generator=torch.Generator().manual_seed(1)).to(dtype)


@pytest.mark.parametrize("batch", [(), (3,), (2, 3), (0,)], ids=str)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
def test_equals_the_linear_with_its_weight(batch, bias):
    module = built(bias=bias)
    expected = nn.functional.linear(states(*batch), module.dequantize(), module.bias)
    assert torch.equal(module(states(*batch)), expected)


def test_equals_nn_linear_up_to_half_a_step():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(SHAPE, generator=generator)
    module = built(bias=False)
    step = module.weight_scale.max()
    error = (module(states(5)) - states(5) @ weight.T).abs().max()
    assert error <= states(5).abs().sum(-1).max() * step / 2


def test_gradients_reach_the_states_and_no_parameter():
    module = built(dtype=torch.bfloat16)
    inputs = states(2, dtype=torch.bfloat16).requires_grad_()
    module(inputs).sum().backward()
    assert torch.allclose(inputs.grad[0], module.dequantize().sum(0), rtol=0.02, atol=0.1)
    assert not any(parameter.requires_grad for parameter in module.parameters() if parameter is not module.bias)


def test_casting_leaves_integers_alone():
    module = built()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    module.to(torch.bfloat16)
    for name, tensor in module.state_dict().items():
        if before[name].is_floating_point():
            assert tensor.dtype == torch.bfloat16
        else:
            assert torch.equal(tensor, before[name])
    assert module.dtype == torch.bfloat16
    assert module(states(2, dtype=torch.bfloat16)).dtype == torch.bfloat16


@pytest.mark.parametrize("assign", [True, False], ids=["assign", "copy"])
@pytest.mark.parametrize("protected", [W8, BF16], ids=lambda scheme: scheme.name)
def test_loads_into_an_empty_module(assign, protected):
    module = built(protected=protected, dtype=torch.bfloat16)
    device = "meta" if assign else "cpu"
    empty = MixedRowLinear.empty(SHAPE, W4, protected, len(PROTECTED), bias=True, device=device)
    assert all(tensor.is_meta == assign for tensor in empty.state_dict().values())
    empty.load_state_dict(module.state_dict(), assign=assign)
    inputs = states(3, dtype=torch.bfloat16)
    assert torch.equal(empty(inputs), module(inputs))
    assert not empty.weight_packed.requires_grad


def test_copies_and_pickles_give_equal_results():
    module = built(dtype=torch.bfloat16)
    inputs = states(3, dtype=torch.bfloat16)
    expected = module(inputs)
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    for twin in (copy.deepcopy(module), torch.load(buffer, weights_only=False)):
        assert twin._layout is None
        assert torch.equal(twin(inputs), expected)


def test_state_dict_holds_the_state_and_the_bias_only():
    module = built()
    module(states(2))
    assert set(module.state_dict()) == {
        "weight_packed",
        "weight_scale",
        "protected_packed",
        "protected_scale",
        "protected_rows",
        "bias",
    }
    assert list(module.buffers()) == []


def test_holds_the_state_without_copying_it():
    state = quantize_weight(torch.randn(SHAPE), W4)
    assert MixedRowLinear(SHAPE, state, W4).weight_packed.data_ptr() == state["weight_packed"].data_ptr()


def test_repr_names_sizes_and_schemes():
    assert repr(built()) == (
        "MixedRowLinear(in_features=128, out_features=48, bias=True, scheme=w4a16-g64, protected=3 rows w8a16-g64)"
    )
    assert repr(built(rows=[], bias=False)) == (
        "MixedRowLinear(in_features=128, out_features=48, bias=False, scheme=w4a16-g64)"
    )


def test_all_rows_protected_computes_the_protected_scheme():
    mixed, plain = built(rows=range(ROWS), bias=False), built(scheme=W8, rows=[], bias=False)
    assert torch.equal(mixed(states(4)), plain(states(4)))


def moved(module: MixedRowLinear) -> None:
    module.to(torch.float32).to(torch.bfloat16)


def loaded(module: MixedRowLinear) -> None:
    module.load_state_dict(built(dtype=torch.bfloat16).state_dict())


def assigned(module: MixedRowLinear) -> None:
    module.weight_packed = nn.Parameter(module.weight_packed.clone(), requires_grad=False)


@pytest.mark.parametrize("change", [moved, loaded, assigned], ids=lambda change: change.__name__)
def test_a_kernel_layout_does_not_outlive_its_tensors(change, monkeypatch):
    monkeypatch.setattr(MixedRowLinear, "path", "int4")
    module = built(dtype=torch.bfloat16)
    module(states(2, dtype=torch.bfloat16))
    before = module._layout
    module(states(2, dtype=torch.bfloat16))
    assert module._layout is before
    change(module)
    module(states(2, dtype=torch.bfloat16))
    assert module._layout is not before
