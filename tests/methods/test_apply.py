"""What a calibrated method made of a model lands in memory and on disk alike."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from mvquant.arch import model_view
from mvquant.checkpoint.folder import open_checkpoint
from mvquant.checkpoint.write import write_checkpoint
from mvquant.errors import PlanError
from mvquant.methods import WeightResults, apply_plan
from mvquant.plan import CalibrationRecord, Plan
from mvquant.policies import make_plan
from mvquant.recipe import Recipe, parse_recipe
from tests.fake_results import FakeResults, fake_results
from tests.tiny_models import FAMILY_NAMES, tiny_model, tiny_tokens

RECORD = CalibrationRecord(source="t", sequences=1, length=8, seed=0, hash="0")
GPTQ = "summary: t\nweights: {scheme: w4a16-g32, method: gptq}\n"
PROTECTED = "protect: {policy: slow-pairs, pairs: 0.25, scheme: %s}\n"
ROPELESS = ("opt", "gpt2")


def recipe(text: str) -> Recipe:
    return parse_recipe(text, "t.yaml")


def planned(tmp_path, family, text, dtype=torch.bfloat16):
    """Save a tiny model, and return its checkpoint, its view and its plan."""
    tiny_model(family, dtype=dtype).save_pretrained(tmp_path / "model")
    checkpoint = open_checkpoint(str(tmp_path / "model"))
    view = model_view(checkpoint.config)
    return checkpoint, view, make_plan(view, recipe(text), model="t", dtype=checkpoint.dtype, calibration=RECORD)


def load(folder):
    return AutoModelForCausalLM.from_pretrained(folder).eval()


def logits(model):
    with torch.no_grad():
        return model(tiny_tokens()).logits


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_results_land_in_memory_and_on_disk_bit_for_bit(tmp_path, family):
    text = GPTQ if family in ROPELESS else GPTQ + PROTECTED % "w8a16-g32"
    checkpoint, view, plan = planned(tmp_path, family, text)
    results = fake_results(load(tmp_path / "model"), plan, shift=1)
    assert isinstance(results, WeightResults)
    write_checkpoint(checkpoint, view, plan, tmp_path / "out", results=results)
    loaded, in_memory = load(tmp_path / "out"), apply_plan(load(tmp_path / "model"), plan, results)
    assert torch.equal(logits(loaded), logits(in_memory))
    tensors = loaded.state_dict()
    assert results.parameters
    for name, value in results.parameters.items():
        assert torch.equal(tensors[name], value), name
    for module in plan.modules:
        for name, value in results.states[module.name].items():
            assert torch.equal(tensors[f"{module.name}.{name}"], value), (module.name, name)


def test_every_part_of_the_results_counts(tmp_path):
    """Integers and changed parameters each move the logits."""
    _, _, plan = planned(tmp_path, "llama", GPTQ + PROTECTED % "bf16", torch.float32)
    results = fake_results(load(tmp_path / "model"), plan, shift=1)
    nearest = fake_results(load(tmp_path / "model"), plan)
    made = [
        logits(apply_plan(load(tmp_path / "model"), plan, each))
        for each in (results, FakeResults(results.states), FakeResults(nearest.states))
    ]
    assert not torch.allclose(made[0], made[1], atol=1e-3)
    assert not torch.allclose(made[1], made[2], atol=1e-3)
    rtn = plan.model_copy(update={"recipe": recipe("summary: t\nweights: {scheme: w4a16-g32}")})
    assert torch.equal(made[2], logits(apply_plan(load(tmp_path / "model"), rtn)))


@pytest.mark.parametrize("text", [GPTQ, "summary: t\nweights: {scheme: w8a8-static}\n"], ids=["gptq", "static"])
def test_a_plan_that_needs_results_is_refused_without(tmp_path, text):
    checkpoint, view, plan = planned(tmp_path, "llama", text)
    with pytest.raises(PlanError, match=r"runs the model on calibration text: .*`mvquant quantize --plan`"):
        apply_plan(load(tmp_path / "model"), plan)
    with pytest.raises(PlanError, match="runs the model on calibration text"):
        write_checkpoint(checkpoint, view, plan, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_static_scheme_written_into_a_plan_by_hand_is_refused(tmp_path):
    checkpoint, view, plan = planned(tmp_path, "llama", "summary: t\nweights: {scheme: w8a8}\n")
    dump = plan.model_dump()
    dump["modules"][3]["scheme"] = "w8a8-static"
    edited = Plan.model_validate(dump)
    with pytest.raises(PlanError, match=rf"{plan.modules[3].name}: w8a8-static has a scale of activations"):
        write_checkpoint(checkpoint, view, edited, tmp_path / "out")


def test_results_of_another_model_are_refused(tmp_path):
    checkpoint, view, plan = planned(tmp_path, "llama", GPTQ)
    results = fake_results(load(tmp_path / "model"), plan)
    foreign = FakeResults(results.states, {"model.layers.7.input_layernorm.weight": torch.ones(64)})
    with pytest.raises(PlanError, match=r"gptq changed model\.layers\.7\.input_layernorm\.weight, which the model"):
        write_checkpoint(checkpoint, view, plan, tmp_path / "out", results=foreign)
    with pytest.raises(PlanError, match="which the model lacks"):
        apply_plan(load(tmp_path / "model"), plan, foreign)
