"""Whether a cache plan is for a model: heads, dims, and how far its RoPE turns."""

import math

import torch

from mvquant.arch import ModelView
from mvquant.cache_plan import CachePlan, check_cache_plan_fits
from mvquant.errors import PlanError, UnsupportedModelError
from mvquant.rope import training_context, wavelengths

_TOLERANCE = 1e-3
"""Relative; far below the difference between any two models, far above that of float formats."""


def require_cache_fit(plan: CachePlan, view: ModelView) -> None:
    """Refuse a cache plan for another model.

    Raises:
        PlanError: other layers, heads or RoPE.
        UnsupportedModelError: a model without RoPE.
    """
    if not view.has_rope:
        message = f"model type {view.family!r} has no RoPE: its keys have no pairs that a plan could give bits to"
        raise UnsupportedModelError(message)
    check_cache_plan_fits(plan, [attention.k for attention in view.attentions])
    found = model_frequencies(view)
    if plan.keys.inv_freq and found and not _same(plan.keys.inv_freq, found):
        message = (
            f"the cache plan is for another model: its pairs turn by {plan.keys.inv_freq[-1]:.3g} (the slowest) to "
            f"{plan.keys.inv_freq[0]:.3g} radians per token, those of the model by {found[-1]:.3g} to {found[0]:.3g}"
        )
        raise PlanError(message)


def model_frequencies(view: ModelView) -> tuple[float, ...]:
    """Radians per token of every RoPE pair, fastest first; nothing where layers differ."""
    found = {tuple((2 * math.pi / wavelengths(view.config, each.layer_type)).tolist()) for each in view.attentions}
    return found.pop() if len(found) == 1 else ()


def require_steady_rope(view: ModelView) -> None:
    """Refuse a model whose angles depend on the length of the text, for keys that are cached before RoPE.

    Raises:
        UnsupportedModelError: RoPE of the types `dynamic` and `longrope`.
    """
    for attention in view.attentions:
        kind = attention.layer_type
        longer = wavelengths(view.config, kind, length=2 * training_context(view.config, kind))
        if not torch.equal(longer, wavelengths(view.config, kind)):
            message = (
                f"RoPE of this {view.family} changes its angles with the length of the text, so keys cannot be cached "
                "as they were before it: set kv_cache.keys.stage to post-rope, with scales per channel or token"
            )
            raise UnsupportedModelError(message)


def _same(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    pairs = zip(one, other, strict=False)
    return len(one) == len(other) and all(math.isclose(a, b, rel_tol=_TOLERANCE) for a, b in pairs)
