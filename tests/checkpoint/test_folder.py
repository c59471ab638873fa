import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from mvquant.arch import model_view
from mvquant.checkpoint.folder import open_checkpoint
from mvquant.checkpoint.write import write_checkpoint
from mvquant.errors import CheckpointError, UnsupportedModelError
from mvquant.named_schemes import recipe_for_scheme
from mvquant.policies import make_plan
from tests.tiny_models import tiny_model


@pytest.fixture
def folder(tmp_path):
    tiny_model("llama").save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def refused(folder, message, error=CheckpointError):
    with pytest.raises(error, match=message):
        open_checkpoint(str(folder))


def test_a_whole_folder_opens(folder):
    opened = open_checkpoint(str(folder))
    assert opened.dtype == "float32"
    name = "model.embed_tokens.weight"
    assert torch.equal(opened.read([name])[name], load_file(folder / "model.safetensors")[name])


def test_no_such_folder(tmp_path):
    refused(tmp_path / "none", "no such model folder")
    refused("owner/model-that-is-not-here", "hf download owner/model-that-is-not-here")
    (tmp_path / "file").touch()
    refused(tmp_path / "file", "no such model folder")


def test_a_missing_or_corrupt_config(folder):
    (folder / "config.json").write_text("{")
    refused(folder, "is not JSON")
    (folder / "config.json").write_text("{}")
    refused(folder, "names no `model_type`")
    (folder / "config.json").write_text('{"model_type": "no-such-thing"}')
    refused(folder, "transformers cannot read it", UnsupportedModelError)
    (folder / "config.json").unlink()
    refused(folder, "has no config.json")


def test_a_config_may_say_that_nothing_is_quantized(folder):
    config = json.loads((folder / "config.json").read_text())
    assert open_checkpoint(str(folder)).quantization == {}
    for said in (None, {}):
        (folder / "config.json").write_text(json.dumps({**config, "quantization_config": said}))
        assert open_checkpoint(str(folder)).quantization == {}
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": "gptq"}))
    refused(folder, "`quantization_config` is not an object")


def test_truncated_weights(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    refused(folder, "truncated")
    file.write_bytes(b"")
    refused(folder, "truncated")
    file.unlink()
    refused(folder, "weights are missing")


def test_pickled_weights_are_refused_with_the_way_out(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    refused(folder, r"pytorch_model\.bin.*can run code.*save_pretrained\(NEW_FOLDER\)")


@pytest.fixture
def sharded(tmp_path):
    tiny_model("llama").save_pretrained(tmp_path / "sharded", max_shard_size="60KB")
    return tmp_path / "sharded"


def test_an_index_must_keep_its_promises(sharded):
    open_checkpoint(str(sharded))
    shards = sorted(sharded.glob("*.safetensors"))
    index = sharded / "model.safetensors.index.json"
    weight_map = json.loads(index.read_text())["weight_map"]
    tensors = load_file(shards[1])
    lost = next(iter(tensors))
    save_file({name: tensor for name, tensor in tensors.items() if name != lost}, shards[1])
    refused(sharded, f"promises {lost}")
    shards[1].unlink()
    refused(sharded, "is missing")
    index.write_text(json.dumps({"weight_map": {**weight_map, lost: "../elsewhere.safetensors"}}))
    refused(sharded, "outside the folder")
    wrong = (
        b'{"weight_map": []}',
        b'{"weight_map": {"a": 1}}',
        b'{"weight_map": null}',
        b'{"weight_map": {"a": ["b"]}}',
    )
    for content in (b"{}", b"[", b"[]", b"1", b"\xff", *wrong):
        index.write_bytes(content)
        refused(sharded, "is not an index of safetensors files")


def quantize(folder, out):
    checkpoint = open_checkpoint(str(folder))
    view = model_view(checkpoint.config)
    plan = make_plan(view, recipe_for_scheme("w4a16-g32"), model="tiny", dtype=checkpoint.dtype)
    write_checkpoint(checkpoint, view, plan, out)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(folder, tmp_path, value):
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = value
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.up_proj: 1 of 8192 weights are NaN or infinite"):
        quantize(folder, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_tied_weights_that_differ_are_refused(tmp_path):
    tiny_model("qwen2").save_pretrained(tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    tensors = load_file(file)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + 1
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="set tie_word_embeddings to false"):
        quantize(tmp_path / "model", tmp_path / "out")


def test_companions_are_copied_but_no_code_and_no_pickles(folder, tmp_path):
    for name in ("tokenizer.json", "chat_template.jinja", "modeling_x.py", "old.bin", ".hidden"):
        (folder / name).write_text("x")
    quantize(folder, tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "plan.json",
        "tokenizer.json",
        "chat_template.jinja",
    }


def test_code_that_comes_with_a_model_is_never_run(folder, tmp_path):
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "custom-thing", "auto_map": {"AutoConfig": "evil.Config"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    refused(folder, "transformers cannot read it", UnsupportedModelError)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("broken", [False, True])
def test_the_number_of_threads_is_left_as_it_was(folder, tmp_path, broken):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        if broken:
            tensors = load_file(folder / "model.safetensors")
            tensors["model.layers.0.mlp.up_proj.weight"][0, 0] = float("nan")
            save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
            with pytest.raises(CheckpointError):
                quantize(folder, tmp_path / "out")
        else:
            quantize(folder, tmp_path / "out")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_our_own_checkpoint_opens_however_much_of_it_is_packed(folder):
    tensors = load_file(folder / "model.safetensors")
    words = torch.zeros(1 + sum(tensor.numel() for tensor in tensors.values()), dtype=torch.int32)
    save_file({**tensors, "model.layers.0.mlp.up_proj.weight_packed": words}, folder / "model.safetensors")
    refused(folder, "weights are stored as I32")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "mvquant"}
    (folder / "config.json").write_text(json.dumps(config))
    assert open_checkpoint(str(folder)).dtype == "float32"
