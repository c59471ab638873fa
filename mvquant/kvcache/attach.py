"""Have a model use a quantized cache whoever runs it: `with quantized_cache(model, plan): ...`.

Meant for harnesses that pass no cache. Within, `generate` and every forward pass that uses a cache get a quantized one;
a forward pass without a cache, as when a text is scored, reads keys and values as such a cache would have held them.
"""

import inspect
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache

from mvquant.arch import ModelView, model_view
from mvquant.attention_states import (
    Attend,
    QueryKeyValue,
    attention_implementation,
    attention_modules,
    wrapped_attention,
)
from mvquant.cache_plan import CachePlan
from mvquant.cache_recipe import Prefill
from mvquant.errors import UsageError
from mvquant.kvcache.cache import QuantizedKVCache, layer_keepings
from mvquant.kvcache.codec import Codec
from mvquant.kvcache.keeping import RowStarts
from mvquant.kvcache.layers import QuantizedKVLayer
from mvquant.kvcache.queries import query_codec
from mvquant.kvcache.reading import as_decoded
from mvquant.kvcache.starts import left_padding, position_starts

PREPARE_CACHE = "_prepare_cache_for_generation"
"""The method with which `generate` makes its cache."""

_ATTACHED: WeakSet[nn.Module] = WeakSet()


class AttachedCache:
    """A model's quantized caches while `quantized_cache` is on.

    Attributes:
        latest: the cache that was made last, to ask for its bytes; None before the first.
    """

    def __init__(self, model: PreTrainedModel, plan: CachePlan, prefill: Prefill, *, round_queries: bool) -> None:
        view = model_view(model.config)
        self.latest: QuantizedKVCache | None = None
        self._model = model
        self._prefill: Prefill = prefill
        self._keepings = layer_keepings(view, plan, model.dtype)
        self._before_rope = any(keeping.keys.frame is not None for keeping in self._keepings)
        self._layers = {module: attention.layer for module, attention in attention_modules(model, view).items()}
        self._queries = _query_codecs(view, plan) if round_queries else {}
        self._reading: dict[int, QuantizedKVLayer | None] = {}
        self._starts: RowStarts | None = None

    def new_cache(self) -> QuantizedKVCache:
        """Make an empty cache for one batch; it can be used as long as the context manager is on."""
        self.latest = QuantizedKVCache(self._keepings, self._prefill)
        for layer in self.latest.quantized_layers:
            layer.keep_passing = True
        self.latest.owner = self
        return self.latest

    @contextmanager
    def attached(self) -> Generator[None]:
        """Change the model, and put it back."""
        with ExitStack() as stack:
            decoder: nn.Module = self._model.base_model
            hooks = [decoder.register_forward_pre_hook(self._before_model, with_kwargs=True)]
            hooks += [m.register_forward_pre_hook(self._before_attention, with_kwargs=True) for m in self._layers]
            for hook in hooks:
                stack.callback(hook.remove)
            stack.enter_context(_generating_with(self._model, self.new_cache))
            stack.enter_context(wrapped_attention(self._model, self._layers, self._attend))
            yield

    def _before_model(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Give the decoder a quantized cache where it would make one, and note the padding."""
        kwargs = {**dict(zip(inspect.signature(module.forward).parameters, args, strict=False)), **kwargs}
        cache: Cache | None = kwargs.get("past_key_values")
        uses_cache = kwargs.get("use_cache")
        if cache is None and (self._model.config.use_cache if uses_cache is None else uses_cache):
            cache = kwargs["past_key_values"] = self.new_cache()
        own = None if cache is None else self._own(cache)
        self._starts = self._row_starts(kwargs, own)
        if own is not None:
            own.take_starts(self._starts)
        return (), kwargs

    def _row_starts(self, kwargs: dict[str, Any], cache: QuantizedKVCache | None) -> RowStarts | None:
        """Where each row begins; None where the mask does not say."""
        mask: Tensor | None = kwargs.get("attention_mask")
        given: Tensor | None = kwargs.get("input_ids")
        given = kwargs.get("inputs_embeds") if given is None else given
        if given is None:
            return None
        seen = 0 if cache is None else cache.get_seq_length()
        if mask is None or mask.ndim != 2:
            mask = given.new_ones((given.shape[0], seen + given.shape[1]), dtype=torch.long)
        padding = left_padding(mask)
        positions: Tensor | None = kwargs.get("position_ids")
        if positions is None or not self._before_rope:
            return RowStarts(padding, torch.zeros_like(padding))
        before = None if cache is None or seen == 0 else cache.quantized_layers[0].starts
        return RowStarts(padding, position_starts(positions, mask, seen, before))

    def _own(self, cache: Cache) -> QuantizedKVCache:
        if not isinstance(cache, QuantizedKVCache):
            message = (
                f"within quantized_cache() the model was given a {type(cache).__name__}, whose keys would not be "
                "quantized: pass no cache, or the one of new_cache()"
            )
            raise UsageError(message)
        if cache.owner is not self:
            message = (
                "this cache belongs to another model, plan or quantized_cache(): make one for this model with the "
                "new_cache() of what quantized_cache() gives"
            )
            raise UsageError(message)
        return cache

    def _before_attention(self, module: nn.Module, _args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Note which layer of which cache this attention is about to fill."""
        layer = self._layers[module]
        cache = next((value for value in kwargs.values() if isinstance(value, QuantizedKVCache)), None)
        self._reading[layer] = None if cache is None else cache.quantized_layers[layer]

    def _attend(
        self,
        forward: Attend,
        module: nn.Module,
        states: QueryKeyValue,
        mask: Any = None,  # noqa: ANN401
        *args: Any,  # noqa: ANN401
        **kwargs: Any,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401
        """Attend as the cache would have it; attentions of other models are left alone."""
        if module not in self._layers:
            return forward(module, *states, mask, *args, **kwargs)
        query, key, value = states
        layer = self._layers[module]
        cached = self._reading.pop(layer, None)
        if cached is None and self._prefill == "rounded":
            cached = self._passing_layer(layer)
            key, value = cached.update(key, value)
        if layer in self._queries:
            codec = self._queries[layer]
            query = codec.decode(codec.encode(query), query.dtype)
        if cached is not None and cached.passing is not None:
            passing, cached.passing = cached.passing, None
            implementation = attention_implementation(module, self._model)
            key, value, mask = as_decoded(passing, query.shape[2], key, value, mask, implementation)
        return forward(module, query, key, value, mask, *args, **kwargs)

    def _passing_layer(self, layer: int) -> QuantizedKVLayer:
        """A layer that lives for one forward pass."""
        made = QuantizedKVLayer(self._keepings[layer], self._prefill)
        made.keep_passing = True
        made.starts = self._starts
        return made


@contextmanager
def quantized_cache(
    model: PreTrainedModel, plan: CachePlan, *, prefill: Prefill = "rounded", round_queries: bool = False
) -> Generator[AttachedCache]:
    """Have a model hold its keys and values as a plan says until the end of the block, whoever runs it.

    Args:
        model: the model; its weights are not touched.
        plan: bits of its keys and values.
        prefill: what a forward pass of several tokens reads of its own tokens. "rounded", the default, is the one under
            which a text that is scored in one forward pass, or the first token of an answer, says anything about the
            cache: every query reads what it would read had the tokens come one at a time. "exact" is what engines do
            with a prompt; without a cache it rounds nothing. See `mvquant.kvcache.layers`.
        round_queries: whether queries are rounded too, after RoPE, per token, with the bits of their KV head's pairs.
            Queries are not cached: this is a way to study them.

    Yields:
        What makes further caches, and knows the latest.

    Raises:
        PlanError: a plan for another model.
        UnsupportedModelError: a model without RoPE, or of an unknown family.
        UsageError: the model is in such a block already; within the block, a cache that is not of this block.
    """
    if model in _ATTACHED:
        raise UsageError("quantized_cache() is on for this model already: leave one block before the next")
    attached = AttachedCache(model, plan, prefill, round_queries=round_queries)
    _ATTACHED.add(model)
    try:
        with attached.attached():
            yield attached
    finally:
        _ATTACHED.discard(model)


def has_quantized_cache(model: nn.Module) -> bool:
    """Whether `quantized_cache` is on for a model."""
    return model in _ATTACHED


@contextmanager
def _generating_with(model: PreTrainedModel, new_cache: Callable[[], QuantizedKVCache]) -> Generator[None]:
    """Have `generate` begin with our cache where it would have made a `DynamicCache`."""
    prepare: Callable[..., Any] = getattr(model, PREPARE_CACHE)

    def prepare_cache(
        generation_config: GenerationConfig,
        model_kwargs: dict[str, Any],
        *args: Any,  # noqa: ANN401
        **kwargs: Any,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401
        given = model_kwargs.get("past_key_values")
        result = prepare(generation_config, model_kwargs, *args, **kwargs)
        made = model_kwargs.get("past_key_values")
        if given is None and made is not None:
            if type(made) is not DynamicCache:
                message = (
                    f"generate(cache_implementation={generation_config.cache_implementation!r}) asks for a "
                    f"{type(made).__name__} within quantized_cache(): leave cache_implementation out"
                )
                raise UsageError(message)
            model_kwargs["past_key_values"] = cache = new_cache()
            if generation_config.is_assistant:
                cache.activate_past_recording()
        return result

    setattr(model, PREPARE_CACHE, prepare_cache)
    try:
        yield
    finally:
        delattr(model, PREPARE_CACHE)


def _query_codecs(view: ModelView, plan: CachePlan) -> dict[int, Codec]:
    heads = view.attentions[0].q.heads
    codecs = {layer.layer: query_codec(plan, layer.layer, heads, torch.float32) for layer in plan.layers}
    return {layer: codec for layer, codec in codecs.items() if codec is not None}
