"""TurboQuant-MSE (Zandieh et al., arXiv 2504.19874, algorithm 1), from its description.

A vector is divided by its norm, which is kept as float16, and turned by a random rotation; then every coordinate is
close to normal with variance 1/d and is rounded to the Lloyd-Max levels of that distribution. What is decoded gets
the kept norm back. Fractional bits: the first coordinates after the rotation get one bit more.
"""

import math
from functools import cache

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mvquant.kvcache.codebooks import borders, normal_levels

Keys = Float[Tensor, "seq head head_dim"]


@cache
def rotation(dims: int, seed: int) -> Float[Tensor, "dims dims"]:
    """A rotation drawn uniformly (Haar), the same for equal seeds."""
    normal = torch.randn(dims, dims, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    orthogonal, triangle = torch.linalg.qr(normal)
    return orthogonal * triangle.diagonal().sign()


def rotated_rounding(
    vectors: Float[Tensor, "*rows dims"], bits: Int[Tensor, " dims"], seed: int
) -> Float[Tensor, "*rows dims"]:
    """Encode and decode vectors; `bits` of each coordinate after the rotation."""
    dims = vectors.shape[-1]
    turn = rotation(dims, seed)
    norm = vectors.double().norm(dim=-1, keepdim=True).half().double()
    unit = vectors.double() / norm.clamp(min=torch.finfo(torch.float16).tiny) @ turn.T
    decoded = torch.zeros_like(unit)
    for width in bits.unique().tolist():
        levels = normal_levels(width) / math.sqrt(dims)
        decoded[..., bits == width] = levels[torch.bucketize(unit[..., bits == width].contiguous(), borders(levels))]
    decoded = decoded / decoded.norm(dim=-1, keepdim=True)
    return (decoded @ turn * norm).to(vectors.dtype)


def turboquant(k: Keys, average: float, seed: int = 0) -> tuple[Keys, float]:
    """Round every key of every head.

    Returns:
        Rounded keys, and bits per value with one float16 norm per key. The rotation follows from its seed.
    """
    dims = k.shape[-1]
    more = round((average % 1) * dims)
    bits = torch.full((dims,), int(average)) + (torch.arange(dims) < more)
    return rotated_rounding(k, bits, seed), float(bits.double().mean()) + 16 / dims
