"""Checkpoints that remember a cache, scales that were folded, or both: the whole path on tiny models."""

import copy
import json
import subprocess
import sys
import textwrap

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, DynamicCache

from mvquant.arch import model_view
from mvquant.checkpoint.folder import open_checkpoint
from mvquant.checkpoint.native import quantization_config, read_quantization_config
from mvquant.checkpoint.write import write_checkpoint
from mvquant.errors import CheckpointError, PlanError
from mvquant.kvcache.cache import QuantizedKVCache
from mvquant.methods import apply_plan, own_plan, planned_cache
from mvquant.policies import make_plan
from mvquant.recipe import parse_recipe
from mvquant.stats import collect_stats
from tests.tiny_models import tiny_model, tiny_tokens

FAMILIES = ("llama", "qwen3", "gemma3_text", "gpt_neox")

WEIGHTS = "weights: {scheme: w4a16-g32}\nprotect: {policy: massive, pairs: 0.25}\n"
CACHE = "kv_cache: {keys: {bits: 2.25}, values: {bits: 4}, sinks: 2}\n"
BY_CHANNEL = "kv_cache: {keys: {bits: 2, scales: channel, chunk: 8, stage: post-rope}, window: 4, prefill: exact}\n"
FOLD = "fold: {strength: 0.5}\n"


def uneven_model(family, dtype=torch.float32, **changes):
    """A tiny model some of whose K channels are massive."""
    model = tiny_model(family, dtype=dtype, **changes)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("k_proj.weight", "k_norm.weight", "query_key_value.weight")):
                parameter[::5] *= 6.0
    return model


def quantized(tmp_path, family, text, dtype=torch.float32):
    """Save a tiny model, quantize it into `tmp_path / "out"`, and return its plan."""
    model = uneven_model(family, dtype)
    model.save_pretrained(tmp_path / "model")
    checkpoint = open_checkpoint(str(tmp_path / "model"))
    view = model_view(checkpoint.config)
    stats = collect_stats(model, view, [tiny_tokens(4, 48, seed=3)])
    recipe = parse_recipe(f"summary: t\n{text}", "t.yaml")
    plan = make_plan(view, recipe, model=family, dtype=checkpoint.dtype, stats=stats)
    write_checkpoint(checkpoint, view, plan, tmp_path / "out", overwrite=True)
    return plan


def load(folder):
    return AutoModelForCausalLM.from_pretrained(folder).eval()


def logits(model, **inputs):
    with torch.no_grad():
        return model(tiny_tokens(), **inputs).logits


def generate(model, **settings):
    return model.generate(tiny_tokens(), max_new_tokens=9, min_new_tokens=9, do_sample=False, **settings)


@pytest.mark.parametrize("recipe", [WEIGHTS + CACHE + FOLD, BY_CHANNEL], ids=["all", "by channel"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_loaded_checkpoint_equals_the_model_quantized_in_memory_cache_included(tmp_path, family, recipe):
    plan = quantized(tmp_path, family, recipe, torch.bfloat16)
    in_memory, loaded = apply_plan(load(tmp_path / "model"), plan), load(tmp_path / "out")
    plain = logits(loaded)
    assert torch.equal(plain, logits(in_memory))
    with planned_cache(loaded), planned_cache(in_memory, plan):
        rounded = logits(loaded)
        assert torch.equal(rounded, logits(in_memory))
        expected = generate(in_memory)
    assert torch.equal(rounded, plain) == (plan.prefill == "exact")
    assert torch.equal(generate(loaded), expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_folding_alone_changes_weights_and_no_logit(tmp_path, family):
    plan = quantized(tmp_path, family, "kv_cache: {keys: {bits: 4}}\n" + FOLD)
    plain, folded = load(tmp_path / "model"), load(tmp_path / "out")
    assert any(scale != 1 for layer in plan.fold for head in layer for scale in head)
    before, after = plain.state_dict(), folded.state_dict()
    changed = {name.split(".")[-2] for name in before if not torch.equal(before[name], after[name])}
    assert changed <= {"q_proj", "k_proj", "q_norm", "k_norm", "query_key_value"}
    assert changed
    torch.testing.assert_close(logits(folded), logits(plain), rtol=1e-4, atol=1e-4)


def test_folding_leaves_quantized_rows_as_good_as_they_were(tmp_path):
    """Scales are powers of two: the grid of a row moves with the row."""
    unfolded = quantized(tmp_path, "llama", "weights: {scheme: w4a16-g32}\n")
    expected = logits(load(tmp_path / "out"))
    folded = quantized(tmp_path, "llama", "weights: {scheme: w4a16-g32}\n" + FOLD)
    assert folded.fold
    assert folded.hash != unfolded.hash
    torch.testing.assert_close(logits(load(tmp_path / "out")), expected, rtol=1e-5, atol=1e-5)


def test_generating_uses_the_cache_unless_the_call_brings_another(tmp_path):
    plan = quantized(tmp_path, "llama", CACHE)
    loaded = load(tmp_path / "out")
    assert own_plan(loaded) == plan
    own = generate(loaded, return_dict_in_generate=True).past_key_values
    assert isinstance(own, QuantizedKVCache)
    assert own.nbytes().packed > 0
    given = DynamicCache(config=loaded.config)
    assert generate(loaded, return_dict_in_generate=True, past_key_values=given).past_key_values is given
    other = generate(copy.deepcopy(loaded), return_dict_in_generate=True)
    assert isinstance(other.past_key_values, QuantizedKVCache)
    with planned_cache(loaded) as attached:
        generate(loaded)
        assert attached.latest.get_seq_length() == 24 + 8


def test_padded_rows_generate_as_they_do_alone(tmp_path):
    quantized(tmp_path, "llama", CACHE)
    loaded, tokens = load(tmp_path / "out"), tiny_tokens(1, 12)
    padded = torch.cat([torch.zeros(1, 5, dtype=torch.long), tokens], dim=1)
    batch = torch.cat([padded, tiny_tokens(1, 17, seed=7)])
    mask = torch.ones_like(batch)
    mask[0, :5] = 0
    settings = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    alone = loaded.generate(tokens, **settings)[0, 12:]
    assert torch.equal(loaded.generate(batch, attention_mask=mask, **settings)[0, 17:], alone)


def test_a_plan_without_a_cache_leaves_generating_alone(tmp_path):
    quantized(tmp_path, "llama", WEIGHTS)
    loaded = load(tmp_path / "out")
    assert "generate" not in vars(loaded)
    with planned_cache(loaded) as attached:
        assert attached is None


def test_a_cache_only_checkpoint_loads_without_mvquant_and_then_caches_as_usual(tmp_path):
    quantized(tmp_path, "llama", CACHE)
    expected = logits(load(tmp_path / "model"))[0, -1, :4].tolist()
    script = textwrap.dedent(f"""
        import torch
        from transformers import AutoModelForCausalLM
        model = AutoModelForCausalLM.from_pretrained({str(tmp_path / "out")!r})
        print(model(torch.tensor({tiny_tokens().tolist()})).logits[0, -1, :4].tolist())
    """)
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert json.loads(run.stdout) == pytest.approx(expected, rel=1e-5)
    assert "Unknown quantization type, got mvquant" in run.stderr


def test_bytes_on_disk_are_those_of_the_plan(tmp_path):
    for recipe in (CACHE, WEIGHTS + CACHE + FOLD):
        plan = quantized(tmp_path, "llama", recipe)
        tensors = load_file(tmp_path / "out" / "model.safetensors")
        assert sum(tensor.nbytes for tensor in tensors.values()) == plan.bytes_after


@pytest.mark.parametrize("recipe", [CACHE, WEIGHTS + CACHE], ids=["cache", "both"])
def test_saving_again_keeps_the_cache_and_dequantizing_drops_it(tmp_path, recipe):
    plan = quantized(tmp_path, "llama", recipe)
    loaded = load(tmp_path / "out")
    loaded.save_pretrained(tmp_path / "again")
    again = load(tmp_path / "again")
    assert own_plan(again) == plan
    assert torch.equal(generate(again), generate(loaded))
    plain = loaded.dequantize()
    cache = generate(plain, return_dict_in_generate=True).past_key_values
    assert isinstance(cache, DynamicCache)


def test_readers_that_know_no_cache_refuse_the_checkpoint(tmp_path):
    plan = quantized(tmp_path, "llama", CACHE)
    assert quantization_config(plan)["format_version"] == 2
    assert quantization_config(quantized(tmp_path, "llama", WEIGHTS + FOLD))["format_version"] == 2
    assert quantization_config(quantized(tmp_path, "llama", WEIGHTS))["format_version"] == 1
    with pytest.raises(CheckpointError, match="format version 1"):
        read_quantization_config({**quantization_config(plan), "format_version": 1})
    with pytest.raises(CheckpointError, match="update mvquant"):
        read_quantization_config({**quantization_config(plan), "format_version": 4})


@pytest.mark.parametrize("change", ["heads", "theta", "layers", "family"])
def test_a_plan_for_another_model_is_refused_and_leaves_nothing(tmp_path, change):
    plan = quantized(tmp_path, "llama", CACHE + FOLD)
    other = {
        "heads": lambda: uneven_model("llama", num_key_value_heads=4),
        "theta": lambda: uneven_model("llama", rope_parameters={"rope_type": "default", "rope_theta": 500.0}),
        "layers": lambda: uneven_model("llama", num_hidden_layers=1),
        "family": lambda: uneven_model("gpt_neox"),
    }[change]()
    other.save_pretrained(tmp_path / "other")
    checkpoint = open_checkpoint(str(tmp_path / "other"))
    with pytest.raises(PlanError, match=r"another model|do not fit"):
        write_checkpoint(checkpoint, model_view(checkpoint.config), plan, tmp_path / "refused")
    assert not [path for path in tmp_path.iterdir() if "refused" in path.name]
