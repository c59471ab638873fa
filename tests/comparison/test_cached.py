"""Comparisons of variants that differ in their cache: planned, answered with it, and told apart by bits."""

import pytest

from mvquant import pipeline
from mvquant.evaluation import evaluate
from mvquant.methods import apply_plan, planned_cache
from mvquant.plan import load_plan
from mvquant.report import comparison_markdown
from tests.comparison.examples import make_world

TEXT = {"sequences": 4, "length": 64, "new_tokens": 6}


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """A cache alone, a cache with weights, and a finished checkpoint of the latter."""
    world = make_world(tmp_path_factory.mktemp("cached"))
    first = world.compare(world.recipe("mv-protect-w4a16-row-k2v4"), "first")
    plan = load_plan(world.folder / "first" / first.variants[-1].plan_file)
    pipeline.quantize(pipeline.open_model(str(world.model)), plan, world.folder / "done")
    pipeline.load_tokenizer(world.model).save_pretrained(world.folder / "done")
    wanted = world.recipe("k2v4", "mv-protect-w4a16-row-k2v4", str(world.folder / "done"), text=TEXT)
    return world, {variant.name: variant for variant in world.compare(wanted).variants}, world.compare(wanted)


def test_answers_are_given_with_the_cache(compared):
    world, variants, _ = compared
    tasks = world.questions().tasks
    for name in ("k2v4", "mv-protect-w4a16-row-k2v4"):
        plan = load_plan(world.folder / "out" / variants[name].plan_file)
        model, tokenizer = pipeline.load_model(world.model)
        with planned_cache(apply_plan(model, plan), plan):
            expected = evaluate(model, tokenizer, tasks, batch_size=4)
        found = {task: score.accuracy for task, score in variants[name].tasks.items()}
        assert found == {task: result.accuracy for task, result in expected.tasks.items()}


def test_running_text_is_read_with_the_cache(compared):
    _, variants, _ = compared
    noise = variants["full precision again"].text.kl.value
    assert variants["k2v4"].text.kl.value > 100 * noise
    assert variants["k2v4"].bits_per_weight == 16
    finished, in_memory = variants["done"], variants["mv-protect-w4a16-row-k2v4"]
    assert finished.text == in_memory.text
    assert {task: score.correct for task, score in finished.tasks.items()} == {
        task: score.correct for task, score in in_memory.tasks.items()
    }


def test_bits_of_weights_and_cache_are_told_apart(compared):
    world, variants, results = compared
    plan = load_plan(world.folder / "out" / variants["k2v4"].plan_file)
    assert variants["k2v4"].bits_per_cached_value == plan.cached_bits.average < 16
    assert variants["full precision"].bits_per_cached_value == 16
    assert variants["done"].bits_per_cached_value == variants["mv-protect-w4a16-row-k2v4"].bits_per_cached_value
    table = comparison_markdown(results)
    assert "bits/kv" in table
    assert max(map(len, table.splitlines())) <= 120
