"""Rounding queries as keys are rounded: for studying Q and K activations together."""

import torch

from mvquant.cache_formats import KeyFormat
from mvquant.cache_plan import CachePlan, HeadKeys, LayerKeys
from mvquant.errors import PlanError
from mvquant.kvcache.codec import Codec, key_codec


def query_codec(plan: CachePlan, layer: int, heads: int, dtype: torch.dtype = torch.bfloat16) -> Codec | None:
    """Make a codec that rounds the queries of a layer per token, each head with the bits of its KV head's pairs.

    Queries are not cached, so they can only have scales per token, whatever scales the keys have.

    Args:
        plan: bits of the keys.
        layer: number of the decoder layer.
        heads: query heads.
        dtype: of the states.

    Returns:
        The codec; None where every pair has 16 bits.

    Raises:
        PlanError: the query heads are no multiple of the plan's KV heads.
    """
    keys = next(keys for keys in plan.layers if keys.layer == layer)
    if heads % len(keys.heads):
        raise PlanError(f"{heads} query heads do not share {len(keys.heads)} KV heads evenly")
    if all(bits == 16 for head in keys.heads for bits in head.bits):
        return None
    group = heads // len(keys.heads)
    repeated = tuple(HeadKeys(bits=head.bits) for head in keys.heads for _ in range(group))
    per_token = plan.model_copy(
        update={"keys": KeyFormat(scales="token"), "layers": (LayerKeys(layer=layer, heads=repeated),)}
    )
    return key_codec(per_token, layer, dtype)
