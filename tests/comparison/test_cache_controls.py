"""Equal-bytes controls of cached keys, held to the plans' own account of bytes and to closed forms."""

from collections import Counter

import pytest

from mvquant.comparison.cache_controls import EQUAL, equal_cache_controls, key_bits, price
from mvquant.comparison.variants import all_variants
from mvquant.policies import make_plan
from mvquant.recipe import Recipe
from tests.comparison.examples import make_world

CONTEXT, SINKS = 128, 2


@pytest.fixture(scope="module")
def planner(tmp_path_factory):
    baseline = make_world(tmp_path_factory.mktemp("controls")).baseline()
    stats = baseline.measure(Recipe.model_validate(cached(2)).calibration)
    return lambda recipe: make_plan(baseline.view, recipe, model="tiny", dtype="bfloat16", stats=stats)


def cached(bits, policy="sensitivity", **keys):
    return {"summary": "x", "kv_cache": {"keys": {"bits": bits, "policy": policy, **keys}, "sinks": SINKS}}


def controls(planner, recipe, seed=3):
    plan = planner(Recipe.model_validate(recipe))
    return plan, {control.kind: control for control in equal_cache_controls(plan, planner, seed)}


TOKEN = {"scales": "token", "stage": "post-rope"}
CHANNEL = {"scales": "channel", "stage": "post-rope"}


@pytest.mark.parametrize("bits", [1.5, 2.25, 3.5])
@pytest.mark.parametrize("keys", [{}, TOKEN, CHANNEL])
def test_other_pairs_take_exactly_the_same_bytes(planner, bits, keys):
    plan, found = controls(planner, cached(bits, **keys))
    for kind in ("random-keys", "fast-keys"):
        cache = found[kind].plan.cache
        for ours, theirs in zip(plan.cache.layers, cache.layers, strict=True):
            assert plan.cache.key_chunk_bytes(ours) == cache.key_chunk_bytes(theirs)
            for mine, other in zip(ours.heads, theirs.heads, strict=True):
                assert Counter(mine.bits) == Counter(other.bits)
                assert mine.center == other.center
        assert found[kind].plan.cached_bits == plan.cached_bits
        assert found[kind].plan.hash != plan.hash
        assert found[kind].summary.endswith("the same bytes")
    assert all(head.bits == tuple(sorted(head.bits, reverse=True)) for head in heads(found["fast-keys"].plan))


def heads(plan):
    return [head for layer in plan.cache.layers for head in layer.heads]


@pytest.mark.parametrize("bits", [1.5, 2.25, 3.5])
@pytest.mark.parametrize("keys", [{}, TOKEN, CHANNEL])
def test_a_control_is_equal_or_said_to_be_dearer_or_cheaper(planner, bits, keys):
    plan, found = controls(planner, cached(bits, **keys))
    assert {"random-keys", "fast-keys"} < set(found)
    for kind, control in found.items():
        share = control.plan.cached_bits.keys / plan.cached_bits.keys - 1
        words = "the same bytes" if abs(share) <= EQUAL else "more bytes" if share > 0 else "fewer bytes"
        assert control.summary.endswith(words)
        assert (share > EQUAL) == kind.endswith("-up")
        assert control.plan.cached_bits.values == plan.cached_bits.values
        assert control.plan.bytes_after == plan.bytes_after
    below = {kind for kind in found if not kind.endswith("-up")}
    for kind in below:  # where bytes are left over, the next step up is there too
        share = found[kind].plan.cached_bits.keys / plan.cached_bits.keys - 1
        assert share >= -EQUAL or f"{kind}-up" in found


def test_the_same_format_without_preference_takes_the_same_bytes(planner):
    plan, found = controls(planner, cached(2.25))
    even = found["even-keys"].plan
    assert even.cached_bits.keys == pytest.approx(plan.cached_bits.keys, rel=EQUAL)
    assert even.cache.average_bits == pytest.approx(2.25, abs=0.05)
    assert max(max(head.bits) - min(head.bits) for head in heads(even)) == 1
    counts = [sum(head.bits) for head in heads(even)]
    assert max(counts) - min(counts) <= 1


def test_scales_per_token_are_counted(planner):
    """A head of 16 dims pays 32 bits of scales a token: 2 bits a value, and 1 for the integers, come to 3."""
    plan, found = controls(planner, cached(2.25, scales="static"))
    up = found["token-scales-up"].plan
    assert "token-scales" not in found
    assert up.cached_bits.keys == pytest.approx(3 + SINKS * 16 / CONTEXT)  # which are held as they came too
    assert found["token-scales-up"].summary.endswith(price(key_bits(up), key_bits(plan)))


def test_scales_per_channel_are_counted_and_the_tokens_that_wait(planner):
    _, found = controls(planner, cached(3.5, scales="static"))
    channel = found["channel-scales"].plan.cache
    assert (channel.keys.scales, channel.keys.chunk, channel.keys.scale_bits) == ("channel", 32, 8)
    waiting = 31 / 2
    table = 2 * 16 / CONTEXT  # mean and deviation of each channel
    integers = channel.average_bits + 16 / 32
    expected = ((SINKS + waiting) * 16 + (CONTEXT - waiting) * integers) / CONTEXT + table
    assert channel.key_bits_per_value(CONTEXT) == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize(
    "recipe",
    [
        cached(2, "none"),
        cached(2.25, "none"),  # some pairs have a bit more, but not for what they are
        {"summary": "x", "kv_cache": {"values": {"bits": 4}}},
        {"summary": "x", "weights": {"scheme": "w3a16-row"}},
    ],
)
def test_a_cache_that_prefers_no_pair_has_no_controls(planner, recipe):
    assert controls(planner, recipe)[1] == {}


def test_a_random_variant_is_no_control_of_itself(planner):
    assert "random-keys" not in controls(planner, cached(2.5, "random"))[1]
    assert "fast-keys" not in controls(planner, cached(2.5, "fast-pairs"))[1]


def test_the_seed_decides_which_pairs_are_random(planner):
    hashes = [controls(planner, cached(2.25), seed)[1]["random-keys"].plan.hash for seed in (1, 1, 2)]
    assert hashes[0] == hashes[1] != hashes[2]


def test_what_was_asked_for_anyway_is_a_control_too_and_not_answered_twice(tmp_path):
    world = make_world(tmp_path)
    baseline = world.baseline()
    recipe = Recipe.model_validate(cached(2.25))
    stats = baseline.measure(recipe.calibration)

    def make(wanted):
        return make_plan(baseline.view, wanted, model="tiny", dtype="bfloat16", stats=stats)

    even = next(each for each in equal_cache_controls(make(recipe), make, 0) if each.kind == "even-keys")
    even.plan.save(tmp_path / "even.json")
    wanted = world.recipe(str(tmp_path / "even.json"), {"name": "mine", "quantize": cached(2.25)}, equal_bytes=True)
    found = {variant.name: variant for variant in all_variants(wanted, baseline)}
    assert (found["even"].role, found["even"].control_of) == ("variant", ("mine",))
    assert "even-keys-mine" not in found
    assert found["random-keys-mine"].role == "control"
    hashes = [variant.plan.hash for variant in found.values() if variant.plan is not None]
    assert len(hashes) == len(set(hashes))
