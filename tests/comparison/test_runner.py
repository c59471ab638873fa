"""Whole comparisons of a tiny model: what is answered, kept, taken up again, and what happens when things break."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from mvquant import pipeline
from mvquant.comparison import Questions, Setting, load_comparison, load_flips
from mvquant.comparison.results import ANALYSIS_FILE, FLIPS_FILE, RESULTS_FILE, STATS_FILE
from mvquant.errors import CheckpointError, EvaluationError, UsageError
from mvquant.evaluation import compare, evaluate
from mvquant.methods import apply_plan
from mvquant.named_schemes import recipe_for_scheme
from mvquant.plan import load_plan
from tests.comparison.examples import READING, make_world, protected, save_model

TEXT = {"sequences": 4, "length": 16, "new_tokens": 6}
BROKEN = {"name": "broken", "quantize": {"summary": "no group of 128", "weights": {"scheme": "w4a16"}}}


@pytest.fixture
def world(tmp_path):
    return make_world(tmp_path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """One comparison with everything in it, and the world it was made in."""
    world = make_world(tmp_path_factory.mktemp("whole"))
    recipe = world.recipe("w2a16-row", {"name": "mine", "quantize": protected(2)}, equal_bytes=True, text=TEXT, seed=5)
    return world, recipe, world.compare(recipe)


def by_name(results):
    return {variant.name: variant for variant in results.variants}


def test_every_variant_is_there_with_its_role(whole):
    _, _, results = whole
    roles = {variant.name: variant.role for variant in results.variants}
    assert list(roles)[:4] == ["full precision", "full precision again", "w2a16-row", "mine"]
    assert {name for name, role in roles.items() if role == "control"} >= {"random-mine", "top-norm-mine"}
    assert by_name(results)["random-mine"].control_of == ("mine",)
    assert results.complete
    assert list(results.tasks) == ["places", "checks"]


def test_the_figures_are_those_of_the_evaluator(whole):
    world, _, results = whole
    tasks = world.questions().tasks
    model, tokenizer = pipeline.load_model(world.model)
    before = evaluate(model, tokenizer, tasks, batch_size=4)
    variant = by_name(results)["w2a16-row"]
    plan = load_plan(world.folder / "out" / variant.plan_file)
    assert plan.hash == variant.plan_hash
    assert (variant.bits_per_weight, variant.bytes) == (plan.bits_per_weight, plan.bytes_after)
    after = evaluate(apply_plan(model, plan), tokenizer, tasks, batch_size=4)
    comparison = compare(before, after, seed=5)
    assert {name: score.versus_baseline for name, score in variant.tasks.items()} == comparison.tasks
    assert variant.contextual_minus_parametric == comparison.contextual_minus_parametric
    assert {name: score.accuracy for name, score in variant.tasks.items()} == {
        name: task.accuracy for name, task in after.tasks.items()
    }


def test_the_baseline_has_nothing_to_compare_with_and_is_its_own_noise_floor(whole):
    _, _, results = whole
    baseline, again = results.variants[:2]
    assert baseline.contextual_minus_parametric is None
    assert all(score.versus_baseline is None for score in baseline.tasks.values())
    assert baseline.text.kl is None
    assert all(score.versus_baseline.p == 1.0 for score in again.tasks.values())
    assert again.text.kl.value < 1e-6
    assert again.text.perplexity_ratio.value == pytest.approx(1, abs=1e-4)


def test_running_text_tells_two_bits_from_full_precision(whole):
    _, _, results = whole
    text = by_name(results)["w2a16-row"].text
    assert text.kl.value > 100 * results.variants[1].text.kl.value
    assert text.kl_tail >= text.kl.value > 0
    assert 0 <= text.top_1.value < 1
    assert (text.sequences, text.tokens) == (4, 60)
    assert text.continuations.texts == 4
    assert not (whole[0].folder / "out" / "logits").exists()


def test_results_and_flips_come_back_from_disk(whole):
    world, _, results = whole
    assert load_comparison(world.folder / "out") == results
    flips = load_flips(world.folder / "out")
    for item in flips:
        assert len({answer.correct for answer in item.answers.values()}) == 2
        assert set(item.answers) == set(by_name(results))
    prompts = {item["id"]: item["prompt"] for item in READING}
    assert all(item.prompt == prompts[item.id] for item in flips if item.task == "places")
    with pytest.raises(EvaluationError, match="holds no comparison"):
        load_comparison(world.folder)


def test_a_contrast_is_positive_where_the_variant_kept_more(whole):
    _, _, results = whole
    variants = by_name(results)
    for contrast in results.contrasts:
        ours, theirs = variants[contrast.variant], variants[contrast.control]
        difference = sum(score.correct for score in ours.tasks.values()) - sum(
            score.correct for score in theirs.tasks.values()
        )
        assert contrast.better - contrast.worse == difference
        assert contrast.extra_bytes == ours.bytes - theirs.bytes
        for group, gain in contrast.gains.items():
            assert gain.value == pytest.approx(
                ours.groups[group].corrected.value - theirs.groups[group].corrected.value
            )


def test_a_finished_comparison_answers_nothing_again(whole):
    world, recipe, results = whole
    world.loads.clear()
    assert world.compare(recipe) == results
    assert world.loads == []
    assert world.notes == []


def test_an_interrupted_comparison_goes_on_to_the_same_bytes(whole, tmp_path):
    finished, recipe, _ = whole
    world = make_world(tmp_path)
    recipe = recipe.model_copy(update={"model": str(world.model)})

    def interrupted(folder, device):
        if len(world.loads) == 3:
            raise KeyboardInterrupt
        return world.load(folder, device)

    with pytest.raises(KeyboardInterrupt):
        world.compare(recipe, load=interrupted)
    assert not (tmp_path / "out" / RESULTS_FILE).exists()
    assert not (tmp_path / "out" / "logits").exists()
    world.loads.clear()
    world.compare(recipe)
    kept = (
        1  # the baseline's second run; the baseline reads its running text again, so that others are compared with it
    )
    assert len(world.loads) == len(load_comparison(tmp_path / "out").variants) - kept - 1
    ours, theirs = (folder / "out" for folder in (tmp_path, finished.folder))
    assert (ours / FLIPS_FILE).read_bytes() == (theirs / FLIPS_FILE).read_bytes()
    text = (ours / RESULTS_FILE).read_text().replace(str(tmp_path), str(finished.folder))
    assert text == (theirs / RESULTS_FILE).read_text()


def test_other_settings_make_answers_stale(world):
    world.compare(world.recipe("w2a16-row", noise_floor=False))
    world.loads.clear()
    world.compare(world.recipe("w2a16-row", noise_floor=False, limit=3))
    assert len(world.loads) == 2
    assert "w2a16-row, checks: was made with other limit (None, now 3); done again" in world.notes


def test_another_model_in_its_place_makes_answers_stale(world):
    recipe = world.recipe("w2a16-row", noise_floor=False)
    first = world.compare(recipe)
    save_model(world.model, seed=1)
    second = world.compare(recipe)
    assert second.variants[0].model_hash != first.variants[0].model_hash
    assert sum("other model" in note for note in world.notes) == 4


def test_more_variants_can_join_later(world):
    world.compare(world.recipe("w2a16-row", noise_floor=False, text=TEXT))
    world.loads.clear()
    results = world.compare(world.recipe("w2a16-row", "w3a16-row", noise_floor=False, text=TEXT))
    assert len(world.loads) == 2  # the baseline's logits are needed again, and the new variant
    assert by_name(results)["w3a16-row"].text.kl.value < by_name(results)["w2a16-row"].text.kl.value


def test_a_variant_that_cannot_be_planned_does_not_stop_the_others(world):
    results = world.compare(world.recipe(BROKEN, "w4a16-row", noise_floor=False))
    broken = by_name(results)["broken"]
    assert [failure.part for failure in broken.failures] == ["planning"]
    assert "group_size 128 does not divide its 64 columns" in broken.failures[0].message
    assert broken.tasks == {}
    assert set(by_name(results)["w4a16-row"].tasks) == {"places", "checks"}
    assert not results.complete


def checkpoint(world, scheme="w4a16-row", name="ckpt"):
    opened = pipeline.open_model(str(world.model))
    plan = pipeline.plan_model("tiny", recipe_for_scheme(scheme), opened)
    pipeline.quantize(opened, plan, world.folder / name)
    return world.folder / name, plan


def test_a_finished_checkpoint_answers_like_its_plan_in_memory(world):
    folder, plan = checkpoint(world)
    results = by_name(world.compare(world.recipe("w4a16-row", str(folder), noise_floor=False, text=TEXT)))
    ours, theirs = results["ckpt"], results["w4a16-row"]
    assert (ours.tasks, ours.text) == (theirs.tasks, theirs.text)
    assert (ours.plan_hash, ours.bytes) == (plan.hash, plan.bytes_after)
    assert ours.model_hash != theirs.model_hash


def test_logits_that_are_no_numbers_are_a_failure_not_wrong_answers(world):
    folder, _ = checkpoint(world)
    (file,) = folder.glob("*.safetensors")
    tensors = load_file(file)
    tensors["model.norm.weight"][3] = torch.nan
    save_file(tensors, file, metadata={"format": "pt"})
    results = world.compare(world.recipe(str(folder), "w3a16-row", noise_floor=False, text=TEXT))
    broken = by_name(results)["ckpt"]
    assert {failure.part for failure in broken.failures} == {"places", "checks", "text"}
    assert all("NaN or infinite" in failure.message for failure in broken.failures)
    assert broken.tasks == {}
    assert by_name(results)["w3a16-row"].text is not None


def test_a_checkpoint_that_was_copied_in_part_stops_that_variant_alone(world):
    folder, _ = checkpoint(world)
    (file,) = folder.glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-100])
    results = by_name(world.compare(world.recipe(str(folder), "w4a16-row", noise_floor=False)))
    assert [failure.part for failure in results["ckpt"].failures] == ["loading"]
    assert "is cut short" in results["ckpt"].failures[0].message
    assert set(results["w4a16-row"].tasks) == {"places", "checks"}


def test_massive_values_of_another_run_are_not_shown(world):
    out = world.folder / "out"
    out.mkdir()
    recipe = world.recipe("w4a16-row", noise_floor=False)
    world.compare(recipe)
    for name in (ANALYSIS_FILE, STATS_FILE):
        (out / name).write_text("of another model")
    assert world.compare(recipe).analysis_file is None
    assert not (out / STATS_FILE).exists()


def test_a_failure_is_tried_again_by_the_next_run(world):
    def full(folder, device):
        if len(world.loads) == 1:
            world.loads.append(folder)
            raise torch.OutOfMemoryError("no room")
        return world.load(folder, device)

    recipe = world.recipe("w2a16-row", "w3a16-row", noise_floor=False)
    results = world.compare(recipe, load=full)
    failure = by_name(results)["w2a16-row"].failures[0]
    assert (failure.part, failure.message) == (
        "loading",
        "OutOfMemoryError: no room; a smaller --batch-size needs less memory",
    )
    assert by_name(results)["w3a16-row"].tasks
    assert world.compare(recipe).complete


def test_without_its_baseline_nothing_is_compared(world):
    def broken(folder, device):
        raise CheckpointError("the disk is gone")

    with pytest.raises(EvaluationError, match=r"baseline .* cannot be loaded: the disk is gone"):
        world.compare(world.recipe("w4a16-row"), load=broken)


def test_what_is_no_checkpoint_is_refused_at_once(world):
    (world.folder / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"variant empty: .* has no config\.json"):
        world.compare(world.recipe(str(world.folder / "empty")))
    assert world.loads == []


def test_no_question_no_comparison(world, monkeypatch):
    monkeypatch.setattr(world, "questions", lambda **_: Questions())
    with pytest.raises(EvaluationError, match="nothing to compare on"):
        world.compare(world.recipe("w4a16-row"))


def test_an_unknown_engine_is_named(world):
    with pytest.raises(UsageError, match="unknown engine 'spark'"):
        world.compare(world.recipe("w4a16-row"), setting=Setting(engine="spark"))
