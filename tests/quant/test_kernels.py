"""The int4 kernel's path against the definition."""

import itertools

import pytest
import torch
from torch import nn

from mvquant.quant import kernels, state
from mvquant.quant.linear import MixedRowLinear
from mvquant.quant.state import quantize_weight
from mvquant.scheme import WeightScheme

needs_kernel = pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"), reason="the CPU kernels need AVX2 or AVX512"
)
BF16 = WeightScheme(bits=16)


def built(scheme, protected=None, rows=(), shape=(200, 256), bias=False, dtype=torch.bfloat16) -> MixedRowLinear:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(shape, generator=generator).to(dtype) * 0.05
    weight[:, 5] += 0.1  # the zero points matter
    quantized = quantize_weight(weight, scheme, protected, rows)
    bias_values = torch.randn(shape[0], generator=generator).to(dtype) if bias else None
    return MixedRowLinear(shape, quantized, scheme, protected, bias_values)


def states(count: int, columns: int = 256, dtype=torch.bfloat16) -> torch.Tensor:
    return (torch.randn(count, columns, generator=torch.Generator().manual_seed(1)) + 0.3).to(dtype)


def assert_within_bfloat16_rounding(result: torch.Tensor, module: MixedRowLinear, inputs: torch.Tensor) -> None:
    """Each product may be off by one rounding of its weight, the sum by three of itself.

    A zero point is one more rounded term: `zero_point * scale`, at most the range of the group.
    """
    weight, unit = module.dequantize(torch.float32), 2.0**-8
    exact = nn.functional.linear(inputs.float(), weight, None if module.bias is None else module.bias.float())
    largest = weight.abs().amax(dim=1)
    allowed = unit * (inputs.float().abs().sum(1)[:, None] * 2 * largest + 4 * exact.abs() + 0.01)
    assert ((result.float() - exact).abs() <= allowed).all()
    typical = (result.float() - exact).norm() / exact.norm()
    assert typical < unit


SCHEMES = [
    WeightScheme(bits=bits, group_size=group, symmetric=symmetric)
    for bits, group, symmetric in itertools.product((2, 3, 4, 8), (32, 64, 128, -1), (True, False))
]


@needs_kernel
@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.name)
@pytest.mark.parametrize("protected_bits", [None, 8, 16])
def test_matches_the_definition(scheme, protected_bits):
    protected = None
    if protected_bits:
        protected = WeightScheme(bits=protected_bits, group_size=64, symmetric=scheme.symmetric)
    rows = [0, 3, 64, 130, 199] if protected else []
    module = built(scheme, protected, rows, bias=protected_bits == 8)
    for count in (1, 5):
        assert kernels.choose_path(module, states(count), module.int4_group) == "int4"
        assert_within_bfloat16_rounding(module(states(count)), module, states(count))
    assert module._layout is not None


@needs_kernel
def test_all_rows_protected_and_uneven_rows():
    scheme, protected = WeightScheme(bits=4, group_size=64), WeightScheme(bits=8, group_size=32)
    module = built(scheme, protected, range(37), shape=(37, 64), bias=True)
    assert_within_bfloat16_rounding(module(states(3, 64)), module, states(3, 64))


@needs_kernel
def test_more_rows_than_are_converted_at_once():
    scheme, protected = WeightScheme(bits=4, group_size=64), WeightScheme(bits=8, group_size=64)
    module = built(scheme, protected, range(0, 1100, 2), shape=(1100, 64))
    assert_within_bfloat16_rounding(module(states(3, 64)), module, states(3, 64))


@needs_kernel
def test_same_state_same_result():
    scheme, protected = WeightScheme(bits=3, group_size=32), WeightScheme(bits=8, group_size=32)
    first, second = (built(scheme, protected, [1, 2, 77]) for _ in range(2))
    reloaded = MixedRowLinear.empty((200, 256), scheme, protected, 3)
    reloaded.load_state_dict(first.state_dict(), assign=True)
    assert torch.equal(first(states(4)), second(states(4)))
    assert torch.equal(first(states(4)), first(states(4)))
    assert torch.equal(first(states(4)), reloaded(states(4)))


@needs_kernel
def test_batches_of_any_shape():
    module = built(WeightScheme(bits=4, group_size=128))
    inputs = states(6)
    assert torch.equal(module(inputs.view(2, 3, 256)).view(6, 200), module(inputs))
    strided = torch.stack([inputs, inputs], dim=-1)[..., 0]
    assert torch.equal(module(strided), module(inputs))
    assert module(inputs[0]).shape == (200,)


W4 = WeightScheme(bits=4, group_size=128)


@pytest.mark.parametrize(
    ("module", "inputs"),
    [
        (built(W4, dtype=torch.float32), states(1, dtype=torch.float32)),
        (built(W4, dtype=torch.float16), states(1, dtype=torch.float16)),
        (built(W4), states(kernels.MOST_STATES + 1)),
        (built(W4), states(1).requires_grad_()),
        (built(WeightScheme(bits=4, group_size=-1), shape=(64, 80)), states(1, 80)),
        (built(W4), states(1)[:0]),
    ],
    ids=["float32", "float16", "many-states", "autograd", "columns", "nothing"],
)
def test_steps_aside_where_it_cannot_help(module, inputs):
    assert kernels.choose_path(module, inputs, module.int4_group) == "definition"
    expected = nn.functional.linear(inputs, module.dequantize(inputs.dtype))
    assert torch.equal(module(inputs), expected)
    assert module._layout is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("protected_bits", [None, 8, 16])
def test_blocks_match_the_definition(dtype, protected_bits, monkeypatch):
    monkeypatch.setattr(state, "DEQUANTIZE_BLOCK", 37 * 256)
    monkeypatch.setattr(kernels, "DEQUANTIZE_BLOCK", 37 * 256)
    protected = WeightScheme(bits=protected_bits, group_size=64) if protected_bits else None
    rows = range(0, 200, 3) if protected else []
    module = built(WeightScheme(bits=3, group_size=64), protected, rows, bias=True, dtype=dtype)
    inputs = states(100, dtype=dtype).view(4, 25, 256)
    assert kernels.choose_path(module, inputs, module.int4_group) == "blocks"
    expected = nn.functional.linear(inputs, module.dequantize(), module.bias)
    unit = torch.finfo(dtype).eps
    torch.testing.assert_close(module(inputs), expected, rtol=2 * unit, atol=8 * unit)


def test_a_module_can_be_kept_on_the_definition():
    module = built(W4)
    module.path = "definition"
    assert torch.equal(module(states(1)), nn.functional.linear(states(1), module.dequantize()))
    assert module._layout is None


def test_a_layout_needs_a_group_size_of_the_kernel():
    module = built(WeightScheme(bits=4, group_size=-1), shape=(64, 80))
    with pytest.raises(ValueError, match="no group size of the int4 kernel"):
        kernels.make_layout(module)


@needs_kernel
def test_a_layout_is_a_second_copy_of_the_integers():
    """Its cost as documented: 4 bits a weight, 8 in protected rows, with the scales twice (and zeros)."""
    module = built(W4, WeightScheme(bits=8, group_size=128), range(56), shape=(200, 256))
    layout = kernels.make_layout(module)
    assert layout.nibbles.nbytes == (200 + 56) * 256 // 2
    assert layout.scale_and_zero.nbytes == (200 + 56) * 2 * 2 * 2


@pytest.mark.cuda
@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.name)
def test_cuda_matches_the_definition(scheme):
    module = built(scheme, WeightScheme(bits=8, group_size=64), [0, 3, 64, 130, 199], bias=True).to("cuda")
    inputs = states(3).to("cuda")
    assert kernels.choose_path(module, inputs, module.int4_group) == "int4"
    assert_within_bfloat16_rounding(module(inputs), module, inputs)
