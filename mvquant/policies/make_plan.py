"""From a recipe, a model's structure and its statistics to a plan."""

import platform
from collections import defaultdict
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from importlib.metadata import version
from math import prod
from typing import Literal

from pydantic import ValidationError

from mvquant.arch import ModelView, WeightView
from mvquant.errors import CalibrationError, PlanError, UnsupportedModelError
from mvquant.folding import folded_stats, recorded_scales
from mvquant.plan import ROW_INDEX_BYTES, CalibrationRecord, ModulePlan, Plan, Protection
from mvquant.policies.cache import plan_cache, plan_fold
from mvquant.policies.choice import POLICIES, Candidate, Policy, ranked, within
from mvquant.recipe import MEASURED_POLICIES, Recipe
from mvquant.rope import training_context
from mvquant.scheme import WeightScheme
from mvquant.scores import Heads, heads_of
from mvquant.stats import CalibrationStats

Dtype = Literal["float32", "bfloat16", "float16"]


def make_plan(
    view: ModelView,
    recipe: Recipe,
    *,
    model: str,
    dtype: Dtype,
    stats: CalibrationStats | None = None,
    calibration: CalibrationRecord | None = None,
) -> Plan:
    """Decide what becomes of every weight.

    Args:
        view: the model's structure.
        recipe: what is wanted.
        model: the name to record.
        dtype: the model's dtype on disk.
        stats: what calibration measured, before anything is folded; see `Recipe.needs_statistics`.
        calibration: the text for the weights' values (`Recipe.calibrates_weights`); by default that of `stats`.

    Raises:
        UnsupportedModelError: rows are to be protected, K cached or scales folded in a model without RoPE.
        CalibrationError: a policy that measures was given no statistics.
        PlanError: nothing to quantize, or groups that do not divide a module's columns or a head's dims.
    """
    require_rope(view, recipe)
    if recipe.needs_statistics and stats is None:
        raise CalibrationError(f"{_measures(recipe)} measures the model: give calibration statistics")
    float_bits = 32 if dtype == "float32" else 16
    fold, seen, cache = (), stats, None
    if recipe.fold is not None and stats is not None:
        fold = plan_fold(view, recipe.fold, stats)
        seen = folded_stats(stats, view, recorded_scales(fold))
    if recipe.kv_cache is not None and seen is not None:
        cache = plan_cache(view, recipe.kv_cache, seen, float_bits)
    weights = _planned_weights(view, recipe, model)
    modules = _module_plans(weights, recipe, _protections(view, weights, recipe, seen, float_bits))
    total = sum(prod(shape) for shape in view.parameters.values())
    return Plan(
        model=model,
        family=view.family,
        dtype=dtype,
        recipe=recipe,
        modules=modules,
        kept_parameters=total - sum(prod(weight.shape) for weight in weights),
        fold=fold,
        cache=cache,
        prefill=recipe.kv_cache.prefill if recipe.kv_cache else "rounded",
        round_queries=recipe.kv_cache.round_queries if recipe.kv_cache else False,
        training_context=training_context(view.config) if view.has_rope else None,
        calibration=calibration if stats is None else _record(stats),
        made_with={
            **{name: version(name) for name in ("mvquant", "torch", "transformers")},
            "python": platform.python_version(),
        },
    )


def require_rope(view: ModelView, recipe: Recipe) -> None:
    """Refuse what only a model with RoPE has; called before a model is run.

    Raises:
        UnsupportedModelError: rows are to be protected, K cached or scales folded in a model without RoPE.
    """
    if view.has_rope or not recipe.needs_rope:
        return
    if recipe.protect.policy != "none" and recipe.weights is not None:
        message = (
            "without it Q and K have no massive channels to protect: "
            f"use a plain scheme such as {recipe.weights.scheme.name}"
        )
    else:
        message = "without it Q and K have no pairs to give bits or scales to: leave out `kv_cache` and `fold`"
    raise UnsupportedModelError(f"{view.family} has no RoPE, and {message}")


def _measures(recipe: Recipe) -> str:
    """What in a recipe needs statistics."""
    if recipe.protect.policy in MEASURED_POLICIES:
        return f"policy {recipe.protect.policy!r}"
    return "`fold`" if recipe.kv_cache is None else "`kv_cache`"


def _planned_weights(view: ModelView, recipe: Recipe, model: str) -> list[WeightView]:
    if recipe.weights is None:
        return []
    ignored = recipe.weights.ignore
    weights = [each for each in view.weights if not any(fnmatchcase(each.name, pattern) for pattern in ignored)]
    if not weights:
        raise PlanError(f"{model}: `ignore` {list(ignored)} leaves no weight to quantize")
    return weights


def _protections(
    view: ModelView,
    weights: Sequence[WeightView],
    recipe: Recipe,
    stats: CalibrationStats | None,
    float_bits: int,
) -> dict[str, list[Protection]]:
    """Choose the protected rows, by module name."""
    if recipe.protect.policy == "none":
        return {}
    columns = {weight.name: weight.shape[-1] for weight in weights}
    groups = [heads for heads in _groups(view, recipe, stats) if heads.rows.module in columns]
    policy = POLICIES[recipe.protect.policy]
    candidates = ranked(policy, groups, [columns[heads.rows.module] for heads in groups], recipe.protect.seed)
    return _by_module(policy, groups, _affordable(candidates, groups, recipe, float_bits))


def _groups(view: ModelView, recipe: Recipe, stats: CalibrationStats | None) -> Iterable[Heads]:
    for index, attention in enumerate(view.attentions):
        if attention.q.rotary_dim:
            for role in recipe.protect.roles:
                yield heads_of(view, attention, role, None if stats is None else stats.layers[index])


def _affordable(
    candidates: Sequence[Candidate], groups: Sequence[Heads], recipe: Recipe, float_bits: int
) -> Sequence[Candidate]:
    """Cut the ranking where the budget ends: bytes on disk, or rows worth a fraction of all pairs."""
    protect = recipe.protect
    if protect.bytes is not None:
        return within(float(protect.bytes), ((each, _extra_bytes(each, recipe, float_bits)) for each in candidates))
    if protect.pairs is not None:
        rows = 2 * round(protect.pairs * sum(heads.rows.heads * heads.rows.pairs for heads in groups))
        return within(float(rows), ((each, float(each.rows)) for each in candidates))
    return candidates


def _extra_bytes(candidate: Candidate, recipe: Recipe, float_bits: int) -> float:
    """Bytes that protecting a candidate adds on disk, zero points at their packed share."""

    def row_bytes(scheme: WeightScheme) -> float:
        return scheme.matrix_bytes(32, candidate.columns, float_bits) / 32

    return candidate.rows * (row_bytes(recipe.protected_scheme) - row_bytes(_base_scheme(recipe)) + ROW_INDEX_BYTES)


def _by_module(policy: Policy, groups: Sequence[Heads], chosen: Iterable[Candidate]) -> dict[str, list[Protection]]:
    units: dict[int, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
    for candidate in chosen:
        units[candidate.heads][candidate.head].append(candidate.unit)
    protections: dict[str, list[Protection]] = defaultdict(list)
    for index in sorted(units):
        by_head = {head: tuple(sorted(units[index][head])) for head in sorted(units[index])}
        rows = groups[index].rows
        field = "pairs" if policy.unit == "pair" else "dims"
        protections[rows.module].append(Protection.model_validate({"heads": rows, field: by_head}))
    return protections


def _module_plans(
    weights: Iterable[WeightView], recipe: Recipe, protections: dict[str, list[Protection]]
) -> tuple[ModulePlan, ...]:
    """Make every module's plan, and report all that cannot be made at once."""
    modules: list[ModulePlan] = []
    mistakes: list[str] = []
    for weight in weights:
        try:
            modules.append(_module_plan(weight, recipe, protections.get(weight.name, [])))
        except ValidationError as error:
            mistakes += [str(detail["msg"]).removeprefix("Value error, ") for detail in error.errors()]
    if mistakes:
        more = f"\n  ... and {len(mistakes) - 5} more modules" if len(mistakes) > 5 else ""
        raise PlanError("no plan:\n  " + "\n  ".join(mistakes[:5]) + more)
    return tuple(modules)


def _module_plan(weight: WeightView, recipe: Recipe, protections: list[Protection]) -> ModulePlan:
    scheme, protected_scheme = _base_scheme(recipe), recipe.protected_scheme
    rows = sum(len(protection.rows) for protection in protections)
    reason = POLICIES[recipe.protect.policy].reason if protections else ""
    if rows == prod(weight.shape[:-1]):  # nothing is left of the base scheme, so no row index is needed
        scheme, protections = protected_scheme, []
    return ModulePlan(
        name=weight.name,
        kind=weight.kind,
        layer=weight.layer,
        shape=weight.shape,
        scheme=scheme,
        protected_scheme=protected_scheme if protections else None,
        protected=tuple(protections),
        reason=reason,
    )


def _base_scheme(recipe: Recipe) -> WeightScheme:
    assert recipe.weights is not None, "rows are planned only where weights are quantized"
    return recipe.weights.scheme


def _record(stats: CalibrationStats) -> CalibrationRecord:
    return CalibrationRecord(
        source=stats.source, sequences=stats.sequences, length=stats.length, seed=stats.seed, hash=stats.hash
    )
