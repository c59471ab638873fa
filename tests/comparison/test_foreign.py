"""Checkpoints that others made, in a comparison: a packed one by compressed-tensors, and broken ones."""

import json
import shutil

import pytest
import torch
from compressed_tensors.compressors import ModelCompressor
from compressed_tensors.quantization import (
    QuantizationArgs,
    QuantizationConfig,
    QuantizationScheme,
    apply_quantization_config,
)
from compressed_tensors.quantization.utils import calculate_qparams
from safetensors.torch import load_file, save_file

from mvquant.arch import model_view
from mvquant.comparison.foreign import measured_bits_per_weight, obstacle, stored_bytes
from mvquant.errors import CheckpointError
from mvquant.evaluation import evaluate
from mvquant.pipeline import load_model
from mvquant.policies import make_plan
from mvquant.recipe import Recipe
from tests.comparison.examples import make_world, save_model
from tests.evaluation.examples import tiny_tokenizer
from tests.tiny_models import tiny_config, tiny_model

GROUP = 32


def compressed(folder, ignore=("lm_head",)):
    """Round the tiny model to 4 bits in groups with compressed-tensors alone, and pack it."""
    tokenizer = tiny_tokenizer()
    model = tiny_model("llama", dtype=torch.bfloat16, vocab_size=len(tokenizer))
    arguments = QuantizationArgs(num_bits=4, group_size=GROUP, strategy="group", symmetric=True)
    scheme = QuantizationScheme(targets=["Linear"], weights=arguments)
    apply_quantization_config(model, QuantizationConfig(config_groups={"all": scheme}, ignore=list(ignore)))
    for module in model.modules():
        if hasattr(module, "weight_scale"):
            groups = module.weight.reshape(module.weight.shape[0], -1, GROUP)
            module.weight_scale.data.copy_(calculate_qparams(groups.amin(-1), groups.amax(-1), arguments)[0])
    compressor = ModelCompressor.from_pretrained_model(model, "pack-quantized")
    compressor.compress_model(model)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    compressor.update_config(folder)
    return folder


def edit_config(folder, **changes):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "quantization_config": {**config["quantization_config"], **changes}}))


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    world = make_world(tmp_path_factory.mktemp("foreign"))
    compressed(world.folder / "packed")
    return world


def test_a_packed_checkpoint_answers_as_transformers_loads_it(packed):
    folder = packed.folder / "packed"
    results = packed.compare(packed.recipe(str(folder), "w4a16-g32", noise_floor=False), "one")
    ours, theirs = results.variants[1:]
    assert results.complete
    assert "quantized by compressed-tensors" in ours.summary
    expected = evaluate(*load_model(folder), packed.questions().tasks, batch_size=4)
    assert {name: score.accuracy for name, score in ours.tasks.items()} == {
        name: task.accuracy for name, task in expected.tasks.items()
    }
    assert results.versions["compressed-tensors"] not in ("", "not installed")
    # its files say the same as our plan of the same grid, and two numbers for the shape of each of 14 modules
    weights = sum(load_file(packed.model / "model.safetensors")[f"{name}.weight"].numel() for name in linears(packed))
    shapes = 2 * 64 * len(linears(packed))
    assert ours.bits_per_weight == pytest.approx(theirs.bits_per_weight + shapes / weights)
    assert ours.bytes == sum(
        tensor.nbytes for path in folder.glob("*.safetensors") for tensor in load_file(path).values()
    )


def linears(world):
    return [weight.name for weight in world.baseline().view.weights]


def test_modules_that_were_left_as_they_are_count_in_full(packed, tmp_path):
    folder = compressed(tmp_path / "half", ignore=("lm_head", "re:.*mlp.*"))
    view = packed.baseline().view
    found = measured_bits_per_weight(stored_bytes(folder), view)
    sizes = {weight.name: weight.shape[0] * weight.shape[1] for weight in view.weights}
    kept = sum(size for name, size in sizes.items() if "mlp" in name)
    rest = sum(sizes.values()) - kept
    modules = sum("mlp" not in name for name in sizes)
    assert found == pytest.approx((16 * kept + (4 + 16 / GROUP) * rest + 128 * modules) / sum(sizes.values()))


def test_an_unquantized_checkpoint_has_the_bits_of_its_dtype(packed):
    stored = stored_bytes(packed.model)
    assert measured_bits_per_weight(stored, packed.baseline().view) == 16
    del stored["model.layers.1.mlp.down_proj.weight"]
    assert measured_bits_per_weight(stored, packed.baseline().view) is None


@pytest.mark.parametrize("family", ["llama", "mixtral", "gpt2"])
def test_biases_do_not_count_and_experts_count_together(family):
    view = model_view(tiny_config(family))
    recipe = Recipe.model_validate({"summary": "x", "weights": {"scheme": "w4a16-row"}})
    plan = make_plan(view, recipe, model="tiny", dtype="bfloat16")
    stored = {}
    for weight, module in zip(view.weights, plan.modules, strict=True):
        last = f"{weight.name}.weight_packed" if weight.kind == "linear" else f"{weight.name}_packed"
        stored |= {last: module.bytes_after(16), f"{weight.name}.bias": 1000}
    stored |= {"model.embed_tokens.weight": 4096}
    if family == "mixtral":  # a tensor below the parameter of the experts has no bias of theirs
        stored = {name: size for name, size in stored.items() if "experts" not in name or not name.endswith("bias")}
    assert measured_bits_per_weight(stored, view) == pytest.approx(plan.bits_per_weight)


@pytest.mark.parametrize(
    ("method", "command"),
    [
        ("gptq", "gptq checkpoints need gptqmodel and optimum: pip install gptqmodel optimum"),
        ("awq", "pip install gptqmodel"),
        ("auto-round", "pip install auto-round"),
    ],
)
def test_without_its_package_a_variant_fails_with_the_command(packed, tmp_path, monkeypatch, method, command):
    monkeypatch.setattr("mvquant.comparison.foreign._is_installed", lambda _: False)
    folder = tmp_path / "theirs"
    shutil.copytree(packed.folder / "packed", folder)
    edit_config(folder, quant_method=method)
    results = packed.compare(packed.recipe(str(folder), "w4a16-row", noise_floor=False), f"missing {method}")
    theirs, ours = results.variants[1:]
    assert [failure.part for failure in theirs.failures] == ["loading"]
    assert command in theirs.failures[0].message
    assert theirs.bits_per_weight > 4
    assert ours.tasks
    assert any(command in note for note in packed.notes)


def test_a_method_that_transformers_would_skip_is_refused(packed, tmp_path):
    """Otherwise its weights would be random numbers, and the comparison would judge those."""
    folder = tmp_path / "unknown"
    shutil.copytree(packed.folder / "packed", folder)
    edit_config(folder, quant_method="spell")
    results = packed.compare(packed.recipe(str(folder), noise_floor=False), "unknown")
    assert "quantized by 'spell', which transformers" in results.variants[1].failures[0].message
    assert results.variants[1].tasks == {}


@pytest.mark.parametrize("method", ["bitsandbytes", "gptq", "auto-round", "fp8"])
def test_what_transformers_knows_is_not_refused_for_its_name(method, monkeypatch):
    monkeypatch.setattr("mvquant.comparison.foreign._is_installed", lambda _: True)
    assert obstacle(method) is None


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "config.json").write_text("{"), "not the config of a model"),
        (lambda folder: (folder / "config.json").write_text("[]"), "not the config of a model"),
        (lambda folder: (folder / "model.safetensors").unlink(), "has no weights as safetensors"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"1234"), "is not a safetensors file"),
        (lambda folder: cut(folder / "model.safetensors"), "is cut short"),
    ],
    ids=["not JSON", "a list", "no weights", "no safetensors", "cut short"],
)
def test_a_damaged_checkpoint_costs_itself_only(packed, tmp_path, damage, message):
    folder = tmp_path / "damaged"
    shutil.copytree(packed.folder / "packed", folder)
    damage(folder)
    results = packed.compare(packed.recipe(str(folder), "w4a16-row", noise_floor=False), "damaged")
    assert message in results.variants[1].failures[0].message
    assert results.variants[2].tasks


def cut(path):
    content = path.read_bytes()
    path.write_bytes(content[:-100])


def test_files_are_read_by_their_contents_alone(tmp_path):
    save_file({"a": torch.zeros(3, 5), "b": torch.zeros(7, dtype=torch.uint8)}, tmp_path / "x.safetensors")
    save_file({"c": torch.zeros(2, dtype=torch.int64)}, tmp_path / "y.safetensors")
    assert stored_bytes(tmp_path) == {"a": 60, "b": 7, "c": 16}
    with pytest.raises(CheckpointError, match="has no weights"):
        stored_bytes(save_model(tmp_path / "m") / "nowhere")
