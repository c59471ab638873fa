"""The whole path, for every family: model on disk -> plan -> checkpoint -> transformers."""

import subprocess
import sys
import textwrap

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from mvquant.arch import model_view
from mvquant.checkpoint.folder import Checkpoint, open_checkpoint
from mvquant.checkpoint.native import guard_name, read_quantization_config
from mvquant.checkpoint.shards import ShardWriter
from mvquant.checkpoint.write import write_checkpoint
from mvquant.errors import CheckpointError
from mvquant.methods import apply_plan
from mvquant.policies import make_plan
from mvquant.recipe import Protect, Recipe, Weights
from mvquant.scheme import WeightScheme
from tests.tiny_models import FAMILY_NAMES, ROPE_FAMILY_NAMES, tiny_model, tiny_tokens

BF16, FP32 = torch.bfloat16, torch.float32


def quantized(
    tmp_path, family, *, dtype=BF16, scheme="w4a16-g32", protected="w8a16-g32", policy="slow-pairs", **options
):
    """Save a tiny model, quantize it into `tmp_path / "out"`, and return its plan."""
    tiny_model(family, dtype=dtype).save_pretrained(tmp_path / "model")
    checkpoint = open_checkpoint(str(tmp_path / "model"))
    view = model_view(checkpoint.config)
    protect = Protect(policy="none")
    if view.has_rope and policy != "none":
        protect = Protect(policy=policy, pairs=0.25, scheme=WeightScheme.model_validate(protected))
    recipe = Recipe(summary="t", weights=Weights(scheme=WeightScheme.model_validate(scheme)), protect=protect)
    plan = make_plan(view, recipe, model=family, dtype=checkpoint.dtype)
    write_checkpoint(checkpoint, view, plan, tmp_path / "out", **options)
    return plan


def load(folder):
    return AutoModelForCausalLM.from_pretrained(folder).eval()


def logits(model):
    with torch.no_grad():
        return model(tiny_tokens()).logits


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_a_loaded_checkpoint_equals_the_model_quantized_in_memory(tmp_path, family):
    plan = quantized(tmp_path, family)
    in_memory = apply_plan(load(tmp_path / "model"), plan)
    loaded = load(tmp_path / "out")
    assert torch.equal(logits(loaded), logits(in_memory))
    assert not torch.equal(logits(loaded), logits(load(tmp_path / "model")))


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_saving_again_and_dequantizing_keep_every_value(tmp_path, family):
    quantized(tmp_path, family, dtype=FP32)
    loaded = load(tmp_path / "out")
    expected = logits(loaded)
    loaded.save_pretrained(tmp_path / "again")
    assert torch.equal(logits(load(tmp_path / "again")), expected)
    plain = loaded.dequantize()
    plain.save_pretrained(tmp_path / "plain")
    assert "quantization_config" not in (tmp_path / "plain" / "config.json").read_text()
    # 2e-5: packed kernels may sum in another order than a plain matmul
    torch.testing.assert_close(logits(plain), expected, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(logits(load(tmp_path / "plain")), expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("scheme", ["w8a16-g32", "w4a16-g32-asym", "w3a16-g32", "w3a16-g32-asym", "w2a16-row"])
@pytest.mark.parametrize("protected", ["w8a16-g32", "bf16"])
def test_every_scheme_loads_exactly_and_takes_the_bytes_of_its_plan(tmp_path, scheme, protected):
    if scheme.startswith("w8"):
        protected = "bf16"
    plan = quantized(tmp_path, "llama", scheme=scheme, protected=protected)
    loaded = load(tmp_path / "out")
    assert torch.equal(logits(loaded), logits(apply_plan(load(tmp_path / "model"), plan)))
    assert (
        sum(tensor.nbytes for tensor in load_file(tmp_path / "out" / "model.safetensors").values()) == plan.bytes_after
    )


@pytest.mark.parametrize("family", ROPE_FAMILY_NAMES)
def test_bytes_on_disk_are_those_of_the_plan(tmp_path, family):
    plan = quantized(tmp_path, family)
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    assert sum(tensor.nbytes for tensor in tensors.values()) == plan.bytes_after


def test_a_sharded_checkpoint_loads_like_a_single_file(tmp_path):
    quantized(tmp_path, "llama", shard_bytes=30_000)
    files = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    assert files == [f"model-0000{n}-of-0000{len(files)}.safetensors" for n in range(1, len(files) + 1)]
    assert len(files) > 2
    assert all(path.stat().st_size < 36_000 for path in (tmp_path / "out").glob("*.safetensors"))
    sharded = logits(load(tmp_path / "out"))
    quantized(tmp_path, "llama", overwrite=True)
    assert torch.equal(logits(load(tmp_path / "out")), sharded)


def test_weights_are_read_one_parameter_at_a_time(tmp_path, monkeypatch):
    """Quantizing holds one weight of the model and one shard of the output, no more."""
    read = []
    plain_read, plain_add = Checkpoint.read, ShardWriter.add

    def counting_read(self, names):
        tensors = plain_read(self, names)
        read.append(sum(tensor.nbytes for tensor in tensors.values()))
        return tensors

    def bounded_add(self, name, tensor):
        plain_add(self, name, tensor)
        assert self._pending_bytes <= max(30_000, tensor.nbytes)

    monkeypatch.setattr(Checkpoint, "read", counting_read)
    monkeypatch.setattr(ShardWriter, "add", bounded_add)
    plan = quantized(tmp_path, "llama", shard_bytes=30_000)
    assert max(read) == max(module.weights for module in plan.modules) * 2
    assert sum(read) == plan.bytes_before


def test_it_generates_in_batches(tmp_path):
    quantized(tmp_path, "llama")
    generated = load(tmp_path / "out").generate(tiny_tokens(), max_new_tokens=5, min_new_tokens=5, do_sample=False)
    assert generated.shape == (2, 29)


def test_the_plan_and_recipe_are_inside(tmp_path):
    plan = quantized(tmp_path, "llama")
    config = load(tmp_path / "out").config.quantization_config
    assert config.plan == plan
    assert config.plan.recipe == plan.recipe
    assert config.to_dict()["format_version"] == 1


def test_without_mvquant_loading_fails_loudly(tmp_path):
    plan = quantized(tmp_path, "llama")
    load(tmp_path / "out").save_pretrained(tmp_path / "again")
    load(tmp_path / "out").save_pretrained(tmp_path / "sharded", max_shard_size="30KB")
    folders = [str(tmp_path / name) for name in ("out", "again", "sharded")]
    script = textwrap.dedent(f"""
        from transformers import AutoModelForCausalLM
        for folder in {folders}:
            try:
                AutoModelForCausalLM.from_pretrained(folder)
            except RuntimeError:
                print("refused")
    """)
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout == "refused\n" * 3
    assert run.stderr.count(guard_name(plan)) >= 3
    assert "Unknown quantization type, got mvquant" in run.stderr


def test_a_checkpoint_that_lost_a_quantized_tensor_is_refused(tmp_path):
    quantized(tmp_path, "llama")
    file = tmp_path / "out" / "model.safetensors"
    tensors = load_file(file)
    lost = tensors.pop("model.layers.1.self_attn.k_proj.protected_scale")
    save_file(tensors, file, metadata={"format": "pt"})
    assert lost.numel()
    with pytest.raises(CheckpointError, match=r"k_proj\.protected_scale"):
        load(tmp_path / "out")


def test_a_newer_or_damaged_quantization_config_is_refused(tmp_path):
    plan = quantized(tmp_path, "llama")
    with pytest.raises(CheckpointError, match="update mvquant"):
        read_quantization_config({"format_version": 4, "plan": plan.model_dump(mode="json")})
    with pytest.raises(CheckpointError, match="damaged"):
        read_quantization_config({"format_version": 1, "plan": {"modules": 3}})


def test_protecting_rows_leaves_all_others_bit_identical_on_disk(tmp_path):
    quantized(tmp_path, "llama", policy="none")
    plain = load_file(tmp_path / "out" / "model.safetensors")
    quantized(tmp_path, "llama", overwrite=True)
    mixed = load_file(tmp_path / "out" / "model.safetensors")
    name = "model.layers.0.self_attn.q_proj"
    protected = mixed[f"{name}.protected_rows"].long()
    base = torch.ones(64, dtype=torch.bool)
    base[protected] = False
    for part in ("weight_packed", "weight_scale"):
        assert torch.equal(mixed[f"{name}.{part}"], plain[f"{name}.{part}"][base])
    untouched = [key for key in plain if ".q_proj." not in key and ".k_proj." not in key]
    assert all(torch.equal(plain[key], mixed[key]) for key in untouched)
