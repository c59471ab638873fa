"""Round trips: what a cache would hand back."""

import pytest
import torch

from mvquant.cache_formats import KeyFormat, ValueFormat
from mvquant.cache_plan import CachePlan, HeadKeys, LayerKeys
from mvquant.errors import PlanError
from mvquant.kvcache.choose import key_plan
from mvquant.kvcache.roundtrip import roundtrip, value_roundtrip
from tests.kvcache.attention import attention_kl, structured_states


def uniform_plan(bits, keys, **changes):
    heads = (HeadKeys(bits=(bits,) * 8),) * 2
    return CachePlan(head_dim=16, rotary_dim=16, keys=keys, layers=(LayerKeys(layer=0, heads=heads),), **changes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sixteen_bits_change_nothing(dtype):
    k = structured_states()[1].to(dtype)
    assert roundtrip(k, uniform_plan(16, KeyFormat(chunk=32))).equal(k)


def test_sinks_and_incomplete_chunks_stay_as_they_are():
    _, k = structured_states(seq=96)
    k_hat = roundtrip(k, uniform_plan(2, KeyFormat(chunk=32), sinks=4))
    exact = (k_hat == k).flatten(1).all(dim=1)
    assert exact[:4].all()
    assert exact[68:].all()
    assert not exact[4:68].any()


def test_texts_shorter_than_the_sinks_stay_as_they_are():
    _, k = structured_states(seq=3)
    assert roundtrip(k, uniform_plan(2, KeyFormat(scales="token"), sinks=4)).equal(k)


def test_error_falls_with_average_bits():
    q, k = structured_states()
    losses = [attention_kl(q, k, roundtrip(k, key_plan(q, k, bits))) for bits in (1, 1.5, 2, 2.5, 3, 4, 6)]
    assert losses == sorted(losses, reverse=True)


def test_keys_before_rope_want_frequencies():
    with pytest.raises(PlanError, match="inv_freq"):
        roundtrip(structured_states()[1], uniform_plan(2, KeyFormat(scales="token", stage="pre-rope")))


def test_values_are_rounded_per_token():
    _, v = structured_states()
    plan = uniform_plan(2, KeyFormat(scales="token"), values=ValueFormat(bits=8))
    v_hat = value_roundtrip(v, plan)
    step = (v.amax(-1) - v.amin(-1)) / 255
    assert bool(((v_hat - v).abs().amax(-1) <= 0.6 * step + 2e-3 * v.abs().amax(-1)).all())
