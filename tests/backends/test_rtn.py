"""Rounding to nearest with static scales of activations, which come from all calibration sequences."""

import pytest
import torch

from mvquant.backends.layer import LayerBackend
from mvquant.backends.rtn import RoundToNearest
from mvquant.errors import CalibrationError
from mvquant.layerwise import LayerModel, opened_work, quantize_layers
from mvquant.plan import CalibrationRecord
from mvquant.policies import make_plan
from mvquant.quant import quantize_weight
from mvquant.recipe import Protect, Recipe, Weights
from mvquant.scheme import WeightScheme
from mvquant.stats import token_hash
from tests.layerwise.examples import batches, fingerprint, planned, saved

STATIC = WeightScheme.model_validate("w8a8-static")
PLAIN = WeightScheme.model_validate("w8a16-row")
"""The same grid for weights."""


def static_plan(view, *, protect=False):
    recipe = Recipe(
        summary="t",
        weights=Weights(scheme=STATIC),
        protect=Protect(policy="slow-pairs", pairs=0.25) if protect else Protect(policy="none"),
    )
    record = CalibrationRecord(source="t", sequences=3, length=24, seed=0, hash=token_hash(batches()))
    return make_plan(view, recipe, model="tiny", dtype="float32", calibration=record)


def results_of(world, plan, folder, backend=None):
    with opened_work(folder, fingerprint()) as work:
        made = quantize_layers(
            LayerModel(world.checkpoint, world.view), plan, batches(), backend or RoundToNearest(), work
        )
        return {module.name: made.state(module.name) for module in plan.modules}, made.records


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3"])
def test_input_scales_span_the_largest_input_of_all_sequences(family, tmp_path):
    world = saved(family, tmp_path / "model")
    states, records = results_of(world, static_plan(world.view), tmp_path / "work")
    name = next(weight.name for weight in world.view.weights)
    largest = []
    hook = world.model.get_submodule(name).register_forward_pre_hook(
        lambda _module, inputs: largest.append(float(inputs[0].abs().max()))
    )
    with torch.no_grad():
        for batch in batches():
            world.model(input_ids=batch)
    hook.remove()
    assert states[name]["input_scale"].tolist() == pytest.approx([max(largest) / 127.5], rel=1e-6)
    assert all(tuple(state["input_scale"].shape) == (1,) for state in states.values())
    assert {record.tokens for record in records} == {24 + 16 + 24}


def test_integers_are_those_of_rounding_each_weight_and_protected_rows_stay_floats(tmp_path):
    world = saved("llama", tmp_path / "model")
    plan = static_plan(world.view, protect=True)
    states, _ = results_of(world, plan, tmp_path / "work")
    for module in plan.modules:
        weight = world.model.get_submodule(module.name).weight.detach()
        expected = quantize_weight(weight, PLAIN, module.protected_scheme, list(module.protected_rows))
        assert all(torch.equal(states[module.name][part], expected[part]) for part in expected)
    assert "protected_weight" in states["model.layers.0.self_attn.q_proj"]


def test_weights_alone_need_no_run(tmp_path):
    world = saved("mixtral", tmp_path / "model")
    states, records = results_of(world, planned(world.view, protect=False), tmp_path / "work")
    assert not any("input_scale" in state for state in states.values())
    assert all(record.tokens is None and 0 < record.error < 0.1 for record in records)


def test_inputs_that_are_nan_are_named(tmp_path):
    world = saved("llama", tmp_path / "model")

    class Spoiling(RoundToNearest):
        def quantize(self, layer):
            layer.module.input_layernorm.weight.data.fill_(float("inf"))
            return super().quantize(layer)

    with pytest.raises(CalibrationError, match=r"self_attn\.q_proj gets NaN or infinite inputs"):
        results_of(world, static_plan(world.view), tmp_path / "work", Spoiling())


def test_it_is_a_layer_backend():
    assert isinstance(RoundToNearest(), LayerBackend)
