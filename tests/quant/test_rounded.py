"""States made of whole rounded matrices, against states made of the weight directly."""

import pytest
import torch

from mvquant.errors import PlanError
from mvquant.quant import Grid, RoundedWeight, dequantize_state, mixed_state, quantize_weight, round_to_nearest
from mvquant.quant.state import empty_state
from mvquant.scheme import WeightScheme

SHAPE = ROWS, COLUMNS = 40, 64
ROWS_KEPT = [2, 3, 39]
SCHEMES = [WeightScheme.model_validate(name) for name in ("w4a16-g32", "w3a16-g64-asym", "w2a16-row", "w8a16-g32")]
STATIC = WeightScheme.model_validate("w8a8-static")
W8, BF16 = WeightScheme(bits=8, group_size=32), WeightScheme(bits=16)


def weight(dtype=torch.bfloat16) -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(0)).to(dtype)


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name
        assert tensor.dtype == other[name].dtype


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.name)
@pytest.mark.parametrize("protected", [None, W8, BF16], ids=lambda scheme: scheme.name if scheme else "none")
def test_rounding_all_rows_first_gives_the_state_of_rounding_each_part(scheme, protected):
    kept = round_to_nearest(weight(), protected) if protected is W8 else weight()
    rows = ROWS_KEPT if protected else []
    made = mixed_state(round_to_nearest(weight(), scheme), scheme, kept, protected, rows)
    assert_same(made, quantize_weight(weight(), scheme, protected, rows))


def test_integers_are_taken_as_they_are():
    """Whoever chose them: not those that rounding would choose."""
    integers = torch.randint(-8, 8, SHAPE, dtype=torch.int8, generator=torch.Generator().manual_seed(1))
    base = RoundedWeight(integers, Grid(torch.rand(ROWS, 2, generator=torch.Generator().manual_seed(2))))
    state = mixed_state(base, SCHEMES[0], weight(torch.float32), BF16, ROWS_KEPT)
    expected = base.dequantize(SCHEMES[0], torch.float32)
    expected[ROWS_KEPT] = weight(torch.float32)[ROWS_KEPT]
    assert torch.equal(dequantize_state(state, SCHEMES[0], BF16, SHAPE, torch.float32), expected)


@pytest.mark.parametrize("rows", [[], ROWS_KEPT, range(ROWS)], ids=["none", "some", "all"])
def test_a_static_scale_is_part_of_the_state_and_of_an_empty_one(rows):
    scale = torch.tensor([0.25], dtype=torch.bfloat16)
    state = mixed_state(round_to_nearest(weight(), STATIC), STATIC, weight(), BF16, list(rows), scale)
    empty = empty_state(SHAPE, STATIC, BF16, len(rows), torch.bfloat16)
    assert {name: (tensor.shape, tensor.dtype) for name, tensor in state.items()} == {
        name: (tensor.shape, tensor.dtype) for name, tensor in empty.items()
    }
    assert state["input_scale"] is scale


def test_a_scale_of_activations_goes_with_a_static_scheme_and_no_other():
    with pytest.raises(PlanError, match="w8a8-static: no input_scale was given"):
        mixed_state(round_to_nearest(weight(), STATIC), STATIC)
    for name in ("w8a8", "w8a16-row"):
        scheme = WeightScheme.model_validate(name)
        with pytest.raises(PlanError, match=f"{name}: an input_scale was given"):
            mixed_state(round_to_nearest(weight(), scheme), scheme, input_scale=torch.ones(1))
    with pytest.raises(PlanError, match="comes from calibration"):
        quantize_weight(weight(), STATIC)


@pytest.mark.parametrize("rows", [[40], [-1], [3, 3]], ids=str)
def test_rows_that_are_not_there_are_refused(rows):
    with pytest.raises(PlanError, match=r"not different rows of 0\.\.39"):
        mixed_state(round_to_nearest(weight(), SCHEMES[0]), SCHEMES[0], weight(), BF16, rows)
