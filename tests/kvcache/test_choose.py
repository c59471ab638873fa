"""Bits of K: within the budget, where they help, and the same whichever way heads are counted."""

from inspect import unwrap
from typing import get_args

import pytest
import torch

from mvquant.arch import model_view
from mvquant.cache_formats import KeyFormat, ValueFormat
from mvquant.cache_plan import check_cache_plan_fits
from mvquant.errors import CalibrationError, PlanError, UnknownNameError, UnsupportedModelError
from mvquant.kvcache.choose import KeyPolicy, key_plan, key_plan_from_stats
from mvquant.kvcache.roundtrip import roundtrip
from mvquant.rope import slow_pairs
from mvquant.stats import collect_stats
from tests.kvcache.attention import attention_kl, structured_states
from tests.tiny_models import ROPE_FAMILY_NAMES, tiny_config, tiny_model, tiny_tokens

POLICIES = get_args(KeyPolicy)
TOKEN = KeyFormat(scales="token")
FREQUENCIES = tuple((100.0 ** (-torch.arange(8) / 8)).tolist())
FORMATS = {
    "channel": KeyFormat(scales="channel", chunk=32),
    "channel-8": KeyFormat(scales="channel", chunk=32, scale_bits=8),
    "token": TOKEN,
    "static": KeyFormat(scales="static"),
    "static-pre": KeyFormat(scales="static", stage="pre-rope", inv_freq=FREQUENCIES),
}


@pytest.mark.parametrize("average", [1, 1.3, 2, 2.25, 2.5, 3, 4.7, 8])
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("scope", ["head", "layer"])
def test_no_policy_exceeds_the_budget_or_wastes_much_of_it(policy, average, scope):
    plan = key_plan(*structured_states(), average, policy, scope=scope)
    assert average - 8 / plan.pairs < plan.average_bits <= average
    if scope == "head" or policy != "sensitivity":
        averages = [sum(head.bits) / len(head.bits) for head in plan.layers[0].heads]
        assert max(averages) <= average


@pytest.mark.parametrize("keys", FORMATS.values(), ids=FORMATS)
def test_sensitivity_beats_controls_on_other_tokens(keys):
    q, k = structured_states(seq=128)
    judged = slice(64, 128)
    loss = {}
    for policy in ("sensitivity", "none", "random", "fast-pairs"):
        plan = key_plan(q[:64], k[:64], 2.25, policy, keys=keys)
        loss[policy] = attention_kl(q[judged], k[judged], roundtrip(k, plan)[judged])
    assert loss["sensitivity"] < 0.5 * min(loss["none"], loss["random"], loss["fast-pairs"])


def test_massive_pairs_are_protected_first():
    q, k = structured_states()
    plan = key_plan(q, k, 2.25, "massive", protected=0.25)
    for head, bits in enumerate(each.bits for each in plan.layers[0].heads):
        assert {pair for pair, width in enumerate(bits) if width > 2} == {4, 6 - head}


@pytest.mark.parametrize(("policy", "first"), [("slow-pairs", 7), ("fast-pairs", 0)])
def test_controls_rank_by_speed(policy, first):
    plan = key_plan(*structured_states(), 2.125, policy)
    assert all(head.bits == tuple(3 if pair == first else 2 for pair in range(8)) for head in plan.layers[0].heads)


@pytest.mark.parametrize(("policy", "first", "last"), [("slow-pairs", 7, 0), ("fast-pairs", 0, 7)])
def test_at_a_whole_average_the_last_of_a_ranking_pay_for_the_first(policy, first, last):
    plan = key_plan(*structured_states(), 2, policy)
    expected = {first: 3, last: 1}
    assert all(head.bits == tuple(expected.get(pair, 2) for pair in range(8)) for head in plan.layers[0].heads)


@pytest.mark.parametrize("average", [2, 2.25, 2.5, 3.75])
def test_none_prefers_no_pair(average):
    plan = key_plan(*structured_states(), average, "none")
    assert plan.average_bits == average
    assert all(max(head.bits) - min(head.bits) == (average % 1 > 0) for head in plan.layers[0].heads)


def test_a_plan_says_if_nothing_is_protected():
    states = structured_states()
    says = {(bits, policy): key_plan(*states, bits, policy).policy for bits in (1, 2) for policy in ("massive", "none")}
    assert says[1, "massive"] == "massive, 1 bits, per layer: all pairs alike, nothing is protected"
    assert says[2, "massive"] == "massive, 2 bits, per layer"
    assert says[1, "none"] == "none, 1 bits, per layer"


def test_random_pairs_follow_their_seed():
    plans = [key_plan(*structured_states(), 2.25, "random", seed=seed) for seed in (0, 0, 1)]
    assert plans[0] == plans[1] != plans[2]


@pytest.mark.parametrize("policy", [policy for policy in POLICIES if policy != "random"])
def test_heads_may_change_places(policy):
    q, k = structured_states()
    plan = key_plan(q, k, 2.5, policy)
    swapped = key_plan(q.unflatten(1, (2, 2)).flip(1).flatten(1, 2), k.flip(1), 2.5, policy)
    assert [head.bits for head in swapped.layers[0].heads] == [head.bits for head in plan.layers[0].heads[::-1]]


def test_what_is_constant_over_keys_needs_no_bits():
    q, k = structured_states()
    shifted = k.clone()
    shifted[..., [0, 8]] += 100
    plans = [key_plan(q, each, 2.5, keys=FORMATS["channel"]) for each in (k, shifted)]
    assert plans[0] == plans[1]


def test_keys_before_rope_are_measured_there():
    q, k = structured_states()
    plan = key_plan(q, k, 8, keys=FORMATS["static-pre"], start=5)
    assert float((roundtrip(k, plan, start=5) - k).norm() / k.norm()) < 0.02
    with pytest.raises(PlanError, match="inv_freq"):
        key_plan(q, k, 8, keys=KeyFormat(scales="static", stage="pre-rope"))


def test_sinks_are_not_measured():
    q, k = structured_states()
    odd = k.clone()
    odd[:2] *= 50
    plans = [key_plan(q, each, 2.5, sinks=2) for each in (k, odd)]
    assert plans[0] == plans[1]
    assert plans[0].sinks == 2


@pytest.mark.parametrize("average", [0, 0.5, 0.99])
@pytest.mark.parametrize("policy", POLICIES)
def test_budgets_below_one_bit_are_refused(policy, average):
    with pytest.raises(PlanError, match=r"below what 1 bit\(s\) per pair need"):
        key_plan(*structured_states(), average, policy)


def test_bad_input_is_named():
    q, k = structured_states()
    with pytest.raises(CalibrationError, match="do not belong together"):
        key_plan(q[:, :3], k, 2)
    with pytest.raises(CalibrationError, match="NaN"):
        key_plan(q, k * float("nan"), 2)
    with pytest.raises(PlanError, match="must rise"):
        key_plan(q, k, 2, widths=(2, 1))
    with pytest.raises(PlanError, match="protected 0 is no share"):
        key_plan(q, k, 2, "massive", protected=0.0)
    with pytest.raises(PlanError, match="or above 16: choose 1 to 8"):
        key_plan(q, k, 17)
    with pytest.raises(UnknownNameError, match="did you mean 'massive'"):
        unwrap(key_plan)(q, k, 2, "masive")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rotary_dim": 7}, "rotary_dim 7 and head_dim 16 must be even"),
        ({"rotary_dim": 18}, "rotary_dim from 0 to head_dim"),
        ({"sinks": -1}, "sinks: -1 tokens; choose 0 or more"),
        ({"scope": "layers"}, "unknown scope 'layers': did you mean 'layer'"),
        ({"layout": "half"}, "unknown layout 'half'"),
        ({"keys": KeyFormat(stage="pre-rope", chunk=32, inv_freq=(1.0, 0.5))}, "2 frequencies for 8 RoPE pairs"),
    ],
)
def test_options_that_cannot_be_are_named(options, message):
    with pytest.raises((PlanError, UnknownNameError), match=message):
        unwrap(key_plan)(*structured_states(), 2, **options)


def test_states_with_a_batch_are_refused():
    q, k = structured_states()
    with pytest.raises(CalibrationError, match=r"are not \[seq, heads, head_dim\]: give the states of one text"):
        unwrap(key_plan)(q[None], k[None], 2)
    with pytest.raises(PlanError, match=r"are not \[seq, kv_head, head_dim\]: give those of one text"):
        unwrap(roundtrip)(k[None], key_plan(q, k, 2))


@pytest.fixture(scope="module")
def measured():
    """Statistics and view of a tiny model of every family."""

    def measure(family):
        model, view = tiny_model(family), model_view(tiny_config(family))
        return collect_stats(model, view, [tiny_tokens(sequences=4)]), view

    return {family: measure(family) for family in ROPE_FAMILY_NAMES}


@pytest.mark.parametrize("family", ROPE_FAMILY_NAMES)
def test_every_family_gets_a_plan_from_statistics(measured, family):
    stats, view = measured[family]
    for policy in POLICIES:
        plan = key_plan_from_stats(stats, view, 2.5, policy, values=ValueFormat(bits=4), sinks=1, window=8)
        check_cache_plan_fits(plan, [attention.k for attention in view.attentions])
        assert 2 < plan.average_bits <= 2.5
        assert (plan.sinks, plan.window, plan.values.bits) == (1, 8, 4)


@pytest.mark.parametrize("scope", ["layer", "model"])
def test_layers_compete_only_if_the_scope_is_the_model(measured, scope):
    stats, view = measured["llama"]
    plan = key_plan_from_stats(stats, view, 2.5, scope=scope)
    averages = [sum(sum(head.bits) for head in layer.heads) / (2 * plan.pairs) for layer in plan.layers]
    assert (averages == [2.5, 2.5]) == (scope == "layer")
    assert sum(averages) / 2 == pytest.approx(2.5, abs=0.04)


def test_slow_pairs_of_a_model_are_those_of_its_context(measured):
    stats, view = measured["llama"]
    first_slow = slow_pairs(view.config)[0]
    plan = key_plan_from_stats(stats, view, 2.125, "slow-pairs")
    assert all(head.bits[first_slow] == 3 and sum(head.bits) == 17 for layer in plan.layers for head in layer.heads)


def test_models_without_rope_are_refused():
    view = model_view(tiny_config("gpt2"))
    stats = collect_stats(tiny_model("gpt2"), view, [tiny_tokens()])
    with pytest.raises(UnsupportedModelError, match="gpt2 has no RoPE"):
        key_plan_from_stats(stats, view, 2.5)


def test_statistics_of_another_model_are_refused(measured):
    with pytest.raises(CalibrationError, match="another model"):
        key_plan_from_stats(measured["mistral"][0], measured["llama"][1], 2.5)
