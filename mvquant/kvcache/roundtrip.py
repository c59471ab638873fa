"""What a cache would hand back, without one."""

import torch
from jaxtyping import Float
from torch import Tensor

from mvquant.attention_states import unrotate
from mvquant.cache_plan import CachePlan
from mvquant.errors import PlanError
from mvquant.kvcache.codec import Codec, key_codec, value_codec
from mvquant.kvcache.rotation import angles, rotate

HeadStates = Float[Tensor, "seq kv_head head_dim"]


def roundtrip(k: HeadStates, plan: CachePlan, layer: int = 0, start: int = 0) -> HeadStates:
    """Encode and decode K as the cache of `plan` does.

    Sinks, and last tokens that do not fill a chunk, come back as they are. The window does not: it depends on
    how many tokens have been seen by the query that looks.

    Args:
        k: keys after RoPE.
        plan: the cache plan.
        layer: which of its layers.
        start: position of the first key; of pre-RoPE plans only, whose `inv_freq` must be set.

    Raises:
        PlanError: keys of other heads or with a batch, no such layer, or a pre-RoPE plan without frequencies.
    """
    _check(k)
    codec = key_codec(plan, layer, k.dtype)
    if plan.keys.stage == "post-rope":
        return _coded(k, codec, plan.sinks)
    if not plan.keys.inv_freq:
        raise PlanError("the plan caches keys before RoPE: set keys.inv_freq, so that they can be turned back")
    states = k.transpose(0, 1).unsqueeze(0)
    turns = angles(torch.tensor(plan.keys.inv_freq), start, len(k))
    before = unrotate(states, *turns, plan.rotary_dim, plan.layout)
    coded = _coded(before[0].transpose(0, 1), codec, plan.sinks)
    turned = rotate(coded.transpose(0, 1).unsqueeze(0), *turns, plan.rotary_dim, plan.layout)
    return turned[0].transpose(0, 1).to(k.dtype)


def value_roundtrip(v: HeadStates, plan: CachePlan, layer: int = 0) -> HeadStates:
    """Encode and decode V as the cache of `plan` does, sinks aside.

    Raises:
        PlanError: values of other heads or with a batch, or no such layer.
    """
    _check(v)
    return _coded(v, value_codec(plan, layer, v.dtype), plan.sinks)


def _check(states: Tensor) -> None:
    if states.ndim != 3:
        message = f"states of shape {tuple(states.shape)} are not [seq, kv_head, head_dim]"
        raise PlanError(f"{message}: give those of one text, without a batch")


def _coded(states: HeadStates, codec: Codec, sinks: int) -> HeadStates:
    last = sinks + max(0, len(states) - sinks) // codec.chunk * codec.chunk
    middle = states[sinks:last].transpose(0, 1).unsqueeze(0)
    if not middle.shape[2]:
        return states.clone()
    decoded = codec.decode(codec.encode(middle), states.dtype)[0].transpose(0, 1)
    return torch.cat([states[:sinks], decoded, states[last:]])
