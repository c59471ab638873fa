"""Moving scale between K and Q, pair by pair, without changing a logit.

RoPE turns the two dims of a pair into each other and into nothing else. So K of a pair may be divided by a number and Q
of it multiplied by the same: `q . k` stays, for every pair of positions. Massive channels of K shrink, and whatever
rounds K afterwards, in any engine, rounds it with a smaller range. The scale goes into the rows of the projections,
weights and biases, or into the norms of Q and K where a family has them after its projections. (Lin et al., QServe,
arXiv 2405.04532, section "SmoothAttention", does so with one exponent for all models.)

Shapes: `kv_head` key/value heads, `pair` RoPE pairs, fastest first.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from mvquant.arch import AttentionView, ModelView
from mvquant.errors import PlanError, UnsupportedModelError
from mvquant.heads import HeadRows
from mvquant.massive import HeadMoments, pair_slices
from mvquant.stats import CalibrationStats, LayerStats, require_fit

FoldScales = tuple[Tensor, ...]
"""For every decoder layer, in order: by how much K of each KV head and pair is divided, and Q multiplied."""

FoldRecord = tuple[tuple[tuple[float, ...], ...], ...]
"""Scales as a plan keeps them: by layer, KV head and pair."""

_ONE_PLUS_WEIGHT = frozenset({"gemma3_text"})
"""Families whose norms multiply by 1 + weight."""

DEFAULT_STRENGTH = 0.375
"""Least change of attention when K of Llama-2-7B's layer 10 is rounded per token to 2 bits, on calibration tokens.

At 3 and 4 bits 0.25 to 0.5 are as good; see "folded" in `benchmarks/results/attention.json`.
"""

LARGEST_SCALE = 64.0
"""Scales stay between its inverse and it: dead channels are not blown up."""


def fold_scales(
    stats: CalibrationStats, view: ModelView, strength: float = DEFAULT_STRENGTH, *, powers_of_two: bool = True
) -> FoldScales:
    """Choose scales that even out the pairs of K.

    A pair gets the scale `(its root mean square / the geometric mean of its head's) ** strength`. Shrinking a massive
    pair of K shrinks the range that all pairs of a token share, but multiplies what is lost of that pair, and its Q is
    massive too: so a strength of 1 does harm. Where one norm weight serves all heads, so does one scale.

    Args:
        stats: what calibration measured.
        view: the model's structure.
        strength: 0 folds nothing, 1 makes all pairs of K alike.
        powers_of_two: round scales so that folding is exact in every floating dtype, `1 + weight` norms aside.

    Raises:
        CalibrationError: statistics of another model.
        UnsupportedModelError: a family without RoPE.
    """
    require_fit(stats, view)
    _require_rope(view)
    layers = zip(stats.layers, view.attentions, strict=True)
    return tuple(_layer_scales(layer.k, attention, view, strength, powers_of_two) for layer, attention in layers)


def recorded_scales(fold: FoldRecord) -> FoldScales:
    """Read scales back from a plan.

    >>> recorded_scales((((0.5, 2.0),),))[0].tolist()
    [[0.5, 2.0]]
    """
    return tuple(torch.tensor(layer, dtype=torch.float64) for layer in fold)


@dataclass(frozen=True)
class RowFactors:
    """What the rows of one parameter are multiplied by."""

    by_row: Float[Tensor, " row"]
    one_plus: bool = False
    """Whether the model multiplies by 1 + the parameter."""

    def folded(self, values: Tensor) -> Tensor:
        """Return the parameter with the factors folded in, rounded once to its dtype."""
        factors = self.by_row.to(values.device).reshape(-1, *[1] * (values.ndim - 1))
        if len(self.by_row) == values.numel():  # a norm with a weight for each head and dim
            factors = factors.reshape(values.shape)
        offset = 1.0 if self.one_plus else 0.0
        return ((values.detach().double() + offset) * factors - offset).to(values.dtype)


def fold_factors(view: ModelView, scales: FoldScales) -> dict[str, RowFactors]:
    """Say which parameters change and how, so that they can be folded one by one as they are read.

    Args:
        view: the model's structure.
        scales: positive, one tensor `[kv_head, pair]` for each layer.

    Raises:
        PlanError: scales of other shapes, not positive, or different between heads that share a norm weight.
        UnsupportedModelError: a family without RoPE.
    """
    _require_rope(view)
    _check(scales, view)
    found: dict[str, RowFactors] = {}
    for attention, layer in zip(view.attentions, scales, strict=True):
        for rows, factor in _factors(attention, layer):
            for name, changed in _changed(rows, factor, attention, view):
                # Q and K of a fused projection are rows of one parameter
                earlier = found.get(name)
                found[name] = changed if earlier is None else replace(changed, by_row=changed.by_row * earlier.by_row)
    return found


def folded_parameters(model: PreTrainedModel, view: ModelView, scales: FoldScales) -> dict[str, Tensor]:
    """Return the parameters that change, by name, with the scales folded in; the model stays as it is.

    Args:
        model: a model of the view's family, not quantized.
        view: what `mvquant.arch.model_view` says of it.
        scales: positive, one tensor `[kv_head, pair]` for each layer.

    Raises:
        PlanError: scales of other shapes, not positive, or different between heads that share a norm weight.
        UnsupportedModelError: a family without RoPE, or a model whose projections are quantized.
    """
    parameters = dict(model.named_parameters())
    factors = fold_factors(view, scales)
    if quantized := [name for name in factors if name not in parameters]:
        raise UnsupportedModelError(f"{quantized[0]} is not there to fold into: fold before quantizing")
    return {name: factor.folded(parameters[name]) for name, factor in factors.items()}


def load_folded(model: nn.Module, changes: dict[str, Tensor]) -> None:
    """Write what `folded_parameters` returned into the model."""
    with torch.no_grad():
        for name, values in changes.items():
            model.get_parameter(name).copy_(values)


def folded_stats(stats: CalibrationStats, view: ModelView, scales: FoldScales) -> CalibrationStats:
    """Return the statistics that the folded model would give, without running it."""
    _check(scales, view)
    layers = zip(stats.layers, view.attentions, scales, strict=True)
    return replace(stats, layers=tuple(_folded_layer(*layer) for layer in layers))


def _folded_layer(stats: LayerStats, attention: AttentionView, scales: Float[Tensor, "kv_head pair"]) -> LayerStats:
    (_, q), (_, k) = _factors(attention, scales)
    return replace(
        stats,
        q_pre=_multiplied(stats.q_pre, q),
        k_pre=_multiplied(stats.k_pre, k),
        q=_multiplied(stats.q, q),
        k=_multiplied(stats.k, k),
    )


def _multiplied(moments: HeadMoments, factor: Float[Tensor, "head head_dim"]) -> HeadMoments:
    square = factor.square()
    return HeadMoments(
        moments.tokens, moments.total * factor, moments.squares * square, moments.within_variance * square
    )


def _layer_scales(
    keys: HeadMoments, attention: AttentionView, view: ModelView, strength: float, powers_of_two: bool
) -> Float[Tensor, "kv_head pair"]:
    energy = keys.pair_energy(attention.k.rotary_dim, attention.k.layout)
    if _shares_norm(attention.k, attention, view):
        energy = energy.mean(dim=0, keepdim=True).expand_as(energy)
    # A dead pair keeps the scale of an average one.
    logarithm = torch.where(energy > 0, energy, torch.ones_like(energy)).log2() / 2
    mean = logarithm.where(energy > 0, 0.0).sum(1, keepdim=True) / (energy > 0).sum(1, keepdim=True).clamp(min=1)
    exponent = torch.where(energy > 0, strength * (logarithm - mean), torch.zeros_like(energy))
    exponent = exponent.clamp(-math.log2(LARGEST_SCALE), math.log2(LARGEST_SCALE))
    return torch.exp2(exponent.round() if powers_of_two else exponent)


def _factors(
    attention: AttentionView, scales: Float[Tensor, "kv_head pair"]
) -> tuple[tuple[HeadRows, Float[Tensor, "head head_dim"]], tuple[HeadRows, Float[Tensor, "kv_head head_dim"]]]:
    """What each dim of Q and of K is multiplied by."""
    by_query_head = scales.repeat_interleave(attention.q.heads // attention.k.heads, dim=0)
    return (
        (attention.q, _by_dim(by_query_head.double(), attention.q)),
        (attention.k, _by_dim(1 / scales.double(), attention.k)),
    )


def _by_dim(factors: Float[Tensor, "head pair"], rows: HeadRows) -> Float[Tensor, "head head_dim"]:
    """Give both dims of a pair its factor, and the dims that RoPE does not turn 1."""
    dims = factors.new_ones(rows.heads, rows.head_dim)
    for part in pair_slices(rows.rotary_dim, rows.layout):
        dims[:, part] = factors
    return dims


def _changed(
    rows: HeadRows, factor: Float[Tensor, "head head_dim"], attention: AttentionView, view: ModelView
) -> Iterator[tuple[str, RowFactors]]:
    """The parameters of one role: its norm where there is one, else the rows of its projection."""
    norm = _norm_weight(rows, attention, view)
    if norm is not None:
        shared = math.prod(view.parameters[norm]) == rows.head_dim
        yield norm, RowFactors(factor[0] if shared else factor.flatten(), view.family in _ONE_PLUS_WEIGHT)
        return
    index = torch.tensor([rows.row(head, dim) for head in range(rows.heads) for dim in range(rows.head_dim)])
    for name in (f"{rows.module}.weight", f"{rows.module}.bias"):
        if name in view.parameters:
            by_row = factor.new_ones(view.parameters[name][0])
            by_row[index] = factor.flatten()
            yield name, RowFactors(by_row)


def _norm_weight(rows: HeadRows, attention: AttentionView, view: ModelView) -> str | None:
    name = f"{attention.module}.{rows.role}_norm.weight"
    return name if name in view.parameters else None


def _shares_norm(rows: HeadRows, attention: AttentionView, view: ModelView) -> bool:
    name = _norm_weight(rows, attention, view)
    return name is not None and math.prod(view.parameters[name]) == rows.head_dim and rows.heads > 1


def _require_rope(view: ModelView) -> None:
    if not view.has_rope:
        raise UnsupportedModelError(f"{view.family} has no RoPE, so its Q and K have no pairs to fold scales into")


def _check(scales: Sequence[Tensor], view: ModelView) -> None:
    mistakes = [] if len(scales) == len(view.attentions) else [f"{len(scales)} layers, not {len(view.attentions)}"]
    for attention, layer in zip(view.attentions, scales, strict=False):
        expected = (attention.k.heads, attention.k.pairs)
        if tuple(layer.shape) != expected:
            mistakes.append(f"{attention.k.module}: {tuple(layer.shape)}, not {expected}")
        elif not bool((layer > 0).all() & layer.isfinite().all()):
            mistakes.append(f"{attention.k.module}: not all positive")
        elif _shares_norm(attention.k, attention, view) and not bool((layer == layer[0]).all()):
            mistakes.append(f"{attention.module}: one norm weight serves all heads, so their scales must be equal")
    if mistakes:
        raise PlanError(f"scales do not fit the {view.family} model: {'; '.join(mistakes)}")
