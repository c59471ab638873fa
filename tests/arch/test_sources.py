"""Assembled parameters equal those of `from_pretrained`, bit for bit, for every layout on disk."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from mvquant.arch import checkpoint_sources, model_view, tied_on_disk, unexpected_tensors
from mvquant.errors import CheckpointError
from tests.tiny_models import FAMILY_NAMES, tiny_config, tiny_model


def assemble(view, disk):
    return {
        name: source.assemble([disk[tensor] for tensor in source.tensors])
        for name, source in checkpoint_sources(view, disk).items()
    }


def assert_equals_reloaded(folder):
    """The outside oracle: transformers reads the same files."""
    reloaded = AutoModelForCausalLM.from_pretrained(folder)
    view = model_view(reloaded.config)
    disk = {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}
    ours, theirs = assemble(view, disk), reloaded.state_dict()

    assert list(ours) == list(view.parameters)
    assert ours.keys() | view.tied.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype
        assert torch.equal(tensor, theirs[name]), name
    assert unexpected_tensors(view, disk) == []


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_a_saved_model_is_assembled_as_transformers_does(family, tmp_path):
    tiny_model(family).save_pretrained(tmp_path)

    assert_equals_reloaded(tmp_path)


@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_shards_and_bfloat16(family, tmp_path):
    tiny_model(family, dtype=torch.bfloat16).save_pretrained(tmp_path, max_shard_size="20KB")

    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    assert_equals_reloaded(tmp_path)


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_twelve_experts_stay_in_order(family, tmp_path):
    count = "num_local_experts" if family == "mixtral" else "num_experts"
    model = tiny_model(family, **{count: 12})
    model.save_pretrained(tmp_path)
    names = load_file(tmp_path / "model.safetensors")

    assert any("experts.11." in name for name in names)
    assert_equals_reloaded(tmp_path)


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_names_in_module_form_pass_through(family):
    model = tiny_model(family)
    view = model_view(model.config)

    sources = checkpoint_sources(view, reversed(list(view.parameters)))

    assert {name: source.tensors for name, source in sources.items()} == {name: (name,) for name in view.parameters}


@pytest.mark.parametrize("family", ["qwen2", "gemma3_text", "gpt2", "opt"])
def test_a_base_model_lacks_the_prefix(family, tmp_path):
    model = tiny_model(family)
    model.base_model.save_pretrained(tmp_path)

    assert_equals_reloaded(tmp_path)


def test_tied_embeddings_may_be_stored_under_either_name(tmp_path):
    model = tiny_model("qwen2")
    view = model_view(model.config)
    model.save_pretrained(tmp_path)
    disk = load_file(tmp_path / "model.safetensors")
    disk["lm_head.weight"] = disk.pop("model.embed_tokens.weight")
    save_file(disk, tmp_path / "model.safetensors", metadata={"format": "pt"})

    assert_equals_reloaded(tmp_path)
    assert tied_on_disk(view, disk) == []
    assert tied_on_disk(view, [*disk, "model.embed_tokens.weight"]) == [("lm_head.weight", "model.embed_tokens.weight")]


def test_missing_tensors_are_named():
    view = model_view(tiny_config("llama"))
    names = [name for name in view.parameters if "layers.1." not in name]

    with pytest.raises(CheckpointError, match=r"lacks model\.layers\.1\.self_attn\.q_proj\.weight, .* and 4 more"):
        checkpoint_sources(view, names)


def test_an_untied_head_is_missed():
    view = model_view(tiny_config("llama"))

    with pytest.raises(CheckpointError, match=r"lacks lm_head\.weight"):
        checkpoint_sources(view, [name for name in view.parameters if name != "lm_head.weight"])


@pytest.mark.parametrize("lost", ["experts.2.w1.weight", "experts.2.w2.weight"])
def test_a_missing_expert_is_counted(lost, tmp_path):
    tiny_model("mixtral").save_pretrained(tmp_path)
    names = [name for name in load_file(tmp_path / "model.safetensors") if not name.endswith(lost)]

    with pytest.raises(CheckpointError, match=r"has 3 of the 4 tensors \.experts\.\*\.w[12]\.weight"):
        checkpoint_sources(model_view(tiny_config("mixtral")), names)


def test_two_tensors_for_one_parameter_are_refused():
    view = model_view(tiny_config("llama"))

    with pytest.raises(CheckpointError, match=r"2 tensors for model\.norm\.weight: model\.norm\.weight, norm\.weight"):
        checkpoint_sources(view, [*view.parameters, "norm.weight"])


def test_another_shape_is_refused():
    view = model_view(tiny_config("llama"))
    source = checkpoint_sources(view, view.parameters)["model.norm.weight"]

    with pytest.raises(CheckpointError, match=r"model.norm.weight has shape \(32,\) .* and \(64,\)"):
        source.assemble([torch.zeros(32)])


def test_unexpected_tensors_are_listed_without_known_leftovers():
    view = model_view(tiny_config("llama"))
    leftovers = ["model.layers.0.self_attn.rotary_emb.inv_freq"]
    strange = ["model.layers.2.mlp.up_proj.weight", "model.layers.0.self_attn.q_proj.qweight"]

    assert unexpected_tensors(view, [*strange, *view.parameters, *leftovers]) == strange
    neox = model_view(tiny_config("gpt_neox"))
    assert unexpected_tensors(neox, ["gpt_neox.layers.0.attention.masked_bias"]) == []
