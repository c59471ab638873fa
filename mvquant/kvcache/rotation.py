"""Turning pairs by their positions, for K that is cached before RoPE."""

import torch
from jaxtyping import Float
from torch import Tensor

from mvquant.heads import RotaryLayout
from mvquant.massive import pair_slices


def rotate(
    states: Float[Tensor, "batch head seq head_dim"],
    cos: Float[Tensor, "_ seq _"],
    sin: Float[Tensor, "_ seq _"],
    rotary_dim: int,
    layout: RotaryLayout = "half-split",
) -> Float[Tensor, "batch head seq head_dim"]:
    """Apply RoPE in float32; the inverse of `mvquant.attention_states.unrotate`.

    `cos` and `sin` have an entry per pair or per rotary dim, and may carry an attention scaling. Dims beyond
    `rotary_dim` are returned as they are.

    >>> quarter = torch.tensor([[[0.0]]]), torch.tensor([[[1.0]]])
    >>> rotate(torch.tensor([[[[1.0, 0.0, 7.0]]]]), *quarter, rotary_dim=2)
    tensor([[[[0., 1., 7.]]]])
    """
    first, second = pair_slices(rotary_dim, layout)
    per_pair = slice(None) if cos.shape[-1] == rotary_dim // 2 else first
    cos, sin = (angles.float()[..., per_pair].unsqueeze(1) for angles in (cos, sin))
    before = states.float()
    turned = before.clone()
    turned[..., first] = before[..., first] * cos - before[..., second] * sin
    turned[..., second] = before[..., second] * cos + before[..., first] * sin
    return turned


def angles(
    inv_freq: Float[Tensor, " pair"], start: int, tokens: int
) -> tuple[Float[Tensor, "1 tokens pair"], Float[Tensor, "1 tokens pair"]]:
    """Return cosine and sine of every pair at positions from `start` on."""
    turns = torch.arange(start, start + tokens, dtype=torch.float64)[:, None] * inv_freq.double()
    return turns.cos().float()[None], turns.sin().float()[None]
