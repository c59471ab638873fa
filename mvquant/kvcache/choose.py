"""Choosing the bits of every pair of K: from the states of one layer, or from a model's calibration statistics."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from mvquant.arch import ModelView
from mvquant.attention_states import unrotate
from mvquant.cache_formats import KeyFormat, ValueFormat
from mvquant.cache_plan import CachePlan, HeadKeys, LayerKeys
from mvquant.cache_recipe import KeyPolicy, Scope
from mvquant.errors import CalibrationError, PlanError, UnknownNameError, UnsupportedModelError
from mvquant.heads import RotaryLayout
from mvquant.kvcache.allocation import even_ranking, least_error_bits, ranked_bits
from mvquant.kvcache.measure import (
    KeyMoments,
    by_pair,
    expected_errors,
    measured_errors,
    moments_of_states,
    moments_of_stats,
    rounded_table,
)
from mvquant.kvcache.rotation import angles
from mvquant.scores import Heads, heads_of, massive, slow_first
from mvquant.stats import CalibrationStats, require_fit

WIDTHS = (1, 2, 3, 4, 5, 6, 7, 8)
"""Bits that a pair may get."""

DEFAULT_KEYS = KeyFormat(scales="channel", chunk=32, scale_bits=8)
"""The format of `key_plan`: of little error at the same bits, see `benchmarks/results/attention.json`."""


@dataclass(frozen=True)
class Budget:
    """How many bits there are, who competes for them, and which widths may be used.

    Attributes:
        average_bits: of a value of K, scales aside.
        scope: the pairs that compete: of a KV head (every head gets as much), of a layer, or of the whole model.
        widths: rising.
        protected: share of the pairs that ranking policies (all but `sensitivity`) protect together.
        seed: of the policy `random`.
    """

    average_bits: float
    scope: Scope = "layer"
    widths: tuple[int, ...] = WIDTHS
    protected: float = 0.125
    seed: int = 0


@dataclass(frozen=True)
class _Shape:
    head_dim: int
    rotary_dim: int
    layout: RotaryLayout

    @property
    def pairs(self) -> int:
        return self.head_dim // 2


def key_plan(
    q: Float[Tensor, "seq head head_dim"],
    k: Float[Tensor, "seq kv_head head_dim"],
    average_bits: float | int,
    policy: KeyPolicy = "sensitivity",
    *,
    keys: KeyFormat = DEFAULT_KEYS,
    scope: Scope = "layer",
    widths: tuple[int, ...] = WIDTHS,
    protected: float = 0.125,
    rotary_dim: int | None = None,
    layout: RotaryLayout = "half-split",
    sinks: int = 0,
    start: int = 0,
    seed: int = 0,
) -> CachePlan:
    """Choose the bits of one layer's K from its states on calibration text.

    Args:
        q: queries after RoPE; one text.
        k: keys after RoPE.
        average_bits: budget per value of K, scales aside; no layer exceeds it.
        policy: how bits are chosen. `sensitivity` gives them where they remove most error of the logits; `none` as
            evenly as whole bits allow. The others give every pair the whole bits of the budget, and the rest of it to
            the pairs they rank first: `massive` those with the most energy of K, `slow-pairs` the slowest, and so on.
            Where there is no rest, as at 2 bits, those they rank last give up a bit each (see `ranked_bits`).
        keys: the format. A pre-RoPE one needs `inv_freq`.
        scope: the pairs that compete for the bits: those of a head, or all of the layer.
        widths: that `sensitivity` may use, rising.
        protected: share of the pairs that the other policies protect together.
        rotary_dim: dims that RoPE turns; all by default.
        layout: which dims are a pair.
        sinks: first tokens that are kept in full precision, and not measured.
        start: position of the first token, for pre-RoPE formats.
        seed: of the policy `random`.

    Returns:
        A plan of one layer, number 0.

    Raises:
        CalibrationError: Q and K do not belong together.
        PlanError: a budget below the smallest width everywhere, dims that cannot be pairs, or a pre-RoPE format without
            the frequencies of all pairs.
        UnknownNameError: no such policy, scope or layout.
    """
    _check_names(policy, scope, layout)
    shape = _Shape(k.shape[-1], k.shape[-1] if rotary_dim is None else rotary_dim, layout)
    _check_shape(q, k, shape, sinks)
    budget = _budget(policy, Budget(float(average_bits), scope, widths, protected, seed))
    q, k = (_at_stage(states[sinks:], keys, shape, start + sinks) for states in (q, k))
    moments = moments_of_states(q, k)
    errors = measured_errors(moments, k, widths, shape.rotary_dim, layout, max(keys.chunk, 32))
    energy = by_pair(moments.key_energy, shape.rotary_dim, layout)
    rankings = _rankings(policy, [energy], budget)
    bits = _bits([errors], rankings, budget)
    return _plan(bits, [moments], keys, shape, policy=_described(policy, budget, bits), sinks=sinks)


def key_plan_from_stats(
    stats: CalibrationStats,
    view: ModelView,
    average_bits: float | int,
    policy: KeyPolicy = "sensitivity",
    *,
    keys: KeyFormat = DEFAULT_KEYS,
    values: ValueFormat = ValueFormat(),  # noqa: B008 - frozen
    scope: Scope = "layer",
    widths: tuple[int, ...] = WIDTHS,
    protected: float = 0.125,
    sinks: int = 0,
    window: int = 0,
    float_bits: Literal[16, 32] = 16,
    seed: int = 0,
) -> CachePlan:
    """Choose the bits of every layer's K from what calibration measured; see `key_plan`.

    Raises:
        CalibrationError: statistics of another model.
        PlanError: a budget below the smallest width everywhere.
        UnsupportedModelError: a family without RoPE, or layers of different shapes.
        UnknownNameError: no such policy or scope.
    """
    _check_names(policy, scope)
    require_fit(stats, view)
    shape = _shape_of(view)
    budget = _budget(policy, Budget(float(average_bits), scope, widths, protected, seed))
    moments = [moments_of_stats(layer, keys.stage) for layer in stats.layers]
    errors = [expected_errors(each, widths, shape.rotary_dim, shape.layout) for each in moments]
    heads = [heads_of(view, attention, "k", stats.layers[i]) for i, attention in enumerate(view.attentions)]
    bits = _bits(errors, _model_rankings(policy, heads, shape, budget), budget)
    plan = _plan(bits, moments, keys, shape, policy=_described(policy, budget, bits), sinks=sinks)
    return plan.model_copy(update={"values": values, "window": window, "float_bits": float_bits})


Rankings = list[list[list[int]]] | None
"""Pairs of every layer and head, most wanted first; None for the policy that compares errors instead."""


def _rankings(policy: KeyPolicy, energies: Sequence[Float[Tensor, "kv_head pair"]], budget: Budget) -> Rankings:
    """Rank the pairs of every layer and head; of one layer's states nothing is known of wavelengths but their order."""
    generator = torch.Generator().manual_seed(budget.seed)
    order: dict[KeyPolicy, Callable[[Tensor], Tensor]] = {
        "massive": lambda energy: energy,
        "slow-pairs": lambda energy: torch.arange(energy.shape[1]).expand(energy.shape),
        "fast-pairs": lambda energy: -torch.arange(energy.shape[1]).expand(energy.shape),
        "random": lambda energy: torch.rand(energy.shape, generator=generator),
    }
    if policy == "sensitivity":
        return None
    if policy == "none":
        return [[even_ranking(energy.shape[1], budget.average_bits)] * len(energy) for energy in energies]
    return [order[policy](energy).argsort(dim=1, descending=True, stable=True).tolist() for energy in energies]


def _model_rankings(policy: KeyPolicy, heads: Sequence[Heads], shape: _Shape, budget: Budget) -> Rankings:
    """Rank them as `mvquant.policies` does for weights where it knows more: which pairs are slow."""
    score = {"massive": massive, "slow-pairs": slow_first}.get(policy)
    if score is None:
        return _rankings(policy, [torch.zeros(each.rows.heads, shape.pairs) for each in heads], budget)
    rest = list(range(shape.rotary_dim // 2, shape.pairs))
    orders = [score(each).argsort(dim=1, descending=True, stable=True).tolist() for each in heads]
    return [[order + rest for order in layer] for layer in orders]


def _bits(
    errors: Sequence[Float[Tensor, "kv_head pair width"]], rankings: Rankings, budget: Budget
) -> list[list[list[int]]]:
    """Bits of every layer, head and pair."""
    if rankings is not None:
        average = budget.average_bits
        return [[ranked_bits(order, average, budget.protected, WIDTHS[-1]) for order in layer] for layer in rankings]
    groups = {
        "head": [head for layer in errors for head in layer],
        "layer": [layer.flatten(0, 1) for layer in errors],
        "model": [torch.cat([layer.flatten(0, 1) for layer in errors])],
    }[budget.scope]
    flat = (bits for group in groups for bits in _spent(group, budget))
    return [[list(islice(flat, layer.shape[1])) for _ in layer] for layer in errors]


def _spent(errors: Float[Tensor, "any_pair width"], budget: Budget) -> list[int]:
    return least_error_bits(errors.tolist(), budget.widths, budget.average_bits * len(errors))


def _plan(
    bits: list[list[list[int]]], moments: Sequence[KeyMoments], keys: KeyFormat, shape: _Shape, policy: str, sinks: int
) -> CachePlan:
    layers = tuple(
        LayerKeys(layer=number, heads=tuple(_head(each, head, keys, measured) for head, each in enumerate(layer)))
        for number, (layer, measured) in enumerate(zip(bits, moments, strict=True))
    )
    return CachePlan(
        head_dim=shape.head_dim,
        rotary_dim=shape.rotary_dim,
        layout=shape.layout,
        keys=keys,
        layers=layers,
        sinks=sinks,
        policy=policy,
    )


def _head(bits: list[int], head: int, keys: KeyFormat, moments: KeyMoments) -> HeadKeys:
    if not keys.measured:
        return HeadKeys(bits=tuple(bits))
    center, spread = rounded_table(moments.center[head]), rounded_table(moments.spread[head])
    return HeadKeys(bits=tuple(bits), center=center, spread=spread)


def _at_stage(
    states: Float[Tensor, "seq any_head head_dim"], keys: KeyFormat, shape: _Shape, start: int
) -> Float[Tensor, "seq any_head head_dim"]:
    if keys.stage == "post-rope":
        return states
    if len(keys.inv_freq) != shape.rotary_dim // 2:
        message = (
            f"a pre-RoPE format needs inv_freq, so that states after RoPE can be turned back: {len(keys.inv_freq)}"
        )
        raise PlanError(f"{message} frequencies for {shape.rotary_dim // 2} RoPE pairs")
    turns = angles(torch.tensor(keys.inv_freq), start, len(states))
    before = unrotate(states.transpose(0, 1).unsqueeze(0), *turns, shape.rotary_dim, shape.layout)
    return before[0].transpose(0, 1)


def _check_names(policy: str, scope: str, layout: str = "half-split") -> None:
    kinds = (("policy for K", policy, KeyPolicy), ("scope", scope, Scope), ("layout", layout, RotaryLayout))
    for what, name, known in kinds:
        if name not in get_args(known):
            raise UnknownNameError(what, name, get_args(known))


def _check_shape(q: Tensor, k: Tensor, shape: _Shape, sinks: int) -> None:
    if q.ndim != 3 or k.ndim != 3:
        message = f"q {tuple(q.shape)} and k {tuple(k.shape)} are not [seq, heads, head_dim]"
        raise CalibrationError(f"{message}: give the states of one text, without a batch")
    if shape.head_dim % 2 or shape.rotary_dim % 2 or not 0 <= shape.rotary_dim <= shape.head_dim:
        message = f"rotary_dim {shape.rotary_dim} and head_dim {shape.head_dim} must be even"
        raise PlanError(f"{message}, and rotary_dim from 0 to head_dim")
    if sinks < 0:
        raise PlanError(f"sinks: {sinks} tokens; choose 0 or more")


def _budget(policy: str, budget: Budget) -> Budget:
    """Check a budget; whoever prefers no pair protects all alike."""
    widths = budget.widths
    if not widths or list(widths) != sorted(set(widths)) or not set(widths) <= {*WIDTHS, 16}:
        raise PlanError(f"widths {list(widths)} must rise, and be of 1 to 8 bits or 16")
    if not widths[0] <= budget.average_bits <= 16:
        message = f"average_bits {budget.average_bits:g} is below what {widths[0]} bit(s) per pair need, or above 16"
        raise PlanError(f"{message}: choose {widths[0]} to 8")
    if not 0 < budget.protected <= 1:
        raise PlanError(f"protected {budget.protected:g} is no share of the pairs: choose more than 0, and 1 at most")
    return replace(budget, protected=1.0) if policy == "none" else budget


def _shape_of(view: ModelView) -> _Shape:
    if not view.has_rope:
        raise UnsupportedModelError(f"{view.family} has no RoPE, so K has no pairs: bits of K cannot be chosen")
    shapes = {_Shape(each.k.head_dim, each.k.rotary_dim, each.k.layout) for each in view.attentions}
    if len(shapes) > 1:
        raise UnsupportedModelError(f"{view.family}: heads differ between layers, and a cache plan has one shape")
    return shapes.pop()


def _described(policy: str, budget: Budget, bits: list[list[list[int]]]) -> str:
    chosen = policy != "none" and len(budget.widths) > 1
    alike = chosen and len({width for layer in bits for head in layer for width in head}) == 1
    note = ": all pairs alike, nothing is protected" if alike else ""
    return f"{policy}, {budget.average_bits:g} bits, per {budget.scope}{note}"
