"""What a person is told of calibration text that is too short for a method, on the way from plan to weights."""

import importlib.util
import json
import re

import pytest

from mvquant.calibrated import calibrated_weights, record_of
from mvquant.policies import make_plan
from mvquant.recipe import Recipe
from tests.layerwise.examples import batches, saved

EXPERTS, ROUTED_TO = 12, 2
METHOD = {"name": "gptq", "backend": "llmcompressor", "damping": 1e-12}
RECIPE = Recipe.model_validate({"summary": "t", "weights": {"scheme": "w4a16-g32", "method": METHOD}})
STARVED = re.compile(r"the router sent fewer than 128 tokens to experts ([^;]*); all experts were calibrated")


def named_experts(text):
    """Experts in a sentence or a note, and how many tokens each saw."""
    found = STARVED.search(text)
    return {} if found is None else {int(each): int(n) for each, n in re.findall(r"(\d+) \((\d+)\)", found[1])}


@pytest.mark.skipif(importlib.util.find_spec("llmcompressor") is None, reason="llmcompressor is not installed")
def test_few_tokens_starved_experts_and_raised_damping_are_said(tmp_path):
    world = saved("qwen3_moe", tmp_path / "model", num_experts=EXPERTS, num_experts_per_tok=ROUTED_TO)
    text = batches(2)
    tokens = sum(batch.numel() for batch in text)
    plan = make_plan(world.view, RECIPE, model="t", dtype="float32", calibration=record_of(text, "t", 0))
    said = []
    with calibrated_weights(world.checkpoint, world.view, plan, text, tmp_path / "work", note=said.append) as made:
        assert len(plan.modules) == len(made.log.splitlines()) - 1
        assert all(made.results.state(module.name)["weight_scale"].isfinite().all() for module in plan.modules)

    too_few = [sentence for sentence in said if sentence.startswith(f"2 calibration sequences have {tokens} tokens")]
    assert len(too_few) == 1
    assert "fewer than 2 for each of the 64 columns" in too_few[0]

    raised = [sentence for sentence in said if re.search(r"damping raised from 1e-12 to 1e-\d+", sentence)]
    assert any(".self_attn." in sentence for sentence in raised), said

    starved = [sentence for sentence in said if named_experts(sentence)]
    assert any(".mlp.experts." in sentence.partition(":")[0] for sentence in starved), said
    assert all(f" and {EXPERTS - 8} more; " in sentence for sentence in starved)
    _, *records = map(json.loads, made.log.splitlines())
    experts = [record for record in records if ".mlp.experts." in record["module"]]
    assert len(experts) == 4
    for record in experts:
        sent = named_experts(record["note"])
        assert list(sent) == list(range(EXPERTS))  # the log names every one of them
        assert sum(sent.values()) == ROUTED_TO * tokens
        assert record["tokens"] == min(sent.values())
