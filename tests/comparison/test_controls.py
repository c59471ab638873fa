import pytest

from mvquant.comparison.controls import blend, equal_bytes_controls
from mvquant.policies import make_plan
from mvquant.recipe import Recipe
from tests.comparison.examples import make_world, protected


@pytest.fixture(scope="module")
def planner(tmp_path_factory):
    baseline = make_world(tmp_path_factory.mktemp("controls")).baseline()
    stats = baseline.measure(Recipe.model_validate(protected()).calibration)
    return lambda recipe: make_plan(baseline.view, recipe, model="tiny", dtype="bfloat16", stats=stats)


def controls(planner, recipe):
    plan = planner(Recipe.model_validate(recipe))
    return plan, {control.kind: control for control in equal_bytes_controls(plan, planner, seed=3)}


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_rows_chosen_otherwise_cost_exactly_the_same(planner, bits):
    plan, found = controls(
        planner,
        protected(bits) | ({"protect": {"policy": "massive", "pairs": 0.25, "scheme": "bf16"}} if bits == 8 else {}),
    )
    for kind in ("random", "fast-pairs", "top-norm"):
        assert found[kind].plan.bytes_after == plan.bytes_after
        assert found[kind].plan.hash != plan.hash
        assert found[kind].plan.recipe.protect.policy == kind


def test_modules_changed_otherwise_cost_no_more(planner):
    plan, found = controls(planner, protected())
    base = planner(Recipe.model_validate({**protected(), "protect": {"policy": "none"}}))
    assert base.bytes_after < found["smaller-groups"].plan.bytes_after <= plan.bytes_after
    assert not any(module.protected for module in found["smaller-groups"].plan.modules)
    assert {module.scheme.bits for module in found["smaller-groups"].plan.modules} == {3}
    assert found["whole-qk-all"].plan.bytes_after > plan.bytes_after
    changed = [module for module in found["whole-qk-all"].plan.modules if module.scheme.bits == 8]
    assert {module.name.rpartition(".")[2] for module in changed} == {"q_proj", "k_proj"}


def test_smaller_groups_leave_less_than_one_step_unspent(planner):
    plan, found = controls(planner, protected())
    left = plan.bytes_after - found["smaller-groups"].plan.bytes_after
    scales = [module.rows * 2 for module in plan.modules]  # one group a row more costs a scale for each row
    assert 0 <= left < max(scales) * 2


def test_whole_modules_are_taken_while_the_bytes_last(planner):
    plan, found = controls(planner, {**protected(), "protect": {"policy": "massive", "pairs": 0.9}})
    whole = found["whole-qk"].plan
    base = planner(Recipe.model_validate({**protected(), "protect": {"policy": "none"}}))
    assert base.bytes_after < whole.bytes_after <= plan.bytes_after
    assert {module.scheme.bits for module in whole.modules} == {3, 8}


def test_a_plan_that_protects_nothing_has_no_controls(planner):
    assert controls(planner, {"summary": "x", "weights": {"scheme": "w3a16-row"}})[1] == {}


def test_the_seed_decides_which_rows_are_random(planner):
    plan = planner(Recipe.model_validate(protected()))
    hashes = [next(equal_bytes_controls(plan, planner, seed)).plan.hash for seed in (1, 1, 2)]
    assert hashes[0] == hashes[1] != hashes[2]


def test_a_blend_obeys_its_limit_and_its_order(planner):
    base = planner(Recipe.model_validate({"summary": "x", "weights": {"scheme": "w3a16-row"}}))
    richer = planner(Recipe.model_validate({"summary": "x", "weights": {"scheme": "w8a16-row"}}))
    assert blend(base, richer, base.bytes_after, []).hash == base.hash
    assert blend(base, richer, richer.bytes_after, []).hash == richer.hash
    last = base.modules[-1].name
    cost = richer.modules[-1].bytes_after(16) - base.modules[-1].bytes_after(16)
    found = blend(base, richer, base.bytes_after + cost, [last])
    assert [module.name for module in found.modules if module.scheme.bits == 8] == [last]
