"""Cache plans for the tiny models: bits that differ by layer, head and pair."""

from transformers import PreTrainedModel

from mvquant.arch import ModelView, model_view
from mvquant.cache_formats import KeyFormat, ValueFormat
from mvquant.cache_plan import CachePlan, HeadKeys, LayerKeys

MIXED_BITS = (8, 3, 2, 4, 16, 2, 1)


def cache_plan(model: PreTrainedModel, bits: tuple[int, ...] = MIXED_BITS, **fields: object) -> CachePlan:
    """A plan that deals `bits` out to all pairs in turn; scales per token and V at 4 bits unless told otherwise."""
    return plan_of_view(model_view(model.config), bits, **fields)


def plan_of_view(view: ModelView, bits: tuple[int, ...] = MIXED_BITS, **fields: object) -> CachePlan:
    first = view.attentions[0].k
    keys = fields.pop("keys", KeyFormat(scales="token"))
    assert isinstance(keys, KeyFormat)
    pairs = first.head_dim // 2
    tables = {"center": (0.0,) * first.head_dim, "spread": (1.0,) * first.head_dim} if keys.measured else {}

    def head(layer: int, number: int) -> HeadKeys:
        shift = 3 * layer + number
        return HeadKeys(bits=tuple(bits[(pair + shift) % len(bits)] for pair in range(pairs)), **tables)

    layers = tuple(
        LayerKeys(layer=attention.layer, heads=tuple(head(attention.layer, n) for n in range(attention.k.heads)))
        for attention in view.attentions
    )
    defaults: dict[str, object] = {"values": ValueFormat(bits=4, group_size=-1), "float_bits": 32}
    return CachePlan(
        head_dim=first.head_dim,
        rotary_dim=first.rotary_dim,
        layout=first.layout,
        keys=keys,
        layers=layers,
        **{**defaults, **fields},
    )


def lossless_plan(model: PreTrainedModel, **fields: object) -> CachePlan:
    """A plan that rounds nothing."""
    return cache_plan(model, (16,), values=ValueFormat(bits=16), **fields)
