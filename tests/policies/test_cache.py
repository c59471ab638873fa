import pytest
import torch

from mvquant.arch import model_view
from mvquant.cache_recipe import Fold, KvCache
from mvquant.errors import CalibrationError, PlanError, UnsupportedModelError
from mvquant.policies import make_plan
from mvquant.policies.cache import plan_cache, plan_fold
from mvquant.recipe import Recipe
from mvquant.stats import collect_stats
from tests.tiny_models import ROPE_FAMILY_NAMES, tiny_config, tiny_model, tiny_tokens


def measured(family, **changes):
    """Statistics of a model some of whose K rows are much larger than others."""
    view, model = model_view(tiny_config(family, **changes)), tiny_model(family, **changes)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("k_proj.weight", "k_norm.weight")):
                parameter[::5] *= 6.0
    return view, collect_stats(model, view, [tiny_tokens(2, 32)])


@pytest.mark.parametrize("family", ROPE_FAMILY_NAMES)
def test_the_budget_is_kept_in_every_family(family):
    view, stats = measured(family)
    plan = plan_cache(view, KvCache(keys={"bits": 2.25}), stats, 16)
    pairs = plan.pairs * sum(len(layer.heads) for layer in plan.layers)
    assert 2.25 - 8 / pairs < plan.average_bits <= 2.25
    assert plan.keys.scales == "channel"
    assert plan.values.bits == 16
    assert plan.float_bits == 16


@pytest.mark.parametrize("policy", ["sensitivity", "massive", "slow-pairs", "random", "fast-pairs", "none"])
def test_every_policy_spends_the_same(policy):
    view, stats = measured("llama")
    plan = plan_cache(view, KvCache(keys={"bits": 2.5, "policy": policy}), stats, 32)
    assert plan.average_bits == 2.5
    assert plan.float_bits == 32


def test_values_alone_can_be_rounded():
    view, stats = measured("llama")
    plan = plan_cache(view, KvCache(values={"bits": 4, "group_size": 8}, sinks=3, window=5), stats, 16)
    assert {width for layer in plan.layers for head in layer.heads for width in head.bits} == {16}
    assert plan.key_bits_per_value(64) == 16
    assert (plan.sinks, plan.window, plan.values.group_size) == (3, 5, 8)


def test_groups_of_values_must_divide_a_head():
    view, stats = measured("llama")
    with pytest.raises(PlanError, match=r"no plan for the cache: values\.group_size 32 does not divide head_dim 16"):
        plan_cache(view, KvCache(values={"bits": 4, "group_size": 32}), stats, 16)


def test_keys_are_not_cached_before_a_rope_that_changes_with_the_length():
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    view, stats = measured("llama", rope_parameters=rope)
    with pytest.raises(UnsupportedModelError, match=r"set kv_cache\.keys\.stage to post-rope"):
        plan_cache(view, KvCache(keys={"bits": 2}), stats, 16)
    assert plan_cache(view, KvCache(keys={"bits": 2, "stage": "post-rope"}), stats, 16).layers


def test_scales_are_recorded_as_they_are_applied():
    view, stats = measured("llama")
    fold = plan_fold(view, Fold(strength=1.0), stats)
    assert [[len(head) for head in layer] for layer in fold] == [[8, 8], [8, 8]]
    exponents = torch.tensor(fold).log2()
    assert torch.equal(exponents, exponents.round())
    assert exponents.abs().max() > 0


def test_weights_and_cache_are_planned_on_what_is_left_after_folding():
    """Folded to the full, all pairs of K are alike: none is massive, and bits follow Q alone."""
    view, stats = measured("llama")
    recipe = {"summary": "t", "weights": {"scheme": "w4a16-g32"}, "protect": {"policy": "top-norm", "pairs": 0.25}}
    recipe |= {"kv_cache": {"keys": {"bits": 2}}}
    plain = make_plan(view, Recipe(**recipe), model="t", dtype="float32", stats=stats)
    folded = make_plan(view, Recipe(**recipe, fold={"strength": 1.0}), model="t", dtype="float32", stats=stats)
    assert plain.cache.layers != folded.cache.layers
    assert [m.protected for m in plain.modules] != [m.protected for m in folded.modules]
    assert folded.calibration == plain.calibration


@pytest.mark.parametrize("wanted", [{"kv_cache": {"keys": {"bits": 2}}}, {"fold": {"strength": 1.0}}])
def test_without_statistics_or_rope_there_is_no_plan(wanted):
    recipe = Recipe(summary="t", weights={"scheme": "w4a16-g32"}, **wanted)
    with pytest.raises(CalibrationError, match=f"`{next(iter(wanted))}` measures the model"):
        make_plan(model_view(tiny_config("llama")), recipe, model="t", dtype="float32")
    with pytest.raises(UnsupportedModelError, match="opt has no RoPE, and without it Q and K have no pairs"):
        make_plan(model_view(tiny_config("opt")), recipe, model="t", dtype="float32")
