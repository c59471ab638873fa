"""The main job on the embedded reference model, from the word to the verdict."""

import json
import shutil

import pytest
import torch

from mvquant import pipeline
from mvquant.checkpoint.folder import open_checkpoint
from mvquant.errors import CheckpointError, UsageError
from mvquant.evaluation import compare
from mvquant.methods import apply_plan
from mvquant.named_schemes import recipe_for_scheme
from mvquant.policies import make_plan
from mvquant.recipe import Calibration, Protect, Recipe, Weights
from mvquant.rope import slow_pairs
from mvquant.scheme import WeightScheme
from mvquant.stats import collect_stats

CALIBRATION = Calibration(sequences=4, length=256)


@pytest.fixture(scope="module")
def reference():
    opened = pipeline.open_model("reference")
    return opened, pipeline.measure("reference", opened, CALIBRATION)


def planned(reference, recipe):
    opened, stats = reference
    return make_plan(opened.view, recipe, model="reference", dtype=opened.checkpoint.dtype, stats=stats)


def test_the_word_reference_opens_the_embedded_model(reference):
    opened, stats = reference
    assert opened.view.family == "llama"
    assert stats.source == "reference"
    assert (stats.sequences, stats.length) == (4, 256)


def test_mv_protect_takes_slow_pairs_of_every_head(reference):
    opened, _ = reference
    slow = set(slow_pairs(opened.view.config))
    plan = planned(reference, recipe_for_scheme("mv-protect"))
    protections = [protection for module in plan.modules for protection in module.protected]
    heads = sum(protection.heads.heads for protection in protections)
    assert sum(len(protection.pairs) for protection in protections) == heads
    assert all(set(pairs) <= slow for protection in protections for pairs in protection.pairs.values())


def test_measuring_twice_gives_the_same_plan(reference):
    opened, stats = reference
    again = pipeline.measure("reference", opened, CALIBRATION)
    recipe = recipe_for_scheme("mv-protect")
    assert again.hash == stats.hash
    assert planned((opened, again), recipe).hash == planned(reference, recipe).hash


def test_measuring_layer_by_layer_gives_the_plan_of_the_whole_model(reference):
    opened, stats = reference
    source, batches = pipeline.calibration_tokens("reference", opened, CALIBRATION)
    model, _ = pipeline.load_model(opened.checkpoint.folder)
    whole = collect_stats(model, opened.view, batches, source=source, seed=CALIBRATION.seed)
    for layer, other in zip(stats.layers, whole.layers, strict=True):
        assert torch.equal(layer.k.squares, other.k.squares)
        assert torch.equal(layer.q_pre.within_variance, other.q_pre.within_variance)
    recipe = recipe_for_scheme("mv-protect")
    assert planned((opened, whole), recipe).hash == planned(reference, recipe).hash


def test_a_checkpoint_answers_as_the_model_quantized_in_memory(reference, tmp_path):
    opened, _ = reference
    plan = planned(reference, recipe_for_scheme("mv-protect-w2a16"))
    pipeline.quantize(opened, plan, tmp_path / "out")
    tasks = pipeline.find_tasks(["reference_binding", "reference_city_yes_no"])
    from_disk = pipeline.evaluate_model(str(tmp_path / "out"), tasks, limit=32)
    model, tokenizer = pipeline.load_model(opened.checkpoint.folder)
    in_memory = pipeline.evaluate(apply_plan(model, plan), tokenizer, tasks, limit=32)
    assert from_disk.tasks == in_memory.tasks
    assert from_disk.subject.plan_hash == plan.hash
    assert from_disk.subject.bits_per_weight == plan.bits_per_weight


def test_eight_bits_lose_nothing_that_shows(reference):
    """The judge finds no difference where there is none to find."""
    opened, _ = reference
    tasks = pipeline.find_tasks(["reference_sentiment", "reference_city_country"])
    whole = pipeline.evaluate_model("reference", tasks, limit=64)
    model, tokenizer = pipeline.load_model(opened.checkpoint.folder)
    plan = planned(reference, recipe_for_scheme("w8a16"))
    eight = pipeline.evaluate(apply_plan(model, plan), tokenizer, tasks, limit=64)
    for drop in compare(whole, eight).groups.values():
        assert drop.low <= 0 <= drop.high


def test_protected_rows_are_closer_to_the_original_and_the_others_unchanged(reference):
    opened, _ = reference
    name = "model.layers.1.self_attn.q_proj"
    recipe = Recipe(
        summary="t", weights=Weights(scheme=WeightScheme(bits=2)), protect=Protect(policy="massive", pairs=0.125)
    )
    original = opened.checkpoint.read([f"{name}.weight"])[f"{name}.weight"].float()
    weights = {}
    for made in (recipe, recipe_for_scheme("w2a16")):
        model, _ = pipeline.load_model(opened.checkpoint.folder)
        plan = planned(reference, made)
        weights[made.protect.policy] = apply_plan(model, plan).get_submodule(name).dequantize().float()
    rows = next(module for module in planned(reference, recipe).modules if module.name == name).protected_rows
    base = [row for row in range(len(original)) if row not in rows]
    error = {policy: (weight - original)[list(rows)].norm() for policy, weight in weights.items()}
    assert error["massive"] < 0.05 * error["none"]
    assert torch.equal(weights["massive"][base], weights["none"][base])


def test_a_finished_checkpoint_is_not_analyzed_or_planned(reference, tmp_path):
    opened, _ = reference
    pipeline.quantize(opened, planned(reference, recipe_for_scheme("w4a16")), tmp_path / "out")
    assert open_checkpoint(str(tmp_path / "out")).files
    with pytest.raises(CheckpointError, match="quantized already"):
        pipeline.open_model(str(tmp_path / "out"))
    with pytest.raises(UsageError, match="--overwrite"):
        pipeline.analyze_model("reference", CALIBRATION, None, tmp_path / "out")


def test_a_config_that_says_null_of_quantization_is_of_a_model_as_it_came(reference, tmp_path):
    opened, _ = reference
    shutil.copytree(opened.checkpoint.folder, tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps({**config, "quantization_config": None}))
    assert pipeline.default_tasks(str(tmp_path / "model")) == ["general_contextual", "general_parametric"]
    tasks = pipeline.find_tasks(["reference_sentiment"])
    found = pipeline.evaluate_model(str(tmp_path / "model"), tasks, limit=2)
    assert found.tasks == pipeline.evaluate_model("reference", tasks, limit=2).tasks
    assert found.subject.plan_hash is None
