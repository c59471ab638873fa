"""The cache in `generate`: without rounding it is a DynamicCache bit for bit, and it holds what the plan says."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache

from mvquant.arch import model_view
from mvquant.cache_formats import KeyFormat, ValueFormat
from mvquant.cache_plan import CachePlan
from mvquant.errors import PlanError, UnsupportedModelError
from mvquant.kvcache.cache import QuantizedKVCache, quantized_kv_cache
from mvquant.kvcache.keeping import HeldBytes
from tests.kvcache.plans import cache_plan, lossless_plan, plan_of_view
from tests.tiny_models import ROPE_FAMILY_NAMES, tiny_config, tiny_model, tiny_tokens

SLIDING = ("mistral", {"sliding_window": 10})
CASES = [*((family, {}) for family in ROPE_FAMILY_NAMES), SLIDING]


def generated(
    model: PreTrainedModel, cache: QuantizedKVCache | None, ids: Tensor, **options: Any
) -> tuple[Tensor, ...]:
    """Ids and logits of 12 new tokens."""
    result = model.generate(
        ids,
        past_key_values=cache,
        max_new_tokens=12,
        min_new_tokens=12,
        return_dict_in_generate=True,
        output_logits=True,
        **{"do_sample": False, **options},
    )
    return result.sequences, *result.logits


def left_padded() -> dict[str, Tensor]:
    mask = torch.ones(2, 24, dtype=torch.long)
    mask[1, :9] = 0
    return {"attention_mask": mask}


@pytest.mark.parametrize(
    "options",
    [{}, left_padded(), {"num_beams": 3, **left_padded()}, {"prompt_lookup_num_tokens": 3}],
    ids=["greedy", "left-padded", "beams", "rolled back"],
)
@pytest.mark.parametrize(("family", "changes"), CASES)
def test_a_plan_of_16_bits_is_a_dynamic_cache_bit_for_bit(
    family: str, changes: dict[str, object], options: dict[str, Any]
):
    model = tiny_model(family, **changes)
    ids = tiny_tokens(1 if "prompt_lookup_num_tokens" in options else 2)
    cache = quantized_kv_cache(model.config, lossless_plan(model))
    ours, theirs = generated(model, cache, ids, **options), generated(model, None, ids, **options)
    assert all(torch.equal(mine, other) for mine, other in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_so_it_is_in_half_precision(dtype: torch.dtype):
    model = tiny_model("llama", dtype=dtype)
    cache = quantized_kv_cache(model.config, lossless_plan(model, float_bits=16))
    ours, theirs = generated(model, cache, tiny_tokens()), generated(model, None, tiny_tokens())
    assert all(torch.equal(mine, other) for mine, other in zip(ours, theirs, strict=True))


def test_a_beam_takes_over_the_past_of_another():
    model = tiny_model("llama", dtype=torch.float64)
    plan = cache_plan(model, window=3, sinks=1)
    ids, order = tiny_tokens(3, 30), torch.tensor([2, 0, 0])
    reordered, straight = (quantized_kv_cache(model.config, plan) for _ in range(2))
    with torch.no_grad():
        model(ids[:, :24], past_key_values=reordered)
        reordered.reorder_cache(order)
        model(ids[order, :24], past_key_values=straight)
        for column in range(24, 30):
            token = ids[:, column : column + 1]
            expected = model(token, past_key_values=straight).logits
            assert torch.allclose(model(token, past_key_values=reordered).logits, expected)


FORMATS = {
    "per token": {"keys": KeyFormat(scales="token")},
    "per token, window and sinks": {"keys": KeyFormat(scales="token"), "window": 6, "sinks": 2},
    "per channel": {"keys": KeyFormat(scales="channel", chunk=8), "window": 5},
    "static before RoPE": {"keys": KeyFormat(scales="static", stage="pre-rope"), "sinks": 1},
    "keys only": {"values": ValueFormat(bits=16)},
    "values only": {"bits": (16,)},
}


def planned_bytes(plan: CachePlan, columns: int, rows: int) -> HeldBytes:
    """What the plan says of so many columns, written out."""
    packed = exact = 0
    float_bytes = plan.float_bits // 8
    for layer in plan.layers:
        token = len(layer.heads) * plan.head_dim * float_bytes
        sides = [
            (plan.keys.chunk, plan.key_chunk_bytes(layer), all(b == 16 for head in layer.heads for b in head.bits)),
            (1, plan.values.token_bytes(len(layer.heads), plan.head_dim, plan.float_bits), plan.values.bits == 16),
        ]
        for chunk, chunk_bytes, kept in sides:
            if kept:
                packed += columns * token
            else:
                chunks = max(columns - plan.window, 0) // chunk
                packed += chunks * chunk_bytes
                exact += (columns - chunks * chunk + plan.sinks) * token
    return HeldBytes(packed * rows, exact * rows, 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", FORMATS)
def test_the_bytes_it_holds_are_those_of_the_plan(name: str, dtype: torch.dtype):
    model = tiny_model("llama", dtype=dtype)
    plan = cache_plan(model, **{"float_bits": dtype.itemsize * 8, **FORMATS[name]})
    cache = quantized_kv_cache(model.config, plan)
    cache.note_padding(torch.ones(2, 24))
    generated(model, cache, tiny_tokens())
    held, planned = cache.nbytes(), planned_bytes(plan, columns=24 + 11, rows=2)
    assert (held.packed, held.full_precision) == (planned.packed, planned.full_precision)
    assert held.reserved < held.packed


@pytest.mark.parametrize("name", FORMATS)
def test_bits_per_cached_value_are_those_of_the_bytes_held(name: str):
    model = tiny_model("llama", dtype=torch.bfloat16)
    plan = cache_plan(model, **{"float_bits": 16, **FORMATS[name]})
    # a chunk has every number of tokens waiting once
    contexts = range(40, 40 + plan.keys.chunk)
    held, planned = [0.0, 0.0], [0.0, 0.0]
    for context in contexts:
        cache = quantized_kv_cache(model.config, plan)
        with torch.no_grad():
            model(tiny_tokens(1, context), past_key_values=cache)
        values = context * sum(len(layer.heads) for layer in plan.layers) * plan.head_dim
        for side, role in enumerate(("keys_held", "values_held")):
            sizes = [getattr(layer, role).nbytes for layer in cache.quantized_layers]
            held[side] += 8 * sum(size.packed + size.full_precision for size in sizes)
        planned[0] += plan.key_bits_per_value(context) * values - 8 * plan.table_bytes
        planned[1] += plan.value_bits_per_value(context) * values
    assert held == pytest.approx(planned, rel=1e-9)


def test_it_takes_a_fraction_of_a_dynamic_cache():
    model = tiny_model("mistral", dtype=torch.bfloat16)
    plan = cache_plan(model, (2,), values=ValueFormat(bits=2), float_bits=16)
    cache, usual = quantized_kv_cache(model.config, plan), DynamicCache(config=model.config)
    with torch.no_grad():
        for past in (cache, usual):
            model(tiny_tokens(2, 100), past_key_values=past)
    full = sum(layer.keys.nbytes + layer.values.nbytes for layer in usual.layers)
    assert cache.nbytes().packed == full * (2 + 2 * 16 / 32) / 16
    assert cache.nbytes().total < 0.25 * full


@pytest.mark.parametrize("name", FORMATS)
def test_going_on_after_a_crop_is_as_if_the_rest_had_never_been(name: str):
    model = tiny_model("llama", dtype=torch.float64)
    plan = cache_plan(model, **{**FORMATS[name], "window": 0})
    ids = tiny_tokens(2, 32)
    straight, cropped = (quantized_kv_cache(model.config, plan) for _ in range(2))
    with torch.no_grad():
        for cache in (straight, cropped):
            cache.note_padding(torch.ones(2, 24))
            model(ids[:, :24], past_key_values=cache)
        model(ids[:, :7], past_key_values=cropped)
        cropped.crop(-7)
        expected = model(ids[:, 24:25], past_key_values=straight).logits
        assert torch.allclose(model(ids[:, 24:25], past_key_values=cropped).logits, expected)


def test_a_prompt_in_pieces_leaves_the_same_cache_behind():
    model = tiny_model("llama", dtype=torch.float64)
    plan = cache_plan(model, keys=KeyFormat(scales="token"))
    ids = tiny_tokens(2, 30)
    whole, pieces = (quantized_kv_cache(model.config, plan) for _ in range(2))
    with torch.no_grad():
        expected = model(ids, past_key_values=whole).logits[:, -1]
        found = [model(part, past_key_values=pieces).logits[:, -1] for part in ids.split(7, dim=1)][-1]
    assert torch.allclose(found, expected)
    assert pieces.nbytes().packed == whole.nbytes().packed


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_key_value_heads": 4}, "has 4 KV heads, the plan 2"),
        ({"head_dim": 32}, "has head_dim 32"),
        ({"num_hidden_layers": 3}, "the model has 3"),
    ],
)
def test_a_plan_for_another_model_is_refused(changes: dict[str, object], message: str):
    plan = plan_of_view(model_view(tiny_config("llama")))
    with pytest.raises(PlanError, match=message):
        quantized_kv_cache(tiny_config("llama", **changes), plan)


def test_a_plan_for_another_way_of_turning_is_refused():
    with pytest.raises(PlanError, match="interleaved"):
        quantized_kv_cache(tiny_config("cohere"), plan_of_view(model_view(tiny_config("qwen2"))))


def test_a_cache_in_another_model_is_refused():
    plan = plan_of_view(model_view(tiny_config("llama")))
    for changes, message in [
        ({"num_key_value_heads": 4}, "keys have 4 heads of 16 dims, the plan is for 2 heads"),
        ({"num_hidden_layers": 3}, "for 2 layers and the model has a layer 2"),
    ]:
        cache = quantized_kv_cache(tiny_config("llama"), plan)
        other = tiny_model("llama", **changes)
        with torch.no_grad(), pytest.raises(PlanError, match=message):
            other(tiny_tokens(), past_key_values=cache)


@pytest.mark.parametrize("family", ["gpt2", "opt"])
def test_a_model_without_rope_is_refused(family: str):
    plan = plan_of_view(model_view(tiny_config("llama")))
    with pytest.raises(UnsupportedModelError, match=f"'{family}' has no RoPE"):
        quantized_kv_cache(tiny_config(family), plan)
