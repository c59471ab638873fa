"""How much each policy wants each pair (or dim) of a head: higher is protected earlier.

Shapes: `head` heads of one role in one layer, `pair` RoPE pairs (fastest first), `unit` pairs or dims.
Energies are per token, after RoPE; both dims of a pair together, so that the rotation does not matter.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mvquant.arch import AttentionView, ModelView
from mvquant.heads import HeadRows
from mvquant.massive import HeadMoments, pair_sums
from mvquant.rope import slow_pairs
from mvquant.stats import LayerStats

HeadScores = Float[Tensor, "head unit"]


@dataclass(frozen=True, eq=False)
class Heads:
    """One role of one layer, as policies look at it."""

    rows: HeadRows
    slow: tuple[int, ...]
    """Pairs with a wavelength of at least the training context."""
    own: HeadMoments | None
    """Measured states of these heads; None for a data-free policy."""
    partner: HeadMoments | None
    """Measured states of the heads that they are multiplied with."""


def heads_of(view: ModelView, attention: AttentionView, role: str, stats: LayerStats | None) -> Heads:
    """Gather what policies need to know about `role` ("q" or "k") of one attention."""
    rows = attention.q if role == "q" else attention.k
    own, partner = (None, None) if stats is None else (stats.q, stats.k)
    if role == "k":
        own, partner = partner, own
    slow = tuple(slow_pairs(view.config, attention.layer_type)) if rows.pairs else ()
    return Heads(rows=rows, slow=slow, own=own, partner=partner)


def massive(heads: Heads) -> HeadScores:
    """Share of the head's energy, slow pairs before all others (Jin et al., ICML 2025)."""
    energy = _measured(heads.own).pair_energy(heads.rows.rotary_dim, heads.rows.layout)
    share = energy / energy.sum(dim=-1, keepdim=True).clamp(min=torch.finfo(energy.dtype).tiny)
    share[:, list(heads.slow)] += 1.0
    return share


def sensitivity(heads: Heads) -> HeadScores:
    """Expected squared error of the attention logits if the pair is rounded: own energy x partner's.

    The rounding error of a row grows with the row (its range sets the step), and an error in `q_d` is
    multiplied by `k_d`. Softmax ignores a shift that is the same for all keys, so of K only its
    variance over keys counts.
    """
    rotary = heads.rows.rotary_dim, heads.rows.layout
    if heads.rows.role == "q":
        own = _measured(heads.own).pair_energy(*rotary)
        return own * _repeat(pair_sums(_measured(heads.partner).within_variance, *rotary), own.shape[0])
    own = pair_sums(_measured(heads.own).within_variance, *rotary)
    queries = _measured(heads.partner).pair_energy(*rotary)
    return own * queries.unflatten(0, (own.shape[0], -1)).sum(dim=1)


def slow_first(heads: Heads) -> HeadScores:
    """Data-free: the fastest of the slow pairs first, where Llama's massive values lie; then outwards."""
    first_slow = heads.slow[0] if heads.slow else heads.rows.pairs
    pair = torch.arange(heads.rows.pairs)
    rank = torch.where(pair >= first_slow, pair - first_slow, heads.rows.pairs + first_slow - pair)
    return _same_in_every_head(heads, -rank.double())


def fast_first(heads: Heads) -> HeadScores:
    """Control: the fastest pairs first."""
    return _same_in_every_head(heads, -torch.arange(heads.rows.pairs).double())


def shuffled(heads: Heads, generator: torch.Generator) -> HeadScores:
    """Control: pairs at random, others in every head."""
    return torch.rand(heads.rows.heads, heads.rows.pairs, generator=generator, dtype=torch.float64)


def top_norm(heads: Heads) -> HeadScores:
    """Control: single dims by norm, whatever their place in RoPE. Score per dim, not per pair."""
    return _measured(heads.own).norms()


def every_dim(heads: Heads) -> HeadScores:
    """Control: all rows alike. Score per dim, not per pair."""
    return torch.zeros(heads.rows.heads, heads.rows.head_dim, dtype=torch.float64)


def _measured(moments: HeadMoments | None) -> HeadMoments:
    assert moments is not None, "planning checks that measured policies have statistics"
    return moments


def _same_in_every_head(heads: Heads, scores: Float[Tensor, " pair"]) -> HeadScores:
    return scores.expand(heads.rows.heads, -1)


def _repeat(values: Float[Tensor, "kv_head pair"], heads: int) -> Float[Tensor, "head pair"]:
    """Give each query head the values of the key head that it reads."""
    return values.repeat_interleave(heads // values.shape[0], dim=0)
