"""The parts of a plan that are about K and Q activations: scales to fold, and the cache."""

from pydantic import ValidationError

from mvquant.arch import ModelView
from mvquant.cache_formats import KeyFormat
from mvquant.cache_plan import CachePlan
from mvquant.cache_recipe import UNROUNDED, Fold, KvCache
from mvquant.errors import PlanError
from mvquant.folding import FoldRecord, fold_scales
from mvquant.kvcache.choose import WIDTHS, key_plan_from_stats
from mvquant.kvcache.fit import model_frequencies, require_steady_rope
from mvquant.stats import CalibrationStats


def plan_fold(view: ModelView, fold: Fold, stats: CalibrationStats) -> FoldRecord:
    """Choose the scales that are moved from K to Q.

    Raises:
        UnsupportedModelError: a family without RoPE.
    """
    return tuple(
        tuple(tuple(head) for head in layer.tolist()) for layer in fold_scales(stats, view, strength=fold.strength)
    )


def plan_cache(view: ModelView, wanted: KvCache, stats: CalibrationStats, float_bits: int) -> CachePlan:
    """Choose the bits of every pair of K, and how V is cached.

    Args:
        view: the model's structure.
        wanted: the recipe's word.
        stats: what calibration measured; after folding, if anything is folded.
        float_bits: of the model's numbers.

    Raises:
        PlanError: groups that do not divide a head of V, or a budget that cannot be kept.
        UnsupportedModelError: a family without RoPE, layers of different shapes, or keys that are to be cached before
            a RoPE whose angles depend on the length of the text.
    """
    keys = wanted.keys
    unrounded = keys.bits == UNROUNDED
    number_format = KeyFormat(scales="token") if unrounded else keys.format
    if number_format.stage == "pre-rope":
        require_steady_rope(view)
    plan = key_plan_from_stats(
        stats,
        view,
        keys.bits,
        "sensitivity" if unrounded else keys.policy,
        keys=number_format.model_copy(update={"inv_freq": model_frequencies(view)}),
        scope=keys.scope,
        widths=(UNROUNDED,) if unrounded else WIDTHS,
        protected=keys.protected,
        seed=keys.seed,
        sinks=wanted.sinks,
        window=wanted.window,
        values=wanted.values,
        float_bits=32 if float_bits == 32 else 16,
    )
    try:
        return CachePlan.model_validate(plan.model_dump())
    except ValidationError as error:
        mistakes = "; ".join(str(detail["msg"]).removeprefix("Value error, ") for detail in error.errors())
        raise PlanError(f"no plan for the cache: {mistakes}") from None
