import pytest
import torch

from mvquant.arch import model_view
from mvquant.errors import CalibrationError, PlanError, UnsupportedModelError
from mvquant.massive import HeadMoments
from mvquant.named_schemes import recipe_for_scheme
from mvquant.policies import POLICIES, make_plan
from mvquant.recipe import MEASURED_POLICIES, Protect, Recipe, Weights
from mvquant.rope import slow_pairs
from mvquant.scheme import WeightScheme
from mvquant.stats import CalibrationStats, LayerStats
from tests.tiny_models import ROPE_FAMILY_NAMES, tiny_config

W4 = WeightScheme(bits=4, group_size=32)
BUDGETED = sorted(set(POLICIES) - {"whole-module"})


def moments(states):
    """Moments of random states [head, head_dim], one token each."""
    return HeadMoments(tokens=1, total=states, squares=states**2, within_variance=states**2)


def stats_for(view, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def draw(rows):
        return moments(torch.rand(rows.heads, rows.head_dim, generator=generator, dtype=torch.float64))

    layers = []
    for attention in view.attentions:
        q, k, v = draw(attention.q), draw(attention.k), draw(attention.v)
        layers.append(LayerStats(layer=attention.layer, q_pre=q, k_pre=k, q=q, k=k, v=v))
    return CalibrationStats(tuple(layers), source="test", sequences=1, length=1, seed=seed, hash="0")


def recipe(policy, **budget):
    needs = {} if policy in ("none", "whole-module") else budget or {"pairs": 0.25}
    return Recipe(summary="test", weights=Weights(scheme=W4), protect=Protect(policy=policy, **needs))


def planned(view, policy, stats=None, **budget):
    if stats is None and policy in MEASURED_POLICIES:
        stats = stats_for(view)
    return make_plan(view, recipe(policy, **budget), model="tiny", dtype="float32", stats=stats)


def protected_rows(plan):
    return {module.name: module.protected_rows for module in plan.modules if module.protected}


@pytest.fixture(scope="module")
def view():
    return model_view(tiny_config("llama", head_dim=32))


@pytest.mark.parametrize("policy", BUDGETED)
@pytest.mark.parametrize("family", ROPE_FAMILY_NAMES)
def test_every_policy_spends_its_budget_in_every_family(policy, family):
    view = model_view(tiny_config(family))
    pairs = sum(rows.heads * rows.pairs for a in view.attentions for rows in (a.q, a.k))
    rows = protected_rows(planned(view, policy, pairs=0.25))
    assert sum(map(len, rows.values())) == 2 * round(0.25 * pairs)
    assert {name.rpartition(".")[2] for name in rows} <= {"q_proj", "k_proj", "qkv_proj", "query_key_value"}


@pytest.mark.parametrize("policy", BUDGETED)
def test_a_byte_budget_is_kept_and_nearly_used_up(view, policy):
    plain = planned(view, "none").bytes_after
    extra = planned(view, policy, bytes=1000).bytes_after - plain
    assert 1000 - 2 * (64 * 0.5 + 4) < extra <= 1000


def test_none_protects_nothing(view):
    assert not protected_rows(planned(view, "none"))


def test_whole_module_is_plain_eight_bits_for_q_and_k(view):
    plan = planned(view, "whole-module")
    bits = {module.name.rpartition(".")[2]: module.scheme.bits for module in plan.modules}
    assert bits["q_proj"] == bits["k_proj"] == 8
    assert bits["v_proj"] == bits["o_proj"] == bits["down_proj"] == 4
    assert not protected_rows(plan)


def test_whole_module_leaves_the_values_of_a_fused_projection_alone():
    view = model_view(tiny_config("phi3"))
    fused = next(module for module in planned(view, "whole-module").modules if module.name.endswith("qkv_proj"))
    attention = view.attentions[0]
    assert len(fused.protected_rows) == (attention.q.heads + attention.k.heads) * attention.q.head_dim
    assert max(fused.protected_rows) < attention.v.start


def test_massive_takes_slow_pairs_first_and_the_largest_of_them(view):
    stats = stats_for(view)
    plan = planned(view, "massive", stats)
    slow = set(slow_pairs(view.config))
    assert len(slow) < view.attentions[0].q.pairs
    for module in plan.modules:
        for protection in module.protected:
            layer = stats.layers[module.layer]
            energy = (layer.q if protection.heads.role == "q" else layer.k).pair_energy(32)
            for head, pairs in protection.pairs.items():
                chosen_slow = set(pairs) & slow
                best = sorted(slow, key=lambda pair: -float(energy[head, pair]))
                assert chosen_slow == set(best[: len(chosen_slow)])
                assert len(chosen_slow) == min(len(slow), len(pairs))


def test_sensitivity_follows_the_partner(view):
    """A pair of Q with little energy of its own is protected where K varies enough."""
    stats = stats_for(view)
    layer = stats.layers[0]
    layer.k.within_variance[0, [5, 21]] = 1e6
    pairs = {
        protection.heads.role: protection.pairs
        for protection in planned(view, "sensitivity", stats, pairs=0.05).modules[0].protected
    }
    readers = view.attentions[0].q.heads // view.attentions[0].k.heads
    assert all(5 in pairs["q"][head] for head in range(readers))


def test_top_norm_ignores_pairs(view):
    stats = stats_for(view)
    squares = stats.layers[0].q.squares
    squares[0, 3] = 1e9
    squares[0, 19] = 0.0
    protection = planned(view, "top-norm", stats).modules[0].protected[0]
    assert 3 in protection.dims[0]
    assert 19 not in protection.dims[0]
    assert not protection.pairs


def test_data_free_policies_keep_their_order(view):
    slow = slow_pairs(view.config)
    pairs = view.attentions[0].q.pairs
    quarter = pairs // 4
    fast = planned(view, "fast-pairs").modules[0].protected[0].pairs
    assert set(fast.values()) == {tuple(range(quarter))}
    first_slow = planned(view, "slow-pairs").modules[0].protected[0].pairs
    expected = [*slow, *reversed(range(slow[0]))][:quarter]
    assert set(first_slow.values()) == {tuple(sorted(expected))}


def test_random_is_a_matter_of_the_seed(view):
    def rows(seed):
        protect = Protect(policy="random", pairs=0.25, seed=seed)
        made = Recipe(summary="test", weights=Weights(scheme=W4), protect=protect)
        return protected_rows(make_plan(view, made, model="tiny", dtype="float32"))

    assert rows(0) == rows(0)
    assert rows(0) != rows(1)


def test_ignored_modules_are_kept(view):
    weights = Weights(scheme=W4, ignore=("*.k_proj", "*.down_proj"))
    made = make_plan(view, Recipe(summary="test", weights=weights), model="tiny", dtype="float32")
    names = {module.name.rpartition(".")[2] for module in made.modules}
    assert names == {"q_proj", "v_proj", "o_proj", "gate_proj", "up_proj"}
    everything = planned(view, "none")
    assert made.bytes_before == everything.bytes_before
    with pytest.raises(PlanError, match="leaves no weight"):
        weights = Weights(scheme=W4, ignore=("*",))
        make_plan(view, Recipe(summary="test", weights=weights), model="tiny", dtype="float32")


def test_protecting_a_model_without_rope_is_refused_but_plain_schemes_work():
    view = model_view(tiny_config("opt"))
    with pytest.raises(UnsupportedModelError, match="opt has no RoPE"):
        planned(view, "slow-pairs")
    assert planned(view, "none").modules


def test_measuring_policies_need_statistics(view):
    with pytest.raises(CalibrationError, match="'massive' measures"):
        make_plan(view, recipe("massive"), model="tiny", dtype="float32")


def test_a_group_that_does_not_divide_names_the_module(view):
    with pytest.raises(PlanError, match=r"layers\.0\.self_attn\.q_proj: group_size 128 .* 64 columns"):
        make_plan(view, recipe_for_scheme("w4a16"), model="tiny", dtype="float32")
