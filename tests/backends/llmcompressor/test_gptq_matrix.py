import pytest
import torch

from mvquant.backends.llmcompressor.gptq_matrix import gptq_round
from mvquant.backends.llmcompressor.inputs import InputSum
from mvquant.method_settings import Gptq
from mvquant.quant import round_to_nearest
from mvquant.scheme import WeightScheme


def test_a_hessian_beyond_repair_is_rounded_to_nearest_and_said_so():
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
    scheme = WeightScheme(bits=4, group_size=32)
    negative = InputSum(-torch.eye(64, dtype=torch.float64), torch.ones(()), torch.ones(()))
    made = gptq_round(weight, negative, scheme, Gptq())
    assert (made.failed, made.damping, made.error) == (1, 1.0, None)
    nearest = round_to_nearest(weight, scheme)
    assert torch.equal(made.weight.integers, nearest.integers)
    assert torch.equal(made.weight.grid.scale, nearest.grid.scale)


@pytest.mark.parametrize("scheme", ["w2a16-g32-asym", "w4a16-g32", "w8a16-row"])
def test_columns_never_active_and_groups_of_zeros_stay_on_the_grid(scheme):
    chosen = WeightScheme.model_validate(scheme)
    generator = torch.Generator().manual_seed(0)
    weight, seen = torch.randn(8, 64, generator=generator), torch.randn(200, 64, generator=generator)
    weight[:, :32] = 0
    seen[:, 40] = 0
    inputs = InputSum(2 * (seen.T @ seen).double(), torch.ones(()), torch.tensor(200.0))
    made = gptq_round(weight, inputs, chosen, Gptq()).weight
    values = made.dequantize(chosen, torch.float32)
    assert values[:, :32].abs().max() < 1e-4  # a group of zeros has the smallest scale there is
    assert values[:, 40].abs().max() == 0
    assert int(made.integers.abs().max()) <= 1 << (chosen.bits - 1)
