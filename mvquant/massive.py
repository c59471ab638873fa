"""Massive values: entries (head, dimension) of Q or K whose norm stands out in its head (Jin et al. 2025).

    M[h, d] = ||states[:, h, d]||_2        massive where M[h, d] > ratio * mean over d' of M[h, d']

Running sums over many sequences give the same mask as the states in one piece, and keep no activation.
Shapes: `seq` tokens, `head` query or key/value heads, `head_dim`, `pair` RoPE pairs (fastest first).
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mvquant.heads import RotaryLayout

PAPER_RATIO = 5.0
"""The paper's lambda, for heads of 128 dims."""


def default_ratio(head_dim: int) -> float:
    """Return the ratio that asks of a head of `head_dim` dims what 5 asks of 128.

    A dim with a given share of its head's energy stands out from the rest by the square root of the number
    of dims, so that a fixed 5 would ask more of small heads. Larger heads keep the paper's 5.

    >>> default_ratio(128), default_ratio(256), round(default_ratio(64), 2)
    (5.0, 5.0, 3.54)
    """
    return PAPER_RATIO * math.sqrt(min(head_dim, 128) / 128)


def head_ratios(norms: Float[Tensor, "head head_dim"]) -> Float[Tensor, "head head_dim"]:
    """Return each norm over the mean norm of its head; 0 throughout a head that is all zeros."""
    mean = norms.mean(dim=-1, keepdim=True)
    return torch.where(mean > 0, norms / mean, torch.zeros_like(norms))


def massive_mask(
    states: Float[Tensor, "seq head head_dim"], ratio: float = PAPER_RATIO
) -> Bool[Tensor, "head head_dim"]:
    """Mark the massive values of one sequence of Q, K or V states.

    Args:
        states: the heads of every token, before or after RoPE.
        ratio: how many times the mean norm of its head an entry must exceed.

    Returns:
        True where an entry is massive.

    >>> states = torch.ones(2, 1, 64)
    >>> states[:, 0, 7] = 50.0
    >>> massive_mask(states).nonzero().tolist()
    [[0, 7]]
    """
    return head_ratios(states.float().norm(dim=0)) > ratio


@dataclass(frozen=True)
class HeadMoments:
    """Sums over tokens that say all mvquant wants to know about the states of one role in one layer.

    Attributes:
        tokens: how many tokens were seen.
        total: sum of the states.
        squares: sum of the squared states.
        within_variance: variance over the tokens of one sequence, averaged over sequences by tokens.
            Softmax ignores what is constant over the keys of a sequence, so this is what counts of K.
    """

    tokens: int
    total: Float[Tensor, "head head_dim"]
    squares: Float[Tensor, "head head_dim"]
    within_variance: Float[Tensor, "head head_dim"]

    def norms(self) -> Float[Tensor, "head head_dim"]:
        """L2 norm over all tokens, the `M[h, d]` of the paper."""
        return self.squares.sqrt()

    def mean(self) -> Float[Tensor, "head head_dim"]:
        """Mean over all tokens."""
        return self.total / self.tokens

    def mean_square(self) -> Float[Tensor, "head head_dim"]:
        """Energy per token."""
        return self.squares / self.tokens

    def variance(self) -> Float[Tensor, "head head_dim"]:
        """Variance over all tokens, between sequences included."""
        return (self.mean_square() - self.mean().square()).clamp(min=0)

    def ratios(self) -> Float[Tensor, "head head_dim"]:
        """Each norm over the mean norm of its head."""
        return head_ratios(self.norms())

    def massive(self, ratio: float = PAPER_RATIO) -> Bool[Tensor, "head head_dim"]:
        """True where an entry is massive; see `massive_mask`."""
        return self.ratios() > ratio

    def pair_energy(self, rotary_dim: int, layout: RotaryLayout = "half-split") -> Float[Tensor, "head pair"]:
        """Energy per token of each RoPE pair, both dims together: a rotation leaves it as it is."""
        return pair_sums(self.mean_square(), rotary_dim, layout)


def pair_slices(rotary_dim: int, layout: RotaryLayout) -> tuple[slice, slice]:
    """Return where the first and the second dims of all pairs lie in a head, fastest first.

    The same as `pair_dims` says of one pair, as views instead of copies.

    >>> pair_slices(6, "interleaved")
    (slice(0, 6, 2), slice(1, 6, 2))
    """
    if layout == "half-split":
        return slice(0, rotary_dim // 2), slice(rotary_dim // 2, rotary_dim)
    return slice(0, rotary_dim, 2), slice(1, rotary_dim, 2)


def pair_sums(
    values: Float[Tensor, "head head_dim"], rotary_dim: int, layout: RotaryLayout = "half-split"
) -> Float[Tensor, "head pair"]:
    """Add up the two dims of every RoPE pair; dims beyond `rotary_dim` belong to none."""
    first, second = pair_slices(rotary_dim, layout)
    return values[:, first] + values[:, second]


def sequence_moments(states: Float[Tensor, "batch head seq head_dim"]) -> HeadMoments:
    """Return the moments of whole sequences, each its own for `within_variance`.

    Deviations are taken from each sequence's mean before squaring: K of Qwen2 has biases a hundred times
    its spread, where the difference of two large sums would be noise.
    """
    batch, _, seq, _ = states.shape
    states = states.float()
    total = states.sum(dim=2, dtype=torch.float64)
    mean = total / seq
    deviations = (states - mean.unsqueeze(2).float()).square().sum(dim=2, dtype=torch.float64)
    # The mean was rounded to float32 above; what that shifted the deviations by is taken out again.
    deviations -= seq * (mean - mean.float()).square()
    return HeadMoments(
        tokens=batch * seq,
        total=total.sum(dim=0),
        squares=(deviations + seq * mean.square()).sum(dim=0),
        within_variance=deviations.clamp(min=0).sum(dim=0) / (batch * seq),
    )


def merge_moments(first: HeadMoments, second: HeadMoments) -> HeadMoments:
    """Return the moments of both sets of sequences together."""
    tokens = first.tokens + second.tokens
    deviations = first.within_variance * first.tokens + second.within_variance * second.tokens
    return HeadMoments(
        tokens=tokens,
        total=first.total + second.total,
        squares=first.squares + second.squares,
        within_variance=deviations / tokens,
    )
