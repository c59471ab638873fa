import pytest
import torch

from mvquant.backends.llmcompressor.holder import changed_parameters, held, scaled_parameters
from mvquant.backends.llmcompressor.linears import taken_apart
from mvquant.method_settings import Awq
from tests.backends.llmcompressor.layer_driver import calibrated_layer, calibration, eager_model, planned


def layer_of(family, index=1, dtype=torch.float32, ignore=()):
    model = eager_model(family, dtype)
    plan = planned(model, "w4a16-g32", Awq(), ignore=ignore)
    return calibrated_layer(model, plan, index, calibration(1))


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "opt", "gpt2"])
def test_modules_are_found_by_their_full_names(family):
    layer = layer_of(family)
    with held(layer) as root:
        for plan in layer.modules:
            assert root.get_submodule(plan.name) is layer.module.get_submodule(layer.local(plan.name))
        assert not root.training


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["gemma2", "gemma3_text"])
def test_norms_of_one_plus_weight_compute_the_same_while_held_and_stay_as_they_were(family, dtype):
    layer = layer_of(family, dtype=dtype)
    before = {name: value.clone() for name, value in layer.module.state_dict().items()}
    expected = torch.cat(list(layer.run()))
    kinds = {name: type(module) for name, module in layer.module.named_modules()}
    with held(layer):
        assert {name: type(module) for name, module in layer.module.named_modules()} != kinds
        torch.testing.assert_close(torch.cat(list(layer.run())), expected)
    assert {name: type(module) for name, module in layer.module.named_modules()} == kinds
    for name, value in layer.module.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_a_scale_that_goes_into_one_of_gemmas_norms_is_rounded_once():
    layer = layer_of("gemma2", dtype=torch.bfloat16)
    norm = layer.module.input_layernorm
    before = norm.weight.detach().clone()
    with held(layer) as root:
        root.get_submodule(f"{layer.name}.input_layernorm").weight.data.div_(3)
    assert torch.equal(layer.module.input_layernorm.weight, ((1 + before.float()) / 3 - 1).bfloat16())


def test_changed_parameters_are_those_that_are_not_planned():
    layer = layer_of("qwen2", ignore=("*.k_proj",))
    attention = layer.module.self_attn
    with taken_apart(layer) as linears, held(layer):
        mappings = [
            (layer.module.input_layernorm, [attention.q_proj, attention.k_proj, attention.v_proj]),
            (attention.v_proj, [attention.o_proj]),
        ]
        changed = changed_parameters(layer, linears, scaled_parameters(layer, mappings))
    prefix = "model.layers.1"
    assert set(changed) == {
        f"{prefix}.input_layernorm.weight",
        f"{prefix}.self_attn.k_proj.weight",
        f"{prefix}.self_attn.v_proj.bias",
    }
    assert changed[f"{prefix}.input_layernorm.weight"].data_ptr() != layer.module.input_layernorm.weight.data_ptr()


def test_experts_left_out_are_put_together_again():
    layer = layer_of("qwen3_moe", ignore=("*.gate_up_proj",))
    with taken_apart(layer) as linears:
        experts = layer.module.mlp.experts
        every = [each for index in range(4) for each in (experts[index].gate_proj, experts[index].up_proj)]
        every[0].weight.data = every[0].weight * 2
        mappings = [(layer.module.post_attention_layernorm, [layer.module.mlp.gate, *every])]
        changed = changed_parameters(layer, linears, scaled_parameters(layer, mappings))
    assert set(changed) == {
        "model.layers.1.mlp.experts.gate_up_proj",
        "model.layers.1.mlp.gate.weight",
        "model.layers.1.post_attention_layernorm.weight",
    }
    torch.testing.assert_close(
        changed["model.layers.1.mlp.experts.gate_up_proj"], layer.module.mlp.experts.gate_up_proj
    )
