"""Putting quantized modules into models."""

import copy

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from mvquant.errors import PlanError
from mvquant.quant.experts import QuantizedExperts
from mvquant.quant.linear import MixedRowLinear
from mvquant.quant.replace import replace_weight, restore_weight
from mvquant.quant.state import quantize_weight
from mvquant.scheme import WeightScheme
from tests.tiny_models import tiny_model

SCHEME = WeightScheme(bits=4, group_size=32)
NAME = "model.layers.1.self_attn.q_proj"


@torch.no_grad()
def test_linears_of_a_model_compute_as_with_the_rounded_weights():
    model = tiny_model("qwen2").eval()
    fake = copy.deepcopy(model)
    names = [name for name, module in model.model.layers.named_modules() if isinstance(module, nn.Linear)]
    for name in names:
        linear = fake.get_submodule(f"model.layers.{name}")
        shape = tuple(linear.weight.shape)
        module = MixedRowLinear(shape, quantize_weight(linear.weight, SCHEME), SCHEME, bias=linear.bias)
        linear.weight.copy_(module.dequantize())
        replace_weight(model, f"model.layers.{name}", module)
    tokens = torch.arange(24).view(2, 12)
    assert torch.equal(model(tokens).logits, fake(tokens).logits)
    assert torch.equal(
        model.generate(tokens[:1], max_new_tokens=4, do_sample=False),
        fake.generate(tokens[:1], max_new_tokens=4, do_sample=False),
    )


def test_works_on_the_meta_device_and_then_loads():
    model = tiny_model("llama").eval()
    weight = model.get_submodule(NAME).weight
    replace_weight(model, NAME, MixedRowLinear(tuple(weight.shape), quantize_weight(weight, SCHEME), SCHEME))
    with torch.device("meta"):
        empty = type(model)(model.config)
    replace_weight(empty, NAME, MixedRowLinear.empty(tuple(weight.shape), SCHEME, dtype=torch.float32))
    assert empty.state_dict().keys() == model.state_dict().keys()
    empty.load_state_dict(model.state_dict(), assign=True)
    assert torch.equal(empty.get_submodule(NAME).dequantize(), model.get_submodule(NAME).dequantize())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model.layers.1.self_attn.z_proj", "the model has no 'model.layers.1.self_attn.z_proj'"),
        ("model.layers.7.self_attn.q_proj", "the model has no"),
        ("model.layers.1.mlp.down_proj", "cannot be replaced"),
        ("model.layers.1.mlp.act_fn", "cannot be replaced"),
    ],
    ids=["leaf", "parent", "shape", "no-weight"],
)
def test_what_cannot_be_replaced(name, message):
    module = MixedRowLinear.empty((64, 64), SCHEME)
    with pytest.raises(PlanError, match=message):
        replace_weight(tiny_model("llama"), name, module)


def test_experts_go_to_a_parameter_of_their_shape():
    experts = QuantizedExperts.empty((3, 64, 64), SCHEME)
    with pytest.raises(PlanError, match="cannot be replaced by QuantizedExperts"):
        replace_weight(tiny_model("llama"), f"{NAME}.weight", experts)


def quantized_in_place(model, names) -> None:
    for name in names:
        old = model.get_submodule(name)
        weight = old.weight.T.contiguous() if isinstance(old, Conv1D) else old.weight
        state = quantize_weight(weight, SCHEME, WeightScheme(bits=8, group_size=32), [0, 5])
        module = MixedRowLinear(tuple(weight.shape), state, SCHEME, WeightScheme(bits=8, group_size=32), old.bias)
        replace_weight(model, name, module)


@torch.no_grad()
@pytest.mark.parametrize(
    ("family", "name", "kind"),
    [("llama", NAME, nn.Linear), ("qwen2", NAME, nn.Linear), ("gpt2", "transformer.h.1.attn.c_attn", Conv1D)],
    ids=["linear", "bias", "conv1d"],
)
def test_restoring_puts_the_dequantized_weight_back(family, name, kind):
    model = tiny_model(family).eval()
    original = model.get_submodule(name).weight.clone()
    quantized_in_place(model, [name])
    tokens = torch.arange(24).view(2, 12)
    expected, weight = model(tokens).logits, model.get_submodule(name).dequantize()
    restore_weight(model, name)
    restored = model.get_submodule(name)
    assert type(restored) is kind
    assert torch.equal(restored.weight, weight.T if kind is Conv1D else weight)
    assert restored.weight.shape == original.shape
    assert 0 < (restored.weight - original).abs().max() < 0.2 * original.abs().max()
    torch.testing.assert_close(model(tokens).logits, expected)
    assert list(model.state_dict()) == list(tiny_model(family).state_dict())


@torch.no_grad()
def test_restoring_experts_puts_a_parameter_back():
    model = tiny_model("mixtral").eval()
    name = "model.layers.0.mlp.experts.down_proj"
    weight = model.get_parameter(name)
    state = quantize_weight(weight.flatten(0, 1), WeightScheme(bits=8, group_size=32))
    experts = QuantizedExperts(tuple(weight.shape), state, WeightScheme(bits=8, group_size=32))
    replace_weight(model, name, experts)
    restore_weight(model, name, torch.bfloat16)
    assert torch.equal(model.get_parameter(name), experts.dequantize(torch.bfloat16))
    assert set(model.state_dict()) == set(tiny_model("mixtral").state_dict())
