"""Uniform grids over the range of their group: per token, and per channel of a group of tokens.

Scales and zero points are float16. Per channel is how KIVI rounds K (Liu et al., arXiv 2402.02750), with its groups of
32 tokens; tokens that do not fill a group are kept. Fractional bits are whole bits mixed evenly over the pairs.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

Keys = Float[Tensor, "seq head head_dim"]


def even_bits(average: float, head_dim: int) -> Int[Tensor, " head_dim"]:
    """Whole bits of every dim with this average, the larger ones spread evenly over the pairs (half-split).

    >>> even_bits(2.5, 8).tolist()
    [2, 3, 2, 3, 2, 3, 2, 3]
    """
    pairs = head_dim // 2
    steps = torch.floor(torch.arange(pairs + 1, dtype=torch.float64) * (average % 1) + 1e-9)
    bits = int(average) + steps.diff().long()
    return torch.cat([bits, bits])


def per_token(k: Keys, average: float) -> tuple[Keys, float]:
    """Round every token and head over the range of its dims of one width.

    Returns:
        Rounded keys, and bits per value with a float16 scale and zero point for each width.
    """
    bits = even_bits(average, k.shape[-1])
    rounded = k.clone()
    for width in bits.unique().tolist():
        rounded[..., bits == width] = _min_max(k[..., bits == width], width, dim=-1)
    return rounded, float(bits.double().mean()) + 32 * len(bits.unique()) / k.shape[-1]


def per_channel(k: Keys, average: float, group: int = 32) -> tuple[Keys, float]:
    """Round every channel over the range of a group of tokens; see `per_token`. What fills no group is kept."""
    bits = even_bits(average, k.shape[-1])
    rounded = k.clone()
    for start in range(0, len(k) - group + 1, group):
        block = slice(start, start + group)
        for width in bits.unique().tolist():
            rounded[block, :, bits == width] = _min_max(k[block, :, bits == width], width, dim=0)
    return rounded, float(bits.double().mean()) + 32 / group


def _min_max(values: Tensor, width: int, dim: int) -> Tensor:
    low = values.amin(dim, keepdim=True).half().to(values.dtype)
    step = ((values.amax(dim, keepdim=True) - low) / (2**width - 1)).half().to(values.dtype)
    step = torch.where(step > 0, step, torch.ones_like(step))
    return ((values - low) / step).round().clamp(0, 2**width - 1) * step + low
