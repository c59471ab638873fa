"""Warnings of too few tokens."""

import pytest
import torch

from mvquant.calibration import few_tokens
from mvquant.method_settings import METHOD_SETTINGS
from mvquant.named_schemes import recipe_for_scheme
from mvquant.plan import CalibrationRecord, ModulePlan, Plan
from mvquant.recipe import Weights
from mvquant.scheme import WeightScheme

RECORD = CalibrationRecord(source="t", sequences=1, length=8, seed=0, hash="0")


def plan(method: str, scheme: str = "w4a16-g32") -> Plan:
    read = WeightScheme.model_validate(scheme)
    weights = Weights(scheme=read, method=METHOD_SETTINGS[method]())
    modules = (
        ModulePlan(name="up", layer=0, shape=(16, 64), scheme=read),
        ModulePlan(name="down", layer=0, shape=(64, 256), scheme=read),
    )
    return Plan(
        model="t",
        family="llama",
        dtype="bfloat16",
        recipe=recipe_for_scheme("w4a16").model_copy(update={"weights": weights}),
        modules=modules,
        kept_parameters=0,
        calibration=RECORD,
    )


def batches(*lengths: int) -> list[torch.Tensor]:
    return [torch.zeros(1, length, dtype=torch.int64) for length in lengths]


def test_a_hessian_wants_two_tokens_per_column_of_the_widest_module():
    (sentence,) = few_tokens(plan("gptq"), batches(256, 255))
    assert sentence.startswith(
        "2 calibration sequences have 511 tokens, fewer than 2 for each of the 256 columns of down"
    )
    assert few_tokens(plan("gptq"), batches(256, 256)) == []


@pytest.mark.parametrize("method", ["awq", "autoround"])
def test_methods_without_a_hessian_want_a_token_per_column_of_a_group(method):
    (sentence,) = few_tokens(plan(method), batches(31))
    assert "31 tokens, fewer than the 32 columns of a group of up: use more or longer sequences" in sentence
    assert few_tokens(plan(method), batches(32)) == []


def test_a_whole_row_is_a_group_too():
    (sentence,) = few_tokens(plan("gptq", "w4a16-row"), batches(200))
    assert "fewer than the 256 columns of a group of down" in sentence


def test_rounding_to_nearest_needs_no_tokens():
    assert few_tokens(plan("rtn"), batches(1)) == []
