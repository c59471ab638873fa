"""Variants whose method calibrates: quantized once into a folder, which later runs take up."""

from dataclasses import replace

import pytest
import torch

from mvquant.backends import registry
from mvquant.comparison.checkpoints import CHECKPOINTS, needs_folder, quantized_folder
from mvquant.errors import BackendError
from mvquant.pipeline import load_model
from mvquant.policies import make_plan
from mvquant.recipe import Recipe
from mvquant.stats import collect_stats
from tests.comparison.examples import make_world
from tests.tiny_models import tiny_tokens

RTN = {"scheme": "w4a16-row"}
GPTQ = {"name": "gptq", "quantize": {"summary": "x", "weights": {"scheme": "w4a16-row", "method": "gptq"}}}


@pytest.fixture
def world(tmp_path):
    return make_world(tmp_path)


class Quantizer:
    """Writes what a calibrated method could have written: here, the weights rounded to nearest."""

    def __init__(self, world, fails=False):
        self.world, self.fails, self.made = world, fails, []

    def __call__(self, plan, folder):
        self.made.append(folder)
        if self.fails:
            raise BackendError("gptq needs a package: pip install it")
        load_model(self.world.model)[0].save_pretrained(folder)
        load_model(self.world.model)[1].save_pretrained(folder)


def compare(world, quantizer, monkeypatch, *variants, **changes):
    baseline = world.baseline()
    monkeypatch.setattr(world, "baseline", lambda: type(baseline)(**{**vars(baseline), "quantize": quantizer}))
    return world.compare(world.recipe(*variants, noise_floor=False, **changes))


def test_only_methods_that_calibrate_need_a_folder(world):
    baseline = world.baseline()
    rtn, gptq = (Recipe.model_validate(recipe) for recipe in ({**GPTQ["quantize"], "weights": RTN}, GPTQ["quantize"]))
    stats = baseline.measure(gptq.calibration)
    plans = [make_plan(baseline.view, each, model="tiny", dtype="bfloat16", stats=stats) for each in (rtn, gptq)]
    assert [needs_folder(plan) for plan in plans] == [False, True]
    assert plans[0].hash != plans[1].hash


def test_it_is_quantized_once_and_answered_from_its_folder(world, monkeypatch):
    quantizer = Quantizer(world)
    results = compare(world, quantizer, monkeypatch, GPTQ)
    assert results.complete
    (folder,) = quantizer.made
    assert folder.parent == world.folder / "out" / CHECKPOINTS
    assert folder in world.loads
    assert world.notes == ["gptq: quantizing by gptq"]
    world.loads.clear()
    assert compare(world, quantizer, monkeypatch, GPTQ) == results
    assert (len(quantizer.made), world.loads) == (1, [])
    compare(world, quantizer, monkeypatch, GPTQ, limit=3)  # other questions, the same checkpoint
    assert len(quantizer.made) == 1


def test_what_cannot_be_quantized_costs_itself_only(world, monkeypatch):
    results = compare(world, Quantizer(world, fails=True), monkeypatch, GPTQ, "w4a16-row")
    gptq, rtn = results.variants[1:]
    assert [(failure.part, failure.message) for failure in gptq.failures] == [
        ("quantizing", "gptq needs a package: pip install it")
    ]
    assert rtn.tasks
    assert gptq.plan_file is not None


def test_an_older_plan_of_the_same_variant_makes_room(world, tmp_path):
    made = []

    def quantize(_plan, folder):
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        made.append(folder.name)

    view = world.baseline().view
    first, second = (
        make_plan(
            view, Recipe.model_validate({"summary": "x", "weights": {"scheme": scheme}}), model="m", dtype="bfloat16"
        )
        for scheme in ("w4a16-row", "w3a16-row")
    )
    asked = [("x", first), ("x", second), ("x", second), ("x-y", first), ("x", second)]
    found = [quantized_folder(name, plan, "a model", quantize, tmp_path) for name, plan in asked]
    assert {path.name for path in (tmp_path / CHECKPOINTS).iterdir()} == {found[1].name, found[3].name}
    assert len(made) == 3
    again = quantized_folder("x", second, "the model, trained on", quantize, tmp_path)
    assert again not in found
    assert not found[1].exists()
    assert len(made) == 4


def test_another_version_of_the_quantizer_makes_folder_and_answers_stale(world, monkeypatch):
    quantizer = Quantizer(world)
    first = compare(world, quantizer, monkeypatch, GPTQ)
    assert first.versions["llmcompressor"] == registry.versions("llmcompressor")["llmcompressor"]
    monkeypatch.setattr(registry, "versions", lambda _name: {"llmcompressor": "99"})
    second = compare(world, quantizer, monkeypatch, GPTQ)
    assert second.versions["llmcompressor"] == "99"
    assert len(set(quantizer.made)) == 2
    assert any("gptq, places: was made with other llmcompressor" in note for note in world.notes)


def test_a_device_that_runs_full_while_quantizing_stops_that_variant_alone(world, monkeypatch):
    def full(plan, folder):
        raise torch.OutOfMemoryError("no room")

    results = compare(world, full, monkeypatch, GPTQ, "w4a16-row")
    failed, fine = (next(each for each in results.variants if each.name == name) for name in ("gptq", "w4a16-row"))
    assert [failure.part for failure in failed.failures] == ["quantizing"]
    assert failed.failures[0].message.startswith("OutOfMemoryError: no room")
    assert set(fine.tasks) == {"places", "checks"}


def test_variants_calibrated_on_different_text_are_named(world, monkeypatch):
    other = {**GPTQ["quantize"], "calibration": {"seed": 1}}
    baseline = world.baseline()

    def measure(calibration):
        model, _ = load_model(world.model)
        tokens = [tiny_tokens(2, 24, seed=calibration.seed)]
        return collect_stats(model, baseline.view, tokens, source="tiny", seed=calibration.seed)

    monkeypatch.setattr(world, "baseline", lambda: replace(baseline, measure=measure, quantize=Quantizer(world)))
    results = world.compare(world.recipe(GPTQ, {"name": "other", "quantize": other}, noise_floor=False))
    hashes = {each.name: each.calibration_hash for each in results.variants}
    assert hashes["gptq"] not in (None, hashes["other"])
    assert hashes["full precision"] is None
    assert "calibrated on different text, so that not only their methods differ: gptq / other" in world.notes
