"""Integer products against the definition, and against exact sums of the same integers."""

import copy

import pytest
import torch
from torch import nn

from mvquant.quant import int8, kernels, products
from mvquant.quant.activations import scale_of, to_integers
from mvquant.quant.linear import MixedRowLinear
from mvquant.quant.state import integer_blocks, state_parts
from tests.quant.test_products import BASE, COLUMNS, KEPT, PROTECTED, ROWS, TENSOR, TOKEN, built, states

needs_kernel = pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"), reason="the CPU kernel needs AVX2 or AVX512"
)
UNIT32 = 2.0**-24


def integer_sums(module: MixedRowLinear, inputs: torch.Tensor) -> torch.Tensor:
    """Exact sums of base rows: integers in int64."""
    part = state_parts(module.weight_state, module.scheme, module.protected_scheme, ROWS)[0]
    weight = torch.cat([block for _, block, _ in integer_blocks(module.weight_state, part, COLUMNS)])
    scale = scale_of(inputs, module.scheme, module.weight_state.get("input_scale"))
    return to_integers(inputs, scale).long() @ weight.long().T


def exact(module: MixedRowLinear, inputs: torch.Tensor) -> torch.Tensor:
    """What base rows give in float64."""
    scale = scale_of(inputs, module.scheme, module.weight_state.get("input_scale")).double()
    product = integer_sums(module, inputs).double() * scale * module.weight_scale.double().T
    return product if module.bias is None else product + module.bias.double()[base_rows(module)]


def base_rows(module: MixedRowLinear) -> list[int]:
    return BASE if module.protected_scheme else list(range(ROWS))


@needs_kernel
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("protected", [None, *KEPT], ids=lambda scheme: scheme.name if scheme else "none")
@pytest.mark.parametrize("scheme", [TOKEN, TENSOR], ids=lambda scheme: scheme.name)
def test_base_rows_are_exact_sums_rounded_as_documented(scheme, protected, dtype):
    """Sums exact; off by three float32 roundings (int32, two scales), one of the bias, one to the dtype."""
    module = built(scheme, protected, dtype)
    for count in (1, 2, 33):
        inputs = states(count, dtype=dtype)
        assert kernels.choose_path(module, inputs, module.int4_group) == "int8"
        result = module(inputs)[:, base_rows(module)].double()
        true = exact(module, inputs)
        allowed = (
            4 * UNIT32 * (true.abs() + module.bias.abs()[base_rows(module)]) + torch.finfo(dtype).eps / 2 * true.abs()
        )
        assert ((result - true).abs() <= allowed).all()
    assert isinstance(module._layout, int8.Int8Layout)


@needs_kernel
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("protected", [None, *KEPT], ids=lambda scheme: scheme.name if scheme else "none")
def test_the_definition_differs_by_its_own_roundings_alone(protected, dtype):
    """It rounds every state and weight to the dtype: two units of the sum of magnitudes, and its result."""
    module, inputs = built(TOKEN, protected, dtype), states(4, 5, dtype=dtype)
    result, expected = module(inputs), products.definition_linear(inputs, module, module.bias)
    magnitudes = inputs.abs().double() @ module.dequantize().abs().double().T
    unit = torch.finfo(dtype).eps / 2
    allowed = unit * (2.1 * magnitudes + 2 * expected.abs().double()) + COLUMNS * UNIT32 * magnitudes
    assert ((result - expected).abs().double() <= allowed).all()
    if protected is not None:  # these rows are computed the same way, in another order perhaps
        torch.testing.assert_close(
            result[..., PROTECTED], expected[..., PROTECTED], rtol=4 * unit, atol=float(COLUMNS * UNIT32 * 100)
        )


@needs_kernel
def test_sums_do_not_overflow_at_the_extremes():
    columns = 4096
    for left in (-128, 127):
        for right in (-128, 127):
            weight = torch.full((columns, 24), right, dtype=torch.int8)
            for count in (1, 3, 40):
                sums = torch._int_mm(torch.full((count, columns), left, dtype=torch.int8), weight)
                assert torch.equal(sums, torch.full((count, 24), left * right * columns, dtype=torch.int32))


@needs_kernel
def test_batches_of_any_shape():
    module, inputs = built(TOKEN, KEPT[0]), states(6)
    assert torch.equal(module(inputs.view(2, 3, COLUMNS)).view(6, ROWS), module(inputs))
    strided = torch.stack([inputs, inputs], dim=-1)[..., 0]
    assert torch.equal(module(strided), module(inputs))
    assert module(inputs[0]).shape == (ROWS,)


@pytest.mark.parametrize("inputs", [states(3).requires_grad_(), states(3)[:0]], ids=["autograd", "nothing"])
def test_steps_aside_where_it_cannot_help(inputs):
    module = built(TOKEN, bias=False)
    assert kernels.choose_path(module, inputs, module.int4_group) == "definition"
    assert torch.equal(module(inputs), products.definition_linear(inputs, module, None))
    assert module._layout is None


def test_without_a_kernel_that_is_exact_there_is_none(monkeypatch):
    monkeypatch.setattr(int8, "_cpu_is_exact", lambda: False)
    module = built(TOKEN, KEPT[0])
    assert kernels.choose_path(module, states(2), module.int4_group) == "definition"


def test_all_rows_protected_have_no_integers_to_multiply():
    module = built(TOKEN, KEPT[0], rows=range(ROWS))
    assert not int8.has_int8_kernel(module, states(2))


def moved(module: MixedRowLinear) -> None:
    module.to(torch.float32).to(torch.bfloat16)


def loaded(module: MixedRowLinear) -> None:
    module.load_state_dict(built(TENSOR, KEPT[0], torch.bfloat16).state_dict())


def assigned(module: MixedRowLinear) -> None:
    module.input_scale = nn.Parameter(module.input_scale * 2, requires_grad=False)


@needs_kernel
@pytest.mark.parametrize("change", [moved, loaded, assigned], ids=lambda change: change.__name__)
def test_a_layout_does_not_outlive_its_tensors(change):
    module, inputs = built(TENSOR, KEPT[0], torch.bfloat16), states(2, dtype=torch.bfloat16)
    module(inputs)
    before = module._layout
    module(inputs)
    assert module._layout is before
    change(module)
    assert torch.equal(module(inputs), copy.deepcopy(module)(inputs))
    assert module._layout is not before
    assert copy.deepcopy(module)._layout is None


@needs_kernel
def test_a_layout_is_a_second_copy_of_the_base_rows():
    module = built(TOKEN, KEPT[0])
    layout = int8.make_int8_layout(module)
    assert layout.integers.nbytes == len(BASE) * COLUMNS
    assert layout.targets.tolist() == BASE


@pytest.mark.cuda
@pytest.mark.parametrize("protected", [None, KEPT[0]], ids=["none", "bf16"])
def test_cuda_matches_the_exact_sums(protected):
    module = built(TOKEN, protected, torch.bfloat16, rows=list(range(0, 96, 12))).to("cuda")
    inputs = states(40, dtype=torch.bfloat16).to("cuda")
    assert kernels.choose_path(module, inputs, module.int4_group) == "int8"
    expected = products.definition_linear(inputs, module, module.bias)
    torch.testing.assert_close(module(inputs), expected, rtol=2e-2, atol=0.5)
