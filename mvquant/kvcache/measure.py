"""What the choice of bits needs to know of one layer: energy of Q, and how K is spread.

Shapes: `kv_head` key/value heads, `pair` as in `mvquant.cache_plan`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mvquant.errors import CalibrationError
from mvquant.heads import RotaryLayout
from mvquant.kvcache.codebooks import normal_error
from mvquant.kvcache.grids import ChannelGrid, tops
from mvquant.massive import pair_sums
from mvquant.stats import LayerStats


@dataclass(frozen=True, eq=False)
class KeyMoments:
    """One layer's K per dim, and the energy of the queries that read it, summed over each KV head's query heads."""

    query_energy: Float[Tensor, "kv_head head_dim"]
    key_energy: Float[Tensor, "kv_head head_dim"]
    center: Float[Tensor, "kv_head head_dim"]
    spread: Float[Tensor, "kv_head head_dim"]
    """Root mean square distance from `center` that keys of other text are expected to have."""
    varying: Float[Tensor, "kv_head head_dim"]
    """Variance within one text; softmax ignores the rest."""


def moments_of_states(q: Float[Tensor, "seq head head_dim"], k: Float[Tensor, "seq kv_head head_dim"]) -> KeyMoments:
    """Measure the states of one text.

    Raises:
        CalibrationError: Q and K that do not belong together, or are not finite.
    """
    heads, kv_heads = q.shape[1], k.shape[1]
    if q.shape[::2] != k.shape[::2] or heads % kv_heads or len(k) < 2:
        message = f"q {tuple(q.shape)} and k {tuple(k.shape)} do not belong together"
        raise CalibrationError(f"{message}: both are [seq, heads, head_dim], with heads a multiple of KV heads")
    if not bool(q.isfinite().all() & k.isfinite().all()):
        message = "q or k has NaN or infinite values"
        raise CalibrationError(message)
    energy = q.double().square().mean(dim=0).unflatten(0, (kv_heads, -1)).sum(dim=1)
    keys = k.double()
    first, second = keys.tensor_split(2)
    # Around the mean of the other half: what keys that were not measured will be like, drift included.
    distance = (first - second.mean(dim=0)).square().mean(dim=0) + (second - first.mean(dim=0)).square().mean(dim=0)
    variance = keys.var(dim=0, correction=0)
    return KeyMoments(energy, keys.square().mean(dim=0), keys.mean(dim=0), (distance / 2).sqrt(), variance)


def moments_of_stats(stats: LayerStats, stage: str) -> KeyMoments:
    """Read them off calibration statistics; `stage` is that of the plan's keys."""
    q, k = (stats.q, stats.k) if stage == "post-rope" else (stats.q_pre, stats.k_pre)
    energy = q.mean_square().unflatten(0, (len(k.total), -1)).sum(dim=1)
    return KeyMoments(energy, k.mean_square(), k.mean(), k.variance().sqrt(), k.within_variance)


def by_pair(
    values: Float[Tensor, "kv_head head_dim"], rotary_dim: int, layout: RotaryLayout
) -> Float[Tensor, "kv_head pair"]:
    """Add up the dims of every pair: the RoPE pairs, then the other dims two by two."""
    return torch.cat([pair_sums(values, rotary_dim, layout), values[:, rotary_dim:].unflatten(1, (-1, 2)).sum(-1)], 1)


def expected_errors(
    moments: KeyMoments, widths: Sequence[int], rotary_dim: int, layout: RotaryLayout
) -> Float[Tensor, "kv_head pair width"]:
    """Expected squared error of the logits from each pair at each width: Q energy x variance of K x what is lost of it.

    The energy of Q is that of the pair, because RoPE turns queries and errors by different angles.
    """
    energy = _pair_mean(moments.query_energy, rotary_dim, layout)
    error = by_pair(energy * moments.varying, rotary_dim, layout)
    return error.unsqueeze(-1) * torch.tensor([normal_error(width) for width in widths], dtype=error.dtype)


def measured_errors(
    moments: KeyMoments,
    k: Float[Tensor, "seq kv_head head_dim"],
    widths: Sequence[int],
    rotary_dim: int,
    layout: RotaryLayout,
    chunk: int,
) -> Float[Tensor, "kv_head pair width"]:
    """The same with the error of K as measured when chunks of it are rounded channel by channel."""
    channels = k.shape[1] * k.shape[2]
    size = min(chunk, len(k))
    values = k[: len(k) // size * size].float().reshape(1, 1, -1, size, channels)
    errors: list[Tensor] = []
    for width in widths:
        grid = ChannelGrid(tops([width] * channels)) if width < 16 else None
        rounded = values if grid is None else grid.decode(*grid.encode(values))
        squared = (rounded - values).square().mean(dim=(0, 1, 2, 3)).view(k.shape[1:]).double()
        errors.append(by_pair(moments.query_energy * squared, rotary_dim, layout))
    return torch.stack(errors, dim=-1)


def _pair_mean(
    values: Float[Tensor, "kv_head head_dim"], rotary_dim: int, layout: RotaryLayout
) -> Float[Tensor, "kv_head head_dim"]:
    """Give both dims of every RoPE pair their mean."""
    mean = pair_sums(values, rotary_dim, layout) / 2
    both = torch.stack([mean, mean], dim=1 if layout == "half-split" else 2).flatten(1)
    return torch.cat([both, values[:, rotary_dim:]], dim=1)


def rounded_table(values: Float[Tensor, " head_dim"]) -> tuple[float, ...]:
    """Values as a plan keeps them: four significant digits, so that the file stays small."""
    return tuple(float(f"{value:.4g}") if math.isfinite(value) else 0.0 for value in values.tolist())
