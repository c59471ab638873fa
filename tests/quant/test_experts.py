"""Quantized experts inside transformers' own experts modules."""

import copy

import pytest
import torch
from torch import nn

from mvquant.errors import PlanError
from mvquant.quant.experts import QuantizedExperts
from mvquant.quant.replace import replace_weight
from mvquant.quant.state import quantize_weight
from mvquant.scheme import WeightScheme
from tests.tiny_models import tiny_model

SCHEME, PROTECTED = WeightScheme(bits=4, group_size=32), WeightScheme(bits=8, group_size=32)
SHAPE = EXPERTS, ROWS, COLUMNS = 3, 20, 64
FLAT = EXPERTS * ROWS, COLUMNS
PROTECTED_ROWS = [0, 19, 20, 45]


def built(scheme=SCHEME, rows=PROTECTED_ROWS, dtype=torch.float32) -> QuantizedExperts:
    weight = torch.randn(FLAT, generator=torch.Generator().manual_seed(0)).to(dtype)
    return QuantizedExperts(SHAPE, quantize_weight(weight, scheme, PROTECTED, rows), scheme, PROTECTED)


@pytest.mark.parametrize("rows", [[], PROTECTED_ROWS, range(60)], ids=["none", "some", "all"])
@pytest.mark.parametrize("scheme", [SCHEME, WeightScheme(bits=3, group_size=64, symmetric=False)], ids=lambda s: s.name)
def test_indexing_gives_one_expert(scheme, rows):
    experts = built(scheme, rows)
    whole = experts.dequantize()
    assert whole.shape == SHAPE
    for index in range(EXPERTS):
        assert torch.equal(experts[index], whole[index])
        assert torch.equal(experts[torch.tensor(index)], whole[index])


def test_iterating_and_counting():
    experts = built()
    assert len(experts) == EXPERTS
    assert torch.equal(torch.stack(list(experts)), experts.dequantize())


@pytest.mark.parametrize("index", [-1, EXPERTS])
def test_no_such_expert(index):
    with pytest.raises(IndexError, match=r"is outside 0\.\.2"):
        built()[index]


def test_loads_into_an_empty_module_and_casts():
    experts = built(dtype=torch.bfloat16)
    empty = QuantizedExperts.empty(SHAPE, SCHEME, PROTECTED, len(PROTECTED_ROWS))
    empty.load_state_dict(experts.state_dict(), assign=True)
    assert torch.equal(empty.dequantize(), experts.dequantize())
    assert copy.deepcopy(empty).to(torch.float32)[1].dtype == torch.float32


def test_repr():
    assert repr(built()) == (
        "QuantizedExperts(experts=3, rows=20, columns=64, scheme=w4a16-g32, protected=4 rows w8a16-g32)"
    )


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
@torch.no_grad()
def test_a_model_computes_as_with_the_rounded_weights(family):
    """Equal logits: quantized experts in place, against the same model with dequantized weights, eager as well."""
    model = tiny_model(family).eval()
    fake = copy.deepcopy(model)
    names = [name for name, parameter in model.named_parameters() if parameter.dim() == 3]
    assert len(names) == 2 * model.config.num_hidden_layers
    for name in names:
        weight = model.get_parameter(name)
        state = quantize_weight(weight.flatten(0, 1), SCHEME, PROTECTED, PROTECTED_ROWS)
        experts = QuantizedExperts(tuple(weight.shape), state, SCHEME, PROTECTED)
        fake.get_parameter(name).copy_(experts.dequantize())
        replace_weight(model, name, experts)
    fake.set_experts_implementation("eager")
    tokens = torch.arange(24).view(2, 12)
    assert torch.equal(model(tokens).logits, fake(tokens).logits)
    assert not any(isinstance(model.get_submodule(name), nn.Linear) for name in names)
    assert not set(names) & set(dict(model.named_parameters()))


@pytest.mark.parametrize("name", ["w8a8", "w8a8-static"])
def test_activations_of_experts_are_not_rounded_in_silence(name):
    with pytest.raises(PlanError, match="experts' activations cannot be rounded"):
        QuantizedExperts.empty(SHAPE, WeightScheme.model_validate(name))
