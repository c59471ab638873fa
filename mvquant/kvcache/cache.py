"""A cache for transformers' `generate` that holds keys and values in packed integers."""

from collections.abc import Sequence
from functools import reduce
from operator import add
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.cache_utils import Cache, DynamicCache

from mvquant.arch import AttentionView, ModelView, model_view
from mvquant.cache_plan import CachePlan
from mvquant.cache_recipe import Prefill
from mvquant.errors import PlanError
from mvquant.kvcache.codec import key_codec, value_codec
from mvquant.kvcache.fit import require_cache_fit
from mvquant.kvcache.frame import rotary_frame
from mvquant.kvcache.keeping import AsTheyCome, HeldBytes, Keeping, RowStarts
from mvquant.kvcache.layers import LayerKeeping, QuantizedKVLayer
from mvquant.kvcache.starts import left_padding


class QuantizedKVCache(Cache):
    """Keys with bits per RoPE pair and values with bits per group, as a plan says; see `quantized_kv_cache`.

    It is passed as `past_key_values` to `generate` or to a model, for one batch; `reset()` begins another.
    """

    def __init__(self, keepings: Sequence[LayerKeeping], prefill: Prefill = "rounded") -> None:
        self.owner: object = None
        """The `quantized_cache` that made it, if any."""
        self.quantized_layers = [QuantizedKVLayer(keeping, prefill) for keeping in keepings]
        super().__init__(layers=[*self.quantized_layers])

    def update(
        self,
        key_states: Tensor,
        value_states: Tensor,
        layer_idx: int,
        *args: Any,  # noqa: ANN401
        **kwargs: Any,  # noqa: ANN401
    ) -> tuple[Tensor, Tensor]:
        """Add new tokens to a layer, and return what they may read.

        Raises:
            PlanError: a layer or states that the plan does not know: it is for another model.
        """
        if layer_idx >= len(self.layers):
            message = f"the plan is for {len(self.layers)} layers and the model has a layer {layer_idx}"
            raise PlanError(f"{message}: make the cache with a plan for this model")
        return super().update(key_states, value_states, layer_idx, *args, **kwargs)

    def note_padding(self, attention_mask: Shaped[Tensor, "row column"]) -> None:
        """Say which columns hold no token: the zeros at the left of each row.

        Without it sinks and positions are counted from the first column, and padding counts when chunks get their
        range. `quantized_cache` does it before every forward pass.

        Args:
            attention_mask: 0 where there is no token, from the first column on, as for the model.
        """
        padding = left_padding(attention_mask)
        self.take_starts(RowStarts(padding, padding))

    def take_starts(self, starts: RowStarts | None) -> None:
        """Take where each row begins; see `note_padding`."""
        for layer in self.quantized_layers:
            layer.starts = starts

    def nbytes(self) -> HeldBytes:
        """Bytes held by all layers."""
        return reduce(add, (layer.nbytes for layer in self.quantized_layers))


def quantized_kv_cache(
    config: PreTrainedConfig, plan: CachePlan, *, prefill: Prefill = "rounded", dtype: torch.dtype | None = None
) -> QuantizedKVCache:
    """Make an empty cache for one batch.

    Args:
        config: the model's config.
        plan: bits of its keys and values.
        prefill: what a forward pass of several tokens reads of its own tokens; see `mvquant.kvcache.layers`. With
            "rounded", a cache that is used without `quantized_cache` reads them all as it holds them after the last.
        dtype: of the model's states; the config's where None.

    Raises:
        PlanError: a plan for another model.
        UnsupportedModelError: a model without RoPE, or of an unknown family.
    """
    known = dtype or getattr(config, "dtype", None) or torch.bfloat16
    return QuantizedKVCache(layer_keepings(model_view(config), plan, known), prefill)


def layer_keepings(view: ModelView, plan: CachePlan, dtype: torch.dtype) -> tuple[LayerKeeping, ...]:
    """Read off a plan how each layer of a model keeps its keys and values; `dtype` is that of its states.

    Raises:
        PlanError: a plan for another model.
        UnsupportedModelError: a model without RoPE.
    """
    require_cache_fit(plan, view)
    if dtype.itemsize * 8 != plan.float_bits:
        dtype = torch.float32 if plan.float_bits == 32 else torch.float16
    usual = DynamicCache(config=view.config).layers
    return tuple(
        LayerKeeping(
            layer=attention.layer,
            keys=_key_keeping(view.config, plan, attention, dtype),
            values=_value_keeping(plan, attention.layer, dtype),
            heads=attention.k.heads,
            head_dim=attention.k.head_dim,
            sliding_window=getattr(layer, "sliding_window", None),
        )
        for attention, layer in zip(view.attentions, usual, strict=True)
    )


def _key_keeping(config: PreTrainedConfig, plan: CachePlan, attention: AttentionView, dtype: torch.dtype) -> Keeping:
    if all(bits == 16 for head in plan.layers[attention.layer].heads for bits in head.bits):
        return Keeping(AsTheyCome())
    before_rope = plan.keys.stage == "pre-rope"
    frame = rotary_frame(config, attention.k, attention.layer_type) if before_rope else None
    return Keeping(key_codec(plan, attention.layer, dtype), plan.window, plan.sinks, frame)


def _value_keeping(plan: CachePlan, layer: int, dtype: torch.dtype) -> Keeping:
    if plan.values.bits == 16:
        return Keeping(AsTheyCome())
    return Keeping(value_codec(plan, layer, dtype), plan.window, plan.sinks)
