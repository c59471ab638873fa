"""Codecs: bytes are the plan's, the past never matters, and pairs do not disturb each other."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mvquant.cache_formats import KeyFormat, ValueFormat
from mvquant.cache_plan import CachePlan, HeadKeys, LayerKeys
from mvquant.errors import PlanError
from mvquant.kvcache.codec import key_codec, value_codec

HEAD_DIM = 16
FORMATS = {
    "static": KeyFormat(scales="static"),
    "channel": KeyFormat(scales="channel", chunk=32),
    "channel-8": KeyFormat(scales="channel", chunk=16, scale_bits=8),
    "token": KeyFormat(scales="token"),
}


def states(heads=2, tokens=64, batch=2, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    scale = torch.logspace(-1, 1, HEAD_DIM)
    normal = torch.randn(batch, heads, tokens, HEAD_DIM, generator=generator)
    return (normal * scale + 3 * scale).to(dtype)


def plan_of(keys, *bits, rotary_dim=HEAD_DIM, **changes):
    scale = torch.logspace(-1, 1, HEAD_DIM)
    tables = {"center": tuple((3 * scale).tolist()), "spread": tuple(scale.tolist())} if keys.measured else {}
    heads = tuple(HeadKeys(bits=head, **tables) for head in bits)
    fields = {"head_dim": HEAD_DIM, "rotary_dim": rotary_dim, "keys": keys}
    return CachePlan(**fields, layers=(LayerKeys(layer=0, heads=heads),), **changes)


def coded(plan, values, dtype=torch.float32):
    codec = key_codec(plan, 0, dtype)
    return codec.decode(codec.encode(values), values.dtype)


head_bits = st.tuples(*[st.sampled_from([1, 2, 3, 4, 5, 6, 7, 8, 16])] * (HEAD_DIM // 2))


@pytest.mark.parametrize("keys", FORMATS.values(), ids=FORMATS)
@settings(max_examples=15, deadline=None)
@given(bits=st.tuples(head_bits, head_bits))
def test_bytes_held_are_the_plans(keys, bits):
    plan = plan_of(keys, *bits)
    codec = key_codec(plan, 0)
    parts = codec.encode(states(dtype=torch.bfloat16))
    chunks = 64 // codec.chunk
    held = sum(part.numel() * part.element_size() for part in parts.values())
    assert held == 2 * chunks * codec.bytes_per_chunk == 2 * chunks * plan.key_chunk_bytes(plan.layers[0])
    assert all(part.shape[:3] == (2, 1, chunks) for part in parts.values())
    assert held * 8 / (2 * 2 * 64 * HEAD_DIM) == pytest.approx(plan.key_bits_per_value())


@pytest.mark.parametrize("keys", FORMATS.values(), ids=FORMATS)
def test_storage_has_the_shapes_of_what_is_encoded(keys):
    codec = key_codec(plan_of(keys, (1, 2, 3, 4, 5, 6, 8, 16), (2,) * 8), 0)
    parts, empty = codec.encode(states(dtype=torch.bfloat16)), codec.empty(2, 64 // codec.chunk)
    assert {name: (part.shape, part.dtype) for name, part in parts.items()} == {
        name: (part.shape, part.dtype) for name, part in empty.items()
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("keys", FORMATS.values(), ids=FORMATS)
def test_sixteen_bits_keep_states_as_they_are(keys, dtype):
    values = states(dtype=dtype)
    assert coded(plan_of(keys, (16,) * 8, (16,) * 8), values, dtype).equal(values)


@pytest.mark.parametrize("bits", [((3,) * 8, (16,) * 8), ((16,) * 8, (3,) * 8), ((3, 16) * 4, (16, 3) * 4)])
@pytest.mark.parametrize("keys", FORMATS.values(), ids=FORMATS)
def test_what_is_kept_and_what_is_packed_find_their_places(keys, bits):
    values = states()
    out = coded(plan_of(keys, *bits), values)
    for head, widths in enumerate(bits):
        alone = coded(plan_of(keys, widths), values[:, head : head + 1])
        torch.testing.assert_close(out[:, head : head + 1], alone, rtol=1e-6, atol=1e-6)
        kept = torch.tensor([pair for pair, width in enumerate(widths) if width == 16] * 2, dtype=torch.long)
        kept[len(kept) // 2 :] += HEAD_DIM // 2
        assert out[:, head][..., kept].equal(values[:, head][..., kept])


@pytest.mark.parametrize("keys", FORMATS.values(), ids=FORMATS)
def test_more_bits_leave_less_error(keys):
    values = states()
    errors = [float((coded(plan_of(keys, (bits,) * 8, (bits,) * 8), values) - values).norm()) for bits in range(1, 9)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.05 * errors[0]


@pytest.mark.parametrize("keys", FORMATS.values(), ids=FORMATS)
def test_chunks_are_encoded_alone(keys):
    plan = plan_of(keys, (1, 2, 3, 4, 5, 6, 8, 16), (2,) * 8)
    codec, values = key_codec(plan, 0, torch.float32), states()
    whole = codec.encode(values)
    halves = [codec.encode(half) for half in values.split(32, dim=2)]
    for name, part in whole.items():
        assert part.equal(torch.cat([half[name] for half in halves], dim=2))


@pytest.mark.parametrize("keys", FORMATS.values(), ids=FORMATS)
def test_protecting_pairs_leaves_the_others_bit_identical(keys):
    values = states()
    # in token format the base pairs share a group, so another pair's leaving it may only narrow its range
    values[..., [7, 15]] = 0.5 * values[..., [6, 14]] + 0.5 * values[..., [5, 13]]
    plain = coded(plan_of(keys, (2,) * 8, (2,) * 8), values)
    protected = coded(plan_of(keys, (2,) * 7 + (8,), (2,) * 8), values)
    others = [dim for dim in range(HEAD_DIM) if dim not in (7, 15)]
    assert protected[:, 0][..., others].equal(plain[:, 0][..., others])
    assert protected[:, 1].equal(plain[:, 1])
    error = [(out[:, 0][..., [7, 15]] - values[:, 0][..., [7, 15]]).norm() for out in (protected, plain)]
    assert error[0] < 0.2 * error[1]


@pytest.mark.parametrize("keys", FORMATS.values(), ids=FORMATS)
def test_heads_may_change_places(keys):
    first, second = (1, 2, 3, 4, 5, 6, 8, 16), (2, 4, 2, 4, 2, 4, 2, 4)
    values = states()
    out = coded(plan_of(keys, first, second), values)
    swapped = coded(plan_of(keys, second, first), values.flip(1))
    torch.testing.assert_close(swapped.flip(1), out, rtol=1e-5, atol=1e-5)


def test_per_token_rounding_is_that_of_min_max():
    values = states(heads=1)
    out = coded(plan_of(FORMATS["token"], (3,) * 8), values)
    low, high = values.amin(-1, keepdim=True), values.amax(-1, keepdim=True)
    step = (high - low) / 7
    assert bool(((out - values).abs() <= 0.502 * step + 1e-3 * values.abs().amax()).all())  # scales are float16
    integers = (out - low) / step
    torch.testing.assert_close(integers, integers.round(), rtol=0, atol=0.02)


def test_channel_grids_are_no_worse_than_the_range():
    values = states(heads=1, tokens=32, batch=1)
    out = coded(plan_of(FORMATS["channel"], (2,) * 8), values)
    low, high = values.amin(2, keepdim=True), values.amax(2, keepdim=True)
    step = (high - low) / 3
    plain = ((values - low) / step).round() * step + low
    errors = [(each - values).square().sum(2) for each in (out, plain)]
    assert bool((errors[0] <= errors[1] * 1.01).all())
    assert float(errors[0].sum()) < 0.8 * float(errors[1].sum())


@pytest.mark.parametrize("distance", [5, 17, 40])
def test_small_scales_hold_a_token_far_from_all_others(distance):
    values = states(heads=1)
    values[:, :, 9] += distance * torch.logspace(-1, 1, HEAD_DIM)
    small, large = (
        coded(plan_of(KeyFormat(scales="channel", chunk=32, scale_bits=bits), (4,) * 8), values) for bits in (8, 16)
    )
    errors = [(out - values).norm() for out in (small, large)]
    assert errors[0] < 1.1 * errors[1]


def test_static_levels_are_those_of_the_normal_distribution():
    values = states(heads=1)
    out = coded(plan_of(FORMATS["static"], (2,) * 8), values)
    scale = torch.logspace(-1, 1, HEAD_DIM)
    normal = ((out - 3 * scale) / scale).flatten()
    levels = torch.tensor([-1.5104, -0.4528, 0.4528, 1.5104])
    assert float((normal[:, None] - levels).abs().amin(dim=1).max()) < 1e-3


@pytest.mark.parametrize("value", [0.0, 5.0, -70000.0])
@pytest.mark.parametrize("keys", FORMATS.values(), ids=FORMATS)
def test_constant_and_huge_states_stay_finite(keys, value):
    values = torch.full((1, 1, 32, HEAD_DIM), value)
    out = coded(plan_of(keys, (1, 2, 3, 4, 5, 6, 7, 8)), values)
    assert bool(out.isfinite().all())
    if keys.scales != "static" and keys.scale_bits == 16 and abs(value) < 65504:
        assert out.equal(values)


def test_dims_without_rope_have_bits_of_their_own():
    plan = plan_of(FORMATS["channel"], (2, 2, 16, 2, 2, 2, 2, 16), rotary_dim=8)
    values = states(heads=1)
    same = (coded(plan, values) == values).all(dim=2).all(dim=0)[0].nonzero().flatten().tolist()
    assert same == [2, 6, 14, 15]


@pytest.mark.parametrize("bits", [2, 3, 4, 8, 16])
@pytest.mark.parametrize("group_size", [-1, 8])
def test_values_are_rounded_in_groups(bits, group_size):
    plan = plan_of(FORMATS["channel"], (2,) * 8, (2,) * 8, values=ValueFormat(bits=bits, group_size=group_size))
    codec, values = value_codec(plan, 0), states(dtype=torch.bfloat16)
    parts = codec.encode(values)
    held = sum(part.numel() * part.element_size() for part in parts.values())
    assert held == 2 * 64 * plan.values.token_bytes(2, HEAD_DIM)
    groups = values.float().unflatten(-1, (-1, HEAD_DIM if group_size == -1 else group_size))
    step = (groups.amax(-1) - groups.amin(-1)) / (2**bits - 1)
    error = (codec.decode(parts, torch.float32).view(groups.shape) - groups).abs().amax(-1)
    assert bool((error <= 0.51 * step + 2e-3 * groups.abs().amax(-1)).all())


def test_states_of_another_model_are_refused():
    codec = key_codec(plan_of(FORMATS["channel"], (2,) * 8), 0)
    with pytest.raises(PlanError, match="2 KV heads of 16 dims, the cache plan 1 of 16"):
        codec.encode(states(heads=2))
    with pytest.raises(PlanError, match="do not fill chunks of 32"):
        codec.encode(states(heads=1, tokens=33))
    with pytest.raises(PlanError, match="no layer 3"):
        key_codec(plan_of(FORMATS["channel"], (2,) * 8), 3)
