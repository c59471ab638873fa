from dataclasses import replace

import pytest
import torch

from mvquant.backends.llmcompressor.linears import taken_apart
from mvquant.errors import UnsupportedModelError
from mvquant.method_settings import Gptq
from mvquant.scheme import WeightScheme
from tests.backends.llmcompressor.layer_driver import calibrated_layer, calibration, eager_model, planned


def taken(family):
    model = eager_model(family)
    return model, calibrated_layer(model, planned(model, "w4a16-g32", Gptq()), 0, calibration(2))


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_experts_taken_apart_compute_the_same_and_share_memory(family):
    _, layer = taken(family)
    before = torch.cat(list(layer.run()))
    with taken_apart(layer) as linears:
        torch.testing.assert_close(torch.cat(list(layer.run())), before)
        for plan in layer.modules:
            whole = torch.cat([linear.weight for linear in linears.by_plan[plan.name]])
            assert torch.equal(linears.matrix(plan.name), whole)
            assert whole.shape == (plan.rows, plan.columns)
        parameter = layer.name + ".mlp.experts.gate_up_proj"
        shape = next(plan.shape for plan in layer.modules if plan.name == parameter)
        assert linears.parameter(parameter).shape == shape
        expert = linears.by_plan[parameter][3]
        expert.module.weight.data.zero_()
        assert linears.parameter_name(f"{expert.name}.weight") == parameter
    rows = shape[1] // 2
    after = layer.module.get_parameter("mlp.experts.gate_up_proj")
    assert not after[1, rows:].any()
    assert after[1, :rows].all()


def test_weights_moved_elsewhere_are_put_back():
    _, layer = taken("qwen3_moe")
    with taken_apart(layer) as linears:
        linear = linears.by_plan["model.layers.0.mlp.experts.down_proj"][2]
        linear.module.weight.data = torch.full_like(linear.weight, 2.0)
    assert (layer.module.get_parameter("mlp.experts.down_proj")[2] == 2).all()
    assert not (layer.module.get_parameter("mlp.experts.down_proj")[1] == 2).any()


def test_routed_tokens_are_counted_while_all_experts_see_all():
    _, layer = taken("mixtral")
    seen = []
    with taken_apart(layer) as linears:
        down = linears.by_plan["model.layers.0.mlp.experts.down_proj"]
        hooks = [
            each.module.register_forward_pre_hook(lambda _module, inputs: seen.append(len(inputs[0]))) for each in down
        ]
        linears.run(hooks)
        routed = linears.routed["model.layers.0.mlp.experts"]
    assert int(routed.sum()) == 2 * 48 * 2  # sequences, tokens, experts for each token
    assert seen == [48] * 2 * 4
    assert not down[0].module._forward_pre_hooks


@pytest.mark.parametrize("scheme", ["w8a8", "w8a8-static"])
def test_experts_with_rounded_activations_are_refused_with_the_way_out(scheme):
    model = eager_model("mixtral")
    layer = calibrated_layer(model, planned(model, "w4a16-g32", Gptq()), 0, calibration(1))
    rounded = WeightScheme.model_validate(scheme)
    plans = tuple(plan.model_copy(update={"scheme": rounded}) for plan in layer.modules)
    with (
        pytest.raises(UnsupportedModelError, match=rf"mixtral has experts .* \({scheme}\); leave them as they are"),
        taken_apart(replace(layer, modules=plans)),
    ):
        pass


def test_gpt2_has_its_weights_rows_first():
    model, layer = taken("gpt2")
    with taken_apart(layer) as linears:
        weight = linears.matrix("transformer.h.0.mlp.c_fc")
    assert torch.equal(weight, model.transformer.h[0].mlp.c_fc.weight.T)
