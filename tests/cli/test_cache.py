"""The cache on the command line: planned, printed, edited, quantized, judged; and what is refused."""

import json
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from mvquant.kvcache.cache import QuantizedKVCache
from mvquant.plan import load_plan
from mvquant.reference import reference_path
from tests.tiny_models import tiny_model, tiny_tokens


def save_model(folder, family, **changes):
    """A tiny model that reads with the tokenizer of the reference model."""
    words = len(AutoTokenizer.from_pretrained(reference_path()))
    tiny_model(family, dtype=torch.bfloat16, vocab_size=words, **changes).save_pretrained(folder)
    for path in reference_path().glob("*token*.json"):
        shutil.copy(path, folder)
    return folder


@pytest.fixture
def folder(tmp_path):
    return save_model(tmp_path / "model", "llama")


@pytest.fixture
def write(tmp_path):
    """Write a recipe that measures little."""

    def write(text, name="mine.yaml"):
        path = tmp_path / name
        calibration = "calibration: {source: reference, sequences: 2, length: 32}"
        path.write_text(f"summary: t\n{text}\n{calibration}\n")
        return path

    return write


CACHE = "kv_cache: {keys: {bits: 2.25}, values: {bits: 4}, sinks: 2}"


def test_the_whole_way_with_weights_fold_and_cache(mvquant, folder, write, tmp_path):
    recipe = write("weights: {scheme: w4a16-g32}\nprotect: {pairs: 0.25}\nfold: {strength: 0.5}\n" + CACHE)
    code, out, err = mvquant("plan", folder, "--recipe", recipe, "-o", tmp_path / "plan.json")
    assert code == 0, err
    assert max(map(len, out.splitlines())) <= 80
    said = " ".join(out.split())
    assert "bits per weight" in said
    assert "bits per cached value at 128 tokens (K " in said
    assert "Folded: K divided" in said
    assert "sensitivity, 2.25 bits, per layer; channel-32, scales of 8 bits, pre-rope" in said
    code, out, err = mvquant("quantize", folder, "--recipe", recipe, "-o", tmp_path / "out")
    assert code == 0, err
    assert "bits per cached value" in out
    assert load_plan(tmp_path / "out" / "plan.json") == load_plan(tmp_path / "plan.json")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    generated = loaded.generate(tiny_tokens(), max_new_tokens=4, return_dict_in_generate=True)
    assert isinstance(generated.past_key_values, QuantizedKVCache)
    code, out, err = mvquant("eval", tmp_path / "out", "--tasks", "reference_city_yes_no", "--limit", 4)
    assert code == 0, err
    assert "bits per cached value: K 4." in " ".join(out.split())
    arguments = ["--tasks", "reference_city_yes_no", "--limit", 4, "--json"]
    subject = json.loads(mvquant("eval", tmp_path / "out", *arguments)[1])["subject"]
    bits = load_plan(tmp_path / "plan.json").cached_bits
    assert (subject["bits_per_cached_key"], subject["bits_per_cached_value"]) == (bits.keys, bits.values)
    assert subject["bits_per_weight"] < 8


def test_a_cache_edited_by_hand_is_obeyed(mvquant, folder, write, tmp_path):
    path = tmp_path / "plan.json"
    assert mvquant("plan", folder, "--recipe", write(CACHE), "-o", path)[0] == 0
    plan = json.loads(path.read_text())
    assert "modules" not in plan or plan["modules"] == []
    plan["cache"]["layers"][1]["heads"][0]["bits"] = [8, 1, 1, 1, 1, 1, 1, 8]
    plan["cache"]["sinks"] = 0
    path.write_text(json.dumps(plan))
    code, out, err = mvquant("quantize", folder, "--plan", path, "-o", tmp_path / "out")
    assert code == 0, err
    assert "16 bits per weight: none is quantized" in out
    cache = AutoModelForCausalLM.from_pretrained(tmp_path / "out").config.quantization_config.plan.cache
    assert cache.layers[1].heads[0].bits == (8, 1, 1, 1, 1, 1, 1, 8)
    assert cache.sinks == 0


def test_a_scheme_can_ask_for_the_cache(mvquant, folder, tmp_path):
    code, out, err = mvquant("plan", folder, "--scheme", "mv-protect-k2", "-c", "reference")
    assert code == 0, err
    assert "sensitivity, 2 bits, per layer" in out
    code, out, _ = mvquant("schemes")
    assert "mv-protect-k2" in out
    assert "mv-protect-w4a16-k2.25v4" in out
    assert max(map(len, out.splitlines())) <= 80


@pytest.mark.parametrize(
    ("text", "code", "message"),
    [
        ("kv_cache: {keys: {bits: 0.9}}", 2, "0.9 is below what one bit per pair needs; choose 1 to 8, or 16"),
        ("kv_cache: {keys: {bits: 12}}", 2, "bits: 12 is out of range"),
        ("kv_cache: {sinks: 4}", 2, "rounds nothing"),
        ("kv_cache: {values: {bits: 2, group_size: 32}}", 1, "group_size 32 does not divide head_dim 16"),
        ("fold: {strength: 2}\nweights: {scheme: w4a16-g32}", 2, "fold.strength"),
        ("calibrate: 3", 2, "calibrate: unknown key"),
    ],
)
def test_a_bad_recipe_is_explained_and_leaves_nothing(mvquant, folder, write, tmp_path, text, code, message):
    found, _, err = mvquant("quantize", folder, "--recipe", write(text), "-o", tmp_path / "out")
    assert found == code, err
    assert message in " ".join(err.split())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.yaml", "model"]


def test_a_plan_for_another_model_is_refused_and_leaves_nothing(mvquant, folder, write, tmp_path):
    path = tmp_path / "plan.json"
    mvquant("plan", folder, "--recipe", write(CACHE), "-o", path)
    other = save_model(tmp_path / "other", "llama", num_key_value_heads=4)
    code, _, err = mvquant("quantize", other, "--plan", path, "-o", tmp_path / "out")
    assert code == 1
    said = " ".join(err.split())
    assert "the cache plan is for another model: model.layers.0.self_attn.k_proj has 4 KV heads, the plan 2" in said
    assert not [each for each in tmp_path.iterdir() if "out" in each.name]


def test_a_model_without_rope_is_refused(mvquant, write, tmp_path):
    tiny_model("gpt2").save_pretrained(tmp_path / "gpt2")
    code, _, err = mvquant("plan", tmp_path / "gpt2", "--recipe", write(CACHE))
    assert code == 1
    assert "gpt2 has no RoPE, and without it Q and K have no pairs" in " ".join(err.split())
