"""W8A8 checkpoints: the whole path on tiny models, and logits equal to compressed-tensors' own reload."""

import json
import logging

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from mvquant.arch import model_view
from mvquant.checkpoint.folder import open_checkpoint
from mvquant.checkpoint.native import quantization_config, read_quantization_config
from mvquant.checkpoint.write import write_checkpoint
from mvquant.errors import CheckpointError, PlanError
from mvquant.methods import apply_plan
from mvquant.plan import CalibrationRecord
from mvquant.policies import make_plan
from mvquant.quant import MixedRowLinear
from mvquant.quant.packing import unpack
from mvquant.recipe import parse_recipe
from tests.fake_results import FakeResults, fake_results
from tests.tiny_models import tiny_model, tiny_tokens

RECORD = CalibrationRecord(source="t", sequences=1, length=8, seed=0, hash="0")
PROTECT = "protect: {policy: slow-pairs, pairs: 0.25, scheme: %s}\n"
NAMES = ("w8a8", "w8a8-static")


def quantized(tmp_path, family, scheme, protect="", dtype=torch.bfloat16):
    """Save a tiny model, quantize it into `tmp_path / "out"`; return the plan and what was made of the weights."""
    tiny_model(family, dtype=dtype).save_pretrained(tmp_path / "model")
    checkpoint = open_checkpoint(str(tmp_path / "model"))
    view = model_view(checkpoint.config)
    recipe = parse_recipe(f"summary: t\nweights: {{scheme: {scheme}}}\n{protect}", "t.yaml")
    plan = make_plan(view, recipe, model=family, dtype=checkpoint.dtype, calibration=RECORD)
    results = None
    if recipe.calibrates_weights:
        results = FakeResults(fake_results(load(tmp_path / "model"), plan).states)
    write_checkpoint(checkpoint, view, plan, tmp_path / "out", results=results, overwrite=True)
    return plan, results


def load(folder):
    return AutoModelForCausalLM.from_pretrained(folder).eval()


def logits(model):
    with torch.no_grad():
        return model(tiny_tokens()).logits


@pytest.mark.parametrize("kept", ["bf16", "w8a16-row", None])
@pytest.mark.parametrize("scheme", NAMES)
@pytest.mark.parametrize("family", ["llama", "qwen2", "phi3", "gpt_neox"])
def test_a_loaded_checkpoint_equals_the_model_in_memory_and_takes_the_bytes_of_its_plan(tmp_path, family, scheme, kept):
    plan, results = quantized(tmp_path, family, scheme, PROTECT % kept if kept else "")
    loaded = load(tmp_path / "out")
    assert torch.equal(logits(loaded), logits(apply_plan(load(tmp_path / "model"), plan, results)))
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    assert sum(tensor.nbytes for tensor in tensors.values()) == plan.bytes_after
    scales = [name for name in tensors if name.endswith("input_scale")]
    assert len(scales) == (len(plan.modules) if scheme == "w8a8-static" else 0)
    assert all(tensors[name].dtype == torch.bfloat16 and tensors[name].shape == (1,) for name in scales)


@pytest.mark.parametrize("family", ["opt", "gpt2"])
@pytest.mark.parametrize("scheme", NAMES)
def test_families_without_rope_round_activations_too(tmp_path, family, scheme):
    plan, results = quantized(tmp_path, family, scheme)
    assert torch.equal(logits(load(tmp_path / "out")), logits(apply_plan(load(tmp_path / "model"), plan, results)))


@pytest.mark.parametrize("scheme", NAMES)
def test_saving_again_keeps_every_logit_and_dequantizing_says_what_is_lost(tmp_path, scheme, caplog):
    plan, _ = quantized(tmp_path, "llama", scheme, PROTECT % "bf16", torch.float32)
    loaded = load(tmp_path / "out")
    expected, weights = logits(loaded), {m.name: loaded.get_submodule(m.name).dequantize() for m in plan.modules}
    loaded.save_pretrained(tmp_path / "again")
    assert torch.equal(logits(load(tmp_path / "again")), expected)
    with caplog.at_level(logging.WARNING, "mvquant"):
        plain = loaded.dequantize()
    assert "activations are rounded no more: logits will differ" in caplog.text
    assert all(torch.equal(plain.get_submodule(name).weight, weight) for name, weight in weights.items())
    difference = (logits(plain) - expected).norm() / expected.norm()
    assert 0 < difference < 0.1


@pytest.mark.parametrize("scheme", NAMES)
def test_activations_are_what_is_rounded(tmp_path, scheme):
    """Against the same 8-bit weights with activations as they come."""
    quantized(tmp_path, "llama", scheme, dtype=torch.float32)
    rounded = logits(load(tmp_path / "out"))
    quantized(tmp_path, "llama", "w8a16-row", dtype=torch.float32)
    plain = logits(load(tmp_path / "out"))
    assert 1e-4 < (rounded - plain).norm() / plain.norm() < 0.2


@pytest.mark.parametrize("scheme", NAMES)
def test_protecting_rows_leaves_all_others_bit_identical_on_disk(tmp_path, scheme):
    quantized(tmp_path, "llama", scheme)
    plain = load_file(tmp_path / "out" / "model.safetensors")
    plan, _ = quantized(tmp_path, "llama", scheme, PROTECT % "bf16")
    mixed = load_file(tmp_path / "out" / "model.safetensors")
    for module in plan.modules:
        base = torch.ones(module.rows, dtype=torch.bool)
        base[list(module.protected_rows)] = False
        for part in ("weight_packed", "weight_scale"):
            assert torch.equal(mixed[f"{module.name}.{part}"], plain[f"{module.name}.{part}"][base])
    assert any(module.protected_rows for module in plan.modules)
    assert all(torch.equal(plain[name], mixed[name]) for name in plain if name.endswith("input_scale"))


def write_compressed(model: PreTrainedModel, plan, folder) -> None:
    """Write the same integers as compressed-tensors' own `int-quantized` checkpoint."""
    tensors, static = {}, False
    planned = {module.name: model.get_submodule(module.name) for module in plan.modules}
    for name, tensor in model.state_dict().items():
        owner, _, part = name.rpartition(".")
        if owner not in planned or part == "bias":
            tensors[name] = tensor
        elif part == "weight_packed":
            tensors[f"{owner}.weight"] = unpack(tensor, 8, planned[owner].in_features)
        else:
            tensors[name] = tensor
            static = static or part == "input_scale"
    number = {"num_bits": 8, "type": "int", "symmetric": True}
    activations = {"strategy": "tensor", "dynamic": False} if static else {"strategy": "token", "dynamic": True}
    scheme = {
        "targets": ["Linear"],
        "weights": {**number, "strategy": "channel", "dynamic": False},
        "input_activations": {**number, **activations},
    }
    config = json.loads(model.config.to_json_string(use_diff=False))
    config["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": scheme},
        "ignore": [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)],
    }
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    save_file(
        {name: tensor.clone() for name, tensor in tensors.items()}, folder / "model.safetensors", {"format": "pt"}
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("scheme", NAMES)
@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2", "gpt_neox"])
def test_logits_equal_those_of_compressed_tensors_with_the_same_integers(tmp_path, family, scheme, dtype, monkeypatch):
    plan, _ = quantized(tmp_path, family, scheme, dtype=dtype)
    loaded = load(tmp_path / "out")
    write_compressed(loaded, plan, tmp_path / "compressed")
    theirs = load(tmp_path / "compressed")
    expected = logits(theirs)
    assert theirs.get_submodule(plan.modules[0].name).quantization_scheme.input_activations.num_bits == 8
    assert not torch.equal(expected, logits(load(tmp_path / "model")))
    by_default = logits(loaded)
    monkeypatch.setattr(MixedRowLinear, "path", "definition")
    assert torch.equal(logits(loaded), expected)
    if dtype is torch.float32:  # sums of integers, where theirs are of rounded products: this may tip an integer
        assert (by_default - expected).norm() / expected.norm() < 1e-2


def test_experts_are_refused_with_the_way_out(tmp_path):
    with pytest.raises(
        PlanError,
        match=r"activations of experts cannot be rounded; leave out experts: `ignore: \[\"\*\.experts\.\*\"\]`",
    ):
        quantized(tmp_path, "mixtral", "w8a8")
    plan, _ = quantized(tmp_path, "mixtral", 'w8a8, ignore: ["*.experts.*"]')
    assert {module.kind for module in plan.modules} == {"linear"}
    assert torch.equal(logits(load(tmp_path / "out")), logits(apply_plan(load(tmp_path / "model"), plan)))


def test_readers_that_know_no_rounded_activations_refuse_the_checkpoint(tmp_path):
    plan, _ = quantized(tmp_path, "llama", "w8a8")
    config = quantization_config(plan)
    assert config["format_version"] == 3
    assert read_quantization_config(config) == plan
    for older in (1, 2):
        with pytest.raises(CheckpointError, match=f"rounds activations, which format version {older} does not"):
            read_quantization_config({**config, "format_version": older})


def test_a_method_by_name_is_of_the_newest_format_too(tmp_path):
    plan, _ = quantized(tmp_path, "llama", "w4a16-g32, method: gptq")
    config = quantization_config(plan)
    assert config["format_version"] == 3
    assert read_quantization_config(json.loads(json.dumps(config))).recipe.method.name == "gptq"
    with pytest.raises(CheckpointError, match="names the method gptq, which format version 1"):
        read_quantization_config({**config, "format_version": 1})
    plain, _ = quantized(tmp_path, "llama", "w4a16-g32")
    assert quantization_config(plain)["format_version"] == 1


def test_a_checkpoint_that_lost_its_input_scale_is_refused(tmp_path):
    quantized(tmp_path, "llama", "w8a8-static")
    file = tmp_path / "out" / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.layers.1.mlp.up_proj.input_scale"]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"up_proj\.input_scale"):
        load(tmp_path / "out")
