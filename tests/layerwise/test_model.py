"""Layers run one by one from the files give what transformers' whole model gives, bit for bit."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from mvquant.checkpoint.folder import open_checkpoint
from mvquant.errors import CalibrationError
from mvquant.folding import fold_factors, folded_parameters, load_folded
from mvquant.layerwise import LayerModel
from tests.layerwise.examples import saved
from tests.tiny_models import FAMILY_NAMES, tiny_model, tiny_tokens

BATCHES = [tiny_tokens(1, 24), tiny_tokens(1, 40, seed=1), tiny_tokens(2, 24, seed=2)]


def whole_outputs(model, prefix):
    """What every layer of a whole model gives, by batch and layer."""
    outputs = []
    hooks = [
        layer.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
        for layer in model.get_submodule(prefix)
    ]
    with torch.no_grad():
        for batch in BATCHES:
            model.base_model(input_ids=batch, use_cache=False)
    for hook in hooks:
        hook.remove()
    layers = len(outputs) // len(BATCHES)
    return [outputs[start : start + layers] for start in range(0, len(outputs), layers)]


def assert_same(layers, expected):
    states = list(layers.embedded(BATCHES))
    for index in range(len(layers)):
        with layers.layer(index):
            states = [layers.run_layer(index, each) for each in states]
        assert all(torch.equal(each, outputs[index]) for each, outputs in zip(states, expected, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_layers_give_what_the_whole_model_gives(family, dtype, tmp_path):
    world = saved(family, tmp_path, dtype=dtype)
    layers = LayerModel(world.checkpoint, world.view)
    whole = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert layers.dtype == whole.dtype == dtype
    assert_same(layers, whole_outputs(whole, layers.prefix))


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt_neox"])
def test_folded_layers_give_what_the_folded_model_gives(family, tmp_path):
    world = saved(family, tmp_path)
    generator = torch.Generator().manual_seed(0)
    scales = tuple(
        2.0 ** torch.randint(-2, 3, (1, each.k.pairs), generator=generator).double().expand(each.k.heads, -1)
        for each in world.view.attentions
    )
    load_folded(world.model, folded_parameters(world.model, world.view, scales))
    layers = LayerModel(world.checkpoint, world.view, fold_factors(world.view, scales))
    assert_same(layers, whole_outputs(world.model, layers.prefix))


def test_nothing_but_what_is_run_has_numbers(tmp_path):
    world = saved("gemma3_text", tmp_path)
    layers = LayerModel(world.checkpoint, world.view)

    def with_numbers():
        tensors = [*layers.model.named_parameters(), *layers.model.named_buffers()]
        return {name for name, tensor in tensors if not tensor.is_meta}

    for _ in layers.embedded(BATCHES[:1]):
        assert not any(name.startswith("model.layers.") for name in with_numbers())
        assert "model.embed_tokens.weight" in with_numbers()
    assert not with_numbers()
    with layers.layer(1):
        assert all(name.startswith("model.layers.1.") for name in with_numbers())
    assert not with_numbers()


def test_a_layer_can_have_other_values_than_on_disk_and_is_new_every_time(tmp_path):
    world = saved("llama", tmp_path)
    layers = LayerModel(world.checkpoint, world.view)
    name = "model.layers.0.mlp.down_proj.weight"
    with layers.layer(0, {name: torch.zeros(64, 128)}) as module:
        assert not module.mlp.down_proj.weight.any()
        module.self_attn.q_proj.weight.data.zero_()
    with layers.layer(0) as module:
        assert torch.equal(module.mlp.down_proj.weight, world.model.get_parameter(name))
        assert module.self_attn.q_proj.weight.any()


def test_calls_can_be_learnt_without_hidden_states(tmp_path):
    world = saved("gemma2", tmp_path)
    layers, again = (LayerModel(world.checkpoint, world.view) for _ in range(2))
    states = list(layers.embedded(BATCHES))
    again.learn_calls(BATCHES)
    for each in (layers, again):
        with each.layer(0):
            outputs = [each.run_layer(0, state) for state in states]
    with layers.layer(0):
        assert all(torch.equal(layers.run_layer(0, state), out) for state, out in zip(states, outputs, strict=True))


def test_a_config_without_dtype_has_that_on_disk(tmp_path):
    tiny_model("llama", dtype=torch.bfloat16).save_pretrained(tmp_path)
    config = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(config.replace('"dtype": "bfloat16",', ""))
    checkpoint = open_checkpoint(str(tmp_path))
    assert checkpoint.config.dtype is None
    assert LayerModel(checkpoint, saved("llama", tmp_path / "other").view).dtype == torch.bfloat16


def test_tokens_that_the_model_does_not_know_are_refused(tmp_path):
    world = saved("llama", tmp_path)
    with pytest.raises(CalibrationError, match="tokenizer"):
        list(LayerModel(world.checkpoint, world.view).embedded([torch.tensor([[1000]])]))
