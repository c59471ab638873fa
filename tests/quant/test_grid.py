"""Grids against compressed-tensors' own quantizer, and what rounding to nearest promises."""

import itertools

import pytest
import torch
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.lifecycle.forward import dequantize as their_dequantize
from compressed_tensors.quantization.lifecycle.forward import quantize as their_quantize
from compressed_tensors.quantization.utils import calculate_qparams
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mvquant.errors import PlanError
from mvquant.quant.grid import Grid, dequantize, fit_grid, quantize, steps
from mvquant.scheme import WeightScheme

SCHEMES = [
    WeightScheme(bits=bits, group_size=group, symmetric=symmetric)
    for bits, group, symmetric in itertools.product((2, 3, 4, 8), (32, 64, 128, -1), (True, False))
]
every_scheme = pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.name)


def normal_weight(rows: int = 24, columns: int = 256, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows)) * 0.1
    weight[3] = 0  # a row of zeros
    weight[4] = 0.25  # a constant row
    weight[5] = -weight[5].abs()  # a row on one side of zero
    weight[6] *= 1e-30
    return weight.to(dtype)


def theirs(weight: torch.Tensor, scheme: WeightScheme, scale_dtype: torch.dtype | None = None):
    """compressed-tensors' scale, zero point, integers and weights, by its min-max observer's rule."""
    args = QuantizationArgs(
        num_bits=scheme.bits,
        symmetric=scheme.symmetric,
        strategy="channel" if scheme.group_size == -1 else "group",
        group_size=None if scheme.group_size == -1 else scheme.group_size,
        scale_dtype=scale_dtype,
    )
    grouped = weight.view(len(weight), scheme.groups(weight.shape[1]), -1)
    scale, zero_point = calculate_qparams(grouped.amin(-1), grouped.amax(-1), args)
    integers = their_quantize(weight, scale, zero_point, args, dtype=torch.int8)
    return scale, zero_point, integers, their_dequantize(integers, scale, zero_point, args)


@every_scheme
def test_float32_equals_compressed_tensors_exactly(scheme: WeightScheme):
    weight = normal_weight()
    scale, zero_point, integers, values = theirs(weight, scheme)
    grid = fit_grid(weight, scheme)
    assert torch.equal(grid.scale, scale)
    ours = quantize(weight, grid, scheme)
    assert torch.equal(ours, integers)
    assert torch.equal(dequantize(ours, grid, scheme, torch.float32), values)
    if grid.zero_point is not None:
        assert torch.equal(grid.zero_point, zero_point)


@every_scheme
def test_bfloat16_equals_compressed_tensors_with_bfloat16_scales(scheme: WeightScheme):
    """Compared: scales (bit for bit), zero points and integers, with theirs told `scale_dtype=bfloat16` on the
    same bfloat16 weights held as float32. Without it they also divide in bfloat16: see the next test."""
    weight = normal_weight(dtype=torch.bfloat16)
    weight[6] = 0  # their eps would be that of float32 there
    scale, zero_point, integers, _ = theirs(weight.float(), scheme, torch.bfloat16)
    grid = fit_grid(weight, scheme)
    assert grid.scale.dtype == torch.bfloat16
    assert torch.equal(grid.scale.float(), scale)
    assert torch.equal(quantize(weight, grid, scheme), integers)
    if grid.zero_point is not None:
        assert torch.equal(grid.zero_point, zero_point)


@pytest.mark.parametrize("scheme", [scheme for scheme in SCHEMES if scheme.symmetric], ids=lambda s: s.name)
def test_bfloat16_arithmetic_moves_integers_by_one_step_at_most(scheme: WeightScheme):
    """Theirs run wholly in bfloat16 has the same symmetric scales; its quotients are rounded to 8 bits before they
    are rounded to integers, so that a few integers are off by one, and further from the weight than ours."""
    weight = normal_weight(dtype=torch.bfloat16)
    scale, _, integers, _ = theirs(weight, scheme)
    grid = fit_grid(weight, scheme)
    ours = quantize(weight, grid, scheme)
    assert torch.equal(grid.scale, scale)
    assert (ours.int() - integers.int()).abs().max() <= 1
    assert (ours != integers).float().mean() < scheme.bits * 0.02
    errors = [
        (dequantize(candidate, grid, scheme, torch.float32) - weight.float()).square().sum()
        for candidate in (ours, integers)
    ]
    assert errors[0] <= errors[1]


finite = arrays("float32", (4, 64), elements=st.floats(-1e4, 1e4, width=32))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@settings(max_examples=60, deadline=None)
@given(values=finite, bits=st.sampled_from((2, 3, 4, 8)), group=st.sampled_from((32, 64, -1)), symmetric=st.booleans())
def test_error_is_at_most_half_a_step(dtype, values, bits: int, group, symmetric: bool):
    """Half a step, plus what storing the scale in `dtype` moves the ends of the range (at most `2^bits - 1` steps
    times the relative rounding of the scale, or one smallest subnormal a step), plus one rounding of the result."""
    weight = torch.from_numpy(values).to(dtype)
    scheme = WeightScheme(bits=bits, group_size=group, symmetric=symmetric)
    grid = fit_grid(weight, scheme)
    error = (dequantize(quantize(weight, grid, scheme), grid, scheme, torch.float32) - weight.float()).abs()
    info = torch.finfo(dtype)
    scale = grid.scale.double()
    unit = torch.finfo(torch.float32).eps / 2 if dtype == torch.float32 else info.eps / 2
    moved = steps(scheme) * (2 * unit * scale + info.smallest_normal * info.eps)
    bound = (scale / 2 + moved) * (1 + 1e-6) + 2 * torch.finfo(torch.float32).smallest_normal
    assert (error.view(4, -1, weight.shape[1] // scale.shape[1]) <= bound[..., None]).all()


@every_scheme
def test_zero_stays_zero_and_constants_stay_near(scheme: WeightScheme):
    weight = normal_weight()
    grid = fit_grid(weight, scheme)
    values = dequantize(quantize(weight, grid, scheme), grid, scheme, torch.float32)
    assert values[3].eq(0).all()
    assert (values[4] - 0.25).abs().max() <= 0.5 * grid.scale[4].max() * (1 + 1e-5)
    assert torch.isfinite(values).all()


@every_scheme
def test_nan_and_infinity_do_not_hang(scheme: WeightScheme):
    weight = normal_weight()
    weight[0, 0], weight[1, 0] = float("nan"), float("inf")
    grid = fit_grid(weight, scheme)
    assert quantize(weight, grid, scheme).shape == weight.shape
    assert not torch.isfinite(grid.scale[0, 0])


def test_more_bits_never_more_error():
    weight = normal_weight()
    errors = []
    for bits in (2, 3, 4, 8):
        scheme = WeightScheme(bits=bits, group_size=64)
        grid = fit_grid(weight, scheme)
        errors.append(float((dequantize(quantize(weight, grid, scheme), grid, scheme, torch.float32) - weight).norm()))
    assert errors == sorted(errors, reverse=True)


def test_input_is_untouched_and_may_be_a_view():
    weight = normal_weight()
    before = weight.clone()
    scheme = WeightScheme(bits=4, group_size=64)
    window = weight[2:9]
    grid = fit_grid(window, scheme)
    assert torch.equal(quantize(window, grid, scheme), quantize(window.clone(), grid, scheme))
    transposed = weight.T.contiguous().T
    assert torch.equal(fit_grid(transposed, scheme).scale, fit_grid(weight, scheme).scale)
    assert torch.equal(weight, before)


def test_group_size_must_divide():
    with pytest.raises(PlanError, match="group size 64 does not divide 96 columns"):
        fit_grid(torch.zeros(2, 96), WeightScheme(bits=4, group_size=64))


def test_bf16_has_no_grid():
    with pytest.raises(PlanError, match="bf16 keeps rows as floats"):
        fit_grid(torch.zeros(2, 64), WeightScheme(bits=16))


def test_grid_is_frozen():
    with pytest.raises(AttributeError):
        Grid(torch.ones(1, 1)).scale = torch.ones(1, 1)  # pyright: ignore
