"""Rounded activations against compressed-tensors' own functions."""

import pytest
import torch
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.lifecycle.forward import fake_quantize
from compressed_tensors.quantization.utils import compute_dynamic_scales_and_zp
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn

from mvquant.quant.activations import activation_scale, rounded, to_integers, token_scale
from mvquant.scheme import WeightScheme

TOKEN, TENSOR = (WeightScheme.model_validate(name) for name in ("w8a8", "w8a8-static"))
DTYPES = [torch.bfloat16, torch.float16, torch.float32]


def states(dtype: torch.dtype) -> torch.Tensor:
    """Tokens of many sizes: one of zeros, one of equal values, one with an outlier, and ties."""
    values = torch.randn(2, 12, 96, generator=torch.Generator().manual_seed(0)) * torch.logspace(-4, 3, 12)[:, None]
    values[0, 3] = 0
    values[0, 4] = -0.7
    values[1, 5, 7] = 900
    values[1, 6] = torch.arange(96) / 2
    values[1, 6, -1] = 127.5
    return values.to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_scales_per_token_are_those_of_compressed_tensors(dtype):
    args = QuantizationArgs(num_bits=8, type="int", symmetric=True, strategy="token", dynamic=True)
    scale, zero_point = compute_dynamic_scales_and_zp(states(dtype), args, nn.Linear(1, 1))
    assert torch.equal(token_scale(states(dtype)), scale)
    expected = fake_quantize(states(dtype), scale, zero_point, args)
    assert torch.equal(rounded(states(dtype), TOKEN, None), expected)
    assert expected.dtype == dtype


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_one_scale_per_tensor_is_used_as_compressed_tensors_does(dtype):
    args = QuantizationArgs(num_bits=8, type="int", symmetric=True, strategy="tensor", dynamic=False)
    for largest in (0.5, 900.0):  # values beyond the grid are clamped
        scale = activation_scale(torch.tensor([largest], dtype=dtype))
        expected = fake_quantize(states(dtype), scale, None, args)
        assert torch.equal(rounded(states(dtype), TENSOR, scale), expected)


def test_a_dynamic_scheme_ignores_a_static_scale():
    assert torch.equal(
        rounded(states(torch.float32), TOKEN, torch.tensor([3.0])), rounded(states(torch.float32), TOKEN, None)
    )


@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=40))
def test_rounding_is_off_by_half_a_step_at_most(values):
    token = torch.tensor([values])
    scale = token_scale(token)
    assume(scale >= torch.finfo(scale.dtype).smallest_normal)  # below, a scale has too few bits for the claim
    integers = to_integers(token, scale)
    assert torch.equal(integers, integers.round())
    assert integers.min() >= -128
    assert integers.max() <= 127
    assert ((integers.double() * scale.double() - token.double()).abs() <= scale.double() * (0.5 + 1e-5)).all()


def test_tokens_are_rounded_apart_from_each_other_whatever_the_axes():
    given_states = states(torch.float32)
    together = rounded(given_states, TOKEN, None)
    assert torch.equal(rounded(given_states.flatten(0, 1), TOKEN, None), together.flatten(0, 1))
    assert torch.equal(rounded(given_states[1, 5], TOKEN, None), together[1, 5])


def test_the_states_are_left_alone_and_gradients_pass_through():
    given_states = states(torch.float32).requires_grad_()
    before = given_states.detach().clone()
    weight = torch.randn(96)
    result = rounded(given_states, TOKEN, None)
    assert torch.equal(result.detach(), rounded(before, TOKEN, None))
    (result * weight).sum().backward()
    assert torch.equal(given_states.grad, weight.expand_as(before))
    assert torch.equal(given_states.detach(), before)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_shows_in_its_token_and_in_no_other(bad):
    token = torch.ones(2, 4)
    token[0, 1] = bad
    result = rounded(token, TOKEN, None)
    assert not result[0].isfinite().all()
    assert result[1].isfinite().all()
