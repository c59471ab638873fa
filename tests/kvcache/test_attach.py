"""A model in a `quantized_cache` block: a forward pass reads what token by token would, and nothing is left behind."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from mvquant.arch import model_view
from mvquant.attention_states import attention_states
from mvquant.cache_formats import KeyFormat
from mvquant.cache_plan import CachePlan
from mvquant.errors import PlanError, UnsupportedModelError, UsageError
from mvquant.kvcache.attach import quantized_cache
from mvquant.kvcache.cache import quantized_kv_cache
from mvquant.kvcache.queries import query_codec
from tests.kvcache.plans import cache_plan, lossless_plan, plan_of_view
from tests.tiny_models import ROPE_FAMILY_NAMES, tiny_config, tiny_model, tiny_tokens

FORMATS: dict[str, dict[str, Any]] = {
    "per token": {"keys": KeyFormat(scales="token")},
    "per token, window": {"keys": KeyFormat(scales="token"), "window": 5, "sinks": 2},
    "per channel": {"keys": KeyFormat(scales="channel", chunk=8)},
    "per channel, window": {"keys": KeyFormat(scales="channel", chunk=8), "window": 3, "sinks": 1},
    "before RoPE": {"keys": KeyFormat(scales="token", stage="pre-rope"), "window": 2},
}
SLIDING = ("mistral", {"sliding_window": 10})


def precise_model(family: str, **changes: object) -> PreTrainedModel:
    """In double precision, so that no key lies on the edge of a step by accident."""
    model = tiny_model(family, dtype=torch.float64, **changes)
    model.set_experts_implementation("eager")  # the usual one has no double precision
    return model


def padded_batch(padding: int = 6) -> dict[str, Tensor]:
    """24 tokens, the second row begins after columns of padding; positions count from each row's first token."""
    mask = torch.ones(2, 24, dtype=torch.long)
    mask[1, :padding] = 0
    return {"input_ids": tiny_tokens(), "attention_mask": mask, "position_ids": (mask.cumsum(dim=1) - 1).clamp(min=0)}


def step(model: PreTrainedModel, batch: dict[str, Tensor], cache: Any, columns: slice) -> Tensor:
    """Logits of some columns; the cache has those before."""
    return model(
        input_ids=batch["input_ids"][:, columns],
        attention_mask=batch["attention_mask"][:, : columns.stop],
        position_ids=batch["position_ids"][:, columns],
        past_key_values=cache,
    ).logits


def token_by_token(model: PreTrainedModel, plan: CachePlan, batch: dict[str, Tensor]) -> Tensor:
    with quantized_cache(model, plan) as attached:
        cache = attached.new_cache()
        return torch.cat([step(model, batch, cache, slice(i, i + 1)) for i in range(24)], dim=1)


def close(found: Tensor, expected: Tensor, batch: dict[str, Tensor], tolerance: float = 1e-8) -> bool:
    """Equal where there is a token."""
    tokens = batch["attention_mask"].bool()
    return torch.allclose(found[tokens], expected[tokens], atol=tolerance)


# eager attention takes its softmax in single precision, where a row of nothing but padding is NaN
@pytest.mark.parametrize(("implementation", "padding", "tolerance"), [("sdpa", 6, 1e-8), ("eager", 0, 1e-5)])
@pytest.mark.parametrize("name", FORMATS)
def test_one_forward_pass_reads_what_token_by_token_reads(
    name: str, implementation: str, padding: int, tolerance: float
):
    model = precise_model("llama")
    model.set_attn_implementation(implementation)
    plan, batch = cache_plan(model, **FORMATS[name]), padded_batch(padding)
    with torch.no_grad():
        expected = token_by_token(model, plan, batch)
        with quantized_cache(model, plan) as attached:
            without_cache = model(**batch, use_cache=False).logits
            with_cache = model(**batch).logits
            cache = attached.new_cache()
            pieces = [step(model, batch, cache, slice(a, b)) for a, b in ((0, 9), (9, 10), (10, 21), (21, 24))]
        full_precision = model(**batch).logits
    for found in (without_cache, with_cache, torch.cat(pieces, dim=1)):
        assert close(found, expected, batch, tolerance)
    assert not close(full_precision, expected, batch, 1e-3)


@pytest.mark.parametrize(("family", "changes"), [*((family, {}) for family in ROPE_FAMILY_NAMES), SLIDING])
def test_so_it_is_in_every_family(family: str, changes: dict[str, object]):
    model = precise_model(family, **changes)
    plan, batch = cache_plan(model, **FORMATS["per channel, window"]), padded_batch()
    with torch.no_grad():
        expected = token_by_token(model, plan, batch)
        with quantized_cache(model, plan):
            assert close(model(**batch).logits, expected, batch)
            assert close(model(**batch, use_cache=False).logits, expected, batch)
        assert not torch.allclose(model(**batch).logits, expected, atol=1e-4)


def test_a_window_may_be_longer_than_the_sliding_window_of_the_model():
    model = precise_model("mistral", sliding_window=6)
    plan, batch = cache_plan(model, **{**FORMATS["per channel, window"], "window": 11}), padded_batch()
    with torch.no_grad():
        expected = token_by_token(model, plan, batch)
        with quantized_cache(model, plan) as attached:
            cache = attached.new_cache()
            pieces = [step(model, batch, cache, slice(a, b)) for a, b in ((0, 20), (20, 24))]
    assert close(torch.cat(pieces, dim=1), expected, batch)


def test_a_causal_text_without_a_mask_is_read_alike():
    model = precise_model("llama")
    plan, ids = cache_plan(model, **FORMATS["per channel, window"]), tiny_tokens()
    with torch.no_grad(), quantized_cache(model, plan) as attached:
        cache = attached.new_cache()
        expected = torch.cat([model(ids[:, i : i + 1], past_key_values=cache).logits for i in range(24)], dim=1)
        assert torch.allclose(model(ids, use_cache=False).logits, expected, atol=1e-8)
        assert torch.allclose(model(ids).logits, expected, atol=1e-8)


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"prompt_lookup_num_tokens": 2}, {"use_cache": False}])
def test_generating_is_the_same_with_a_cache_without_one_and_rolled_back(options: dict[str, Any]):
    model = precise_model("qwen2")
    plan, ids = cache_plan(model, **FORMATS["per channel, window"]), tiny_tokens(1)
    with torch.no_grad(), quantized_cache(model, plan) as attached:
        expected = model.generate(ids, do_sample=False, max_new_tokens=10, num_beams=options.get("num_beams", 1))
        first = attached.latest
        found = model.generate(ids, do_sample=False, max_new_tokens=10, **options)
        assert (attached.latest is first) == (options.get("use_cache") is False)
    assert torch.equal(found, expected)
    assert first is not None
    assert first.nbytes().packed > 0


@pytest.mark.parametrize("family", ROPE_FAMILY_NAMES)
def test_a_plan_of_16_bits_changes_no_logit(family: str):
    model, batch = tiny_model(family), padded_batch()
    with torch.no_grad():
        expected, uncached = model(**batch).logits, model(**batch, use_cache=False).logits
        with quantized_cache(model, lossless_plan(model, window=4, sinks=2), round_queries=True):
            assert torch.equal(model(**batch).logits, expected)
            assert torch.equal(model(**batch, use_cache=False).logits, uncached)


def test_exact_prefill_rounds_nothing_until_the_next_token():
    model, batch = precise_model("llama"), padded_batch()
    plan = cache_plan(model)
    with torch.no_grad():
        full = model(**batch).logits
        with quantized_cache(model, plan, prefill="exact") as attached:
            assert torch.equal(model(**batch, use_cache=False).logits, full)
            cache = attached.new_cache()
            assert torch.allclose(step(model, batch, cache, slice(0, 23)), full[:, :23])
            last = step(model, batch, cache, slice(23, 24))
        assert not torch.allclose(last, full[:, 23:], atol=1e-3)


def test_queries_are_rounded_on_request():
    model, ids = tiny_model("llama"), tiny_tokens()
    plan = cache_plan(model, (2, 3))
    codec = query_codec(plan, 0, 4, torch.float32)
    assert codec is not None
    asked: dict[str, list[Tensor]] = {"as they are": [], "rounded": []}
    seen: list[Tensor] = []
    original = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def spy(module, query, *args, **kwargs):
        seen.append(query)
        return original(module, query, *args, **kwargs)

    ALL_ATTENTION_FUNCTIONS["sdpa"] = spy
    try:
        with torch.no_grad():
            for name in asked:
                with quantized_cache(model, plan, round_queries=name == "rounded"):
                    model(ids)
                asked[name], seen = seen, []
    finally:
        del ALL_ATTENTION_FUNCTIONS["sdpa"]
    plain, rounded = asked["as they are"][0], asked["rounded"][0]
    assert len(asked["rounded"]) == model.config.num_hidden_layers
    assert torch.equal(rounded, codec.decode(codec.encode(plain), torch.float32))
    assert not torch.equal(rounded, plain)


def test_states_can_be_watched_meanwhile():
    model, ids = tiny_model("llama"), tiny_tokens()
    seen: list[Tensor] = []
    with torch.no_grad(), quantized_cache(model, cache_plan(model)):
        rounded = model(ids, use_cache=False).logits
        with attention_states(model, model_view(model.config), lambda _, states: seen.append(states.k)):
            assert torch.equal(model(ids, use_cache=False).logits, rounded)
    assert len(seen) == 2


def traces(model: PreTrainedModel) -> tuple[object, ...]:
    hooks = sum(len(module._forward_pre_hooks) for module in model.modules())
    functions = {name: ALL_ATTENTION_FUNCTIONS.get(name) for name in ("sdpa", "eager")}
    return hooks, functions, "_prepare_cache_for_generation" in vars(model)


def test_nothing_is_left_behind_not_even_after_an_error():
    model, ids = tiny_model("llama"), tiny_tokens()
    plan = cache_plan(model)
    before, logits = traces(model), model(ids).logits
    with quantized_cache(model, plan):
        assert traces(model) != before
    assert traces(model) == before
    with pytest.raises(KeyError, match="in between"), quantized_cache(model, plan):
        model(ids)
        raise KeyError("in between")
    assert traces(model) == before
    assert torch.equal(model(ids).logits, logits)
    assert isinstance(model(ids).past_key_values, DynamicCache)
    with quantized_cache(model, plan):
        model(ids)


def test_other_models_are_left_alone():
    model, other = tiny_model("llama"), tiny_model("llama", seed=1)
    ids = tiny_tokens()
    with torch.no_grad():
        expected = other.generate(ids, max_new_tokens=5, do_sample=False)
        with quantized_cache(model, cache_plan(model)):
            assert torch.equal(other.generate(ids, max_new_tokens=5, do_sample=False), expected)


def test_two_models_can_be_quantized_at_once():
    models = [tiny_model("llama", seed=seed) for seed in (0, 1)]
    plans = [cache_plan(model) for model in models]
    ids = tiny_tokens()
    with torch.no_grad():
        alone = []
        for model, plan in zip(models, plans, strict=True):
            with quantized_cache(model, plan):
                alone.append(model(ids).logits)
        with quantized_cache(models[0], plans[0]), quantized_cache(models[1], plans[1]):
            together = [model(ids).logits for model in models]
    assert all(torch.equal(one, other) for one, other in zip(alone, together, strict=True))


def test_a_cache_of_another_kind_is_refused():
    model, ids = tiny_model("llama"), tiny_tokens()
    plan = cache_plan(model)
    with quantized_cache(model, plan):
        with pytest.raises(
            UsageError, match="was given a DynamicCache, whose keys would not be quantized: pass no cache"
        ):
            model(ids, past_key_values=DynamicCache(config=model.config))
        with pytest.raises(
            UsageError, match=r"cache_implementation='static'.*StaticCache.*leave cache_implementation out"
        ):
            model.generate(ids, max_new_tokens=2, cache_implementation="static")


def test_a_cache_of_another_model_is_refused():
    models = [tiny_model("llama", seed=seed) for seed in (0, 1)]
    plan, ids = cache_plan(models[0]), tiny_tokens()
    with quantized_cache(models[0], plan) as first:
        cache = first.new_cache()
        models[0](ids, past_key_values=cache)
        with quantized_cache(models[1], plan), pytest.raises(UsageError, match="belongs to another model, plan"):
            models[1](ids, past_key_values=cache)
        with pytest.raises(UsageError, match="belongs to another model, plan"):
            models[0](ids, past_key_values=quantized_kv_cache(models[0].config, plan))


def test_one_block_at_a_time():
    model = tiny_model("llama")
    with quantized_cache(model, cache_plan(model)):
        with pytest.raises(UsageError, match="is on for this model already"), quantized_cache(model, cache_plan(model)):
            pass
        model(tiny_tokens())


def test_foreign_plans_and_models_without_rope_are_refused():
    plan = plan_of_view(model_view(tiny_config("llama")))
    model = tiny_model("llama", num_key_value_heads=4)
    with pytest.raises(PlanError, match="has 4 KV heads, the plan 2"), quantized_cache(model, plan):
        pass
    assert traces(model) == traces(tiny_model("llama", num_key_value_heads=4))
    with pytest.raises(UnsupportedModelError, match="'gpt2' has no RoPE"), quantized_cache(tiny_model("gpt2"), plan):
        pass


def test_an_attention_without_masks_is_refused_where_it_needs_one(monkeypatch: pytest.MonkeyPatch):
    model = tiny_model("llama")
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "causal_only", ALL_ATTENTION_FUNCTIONS["sdpa"])
    model.set_attn_implementation("causal_only")
    ids = tiny_tokens()
    with quantized_cache(model, cache_plan(model)):
        model(ids)
    with (
        quantized_cache(model, cache_plan(model, window=4)),
        pytest.raises(UnsupportedModelError, match=r"'causal_only' takes no mask.*'sdpa' or 'eager'.*prefill='exact'"),
    ):
        model(ids)
