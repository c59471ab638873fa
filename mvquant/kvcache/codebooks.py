"""Levels for channels of known mean and deviation: Lloyd-Max for the normal distribution.

Max, "Quantizing for minimum distortion" (1960), Lloyd, "Least squares quantization in PCM" (1982): every level is
the mean of its cell, every border lies halfway between two levels. Solved by Newton's method.
"""

import math
from functools import cache

import torch
from jaxtyping import Float64
from torch import Tensor

_STEPS = 12


@cache
def normal_levels(bits: int) -> Float64[Tensor, " level"]:
    """Return the 2^bits levels with the least mean squared error on a standard normal variable, rising.

    >>> normal_levels(1).round(decimals=4).tolist()
    [-0.7979, 0.7979]
    >>> normal_levels(2).round(decimals=4).tolist()
    [-1.5104, -0.4528, 0.4528, 1.5104]
    """
    count = 1 << bits
    # Levels of many bits lie as dense as the cube root of the density (Panter and Dite 1951): a normal of variance 3.
    ranks = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    levels = math.sqrt(3) * torch.special.ndtri(ranks)
    for _ in range(_STEPS):
        means, slopes = _cell_means(borders(levels))
        levels = levels - torch.linalg.solve(torch.eye(count, dtype=levels.dtype) - slopes, levels - means)
    return levels


def borders(levels: Float64[Tensor, " level"]) -> Float64[Tensor, " border"]:
    """Where the nearest level changes."""
    return (levels[1:] + levels[:-1]) / 2


@cache
def normal_error(bits: int) -> float:
    """Return the mean squared error that `normal_levels` leaves of a variance of 1.

    >>> round(normal_error(1), 4), round(normal_error(2), 4)
    (0.3634, 0.1175)
    """
    if bits >= 16:
        return 0.0
    levels = normal_levels(bits)
    edges = torch.special.ndtr(
        torch.cat([levels.new_tensor([-math.inf]), borders(levels), levels.new_tensor([math.inf])])
    )
    # With every level the mean of its cell, what is lost is the variance minus that of the levels.
    return 1.0 - float((edges.diff() * levels.square()).sum())


def _cell_means(
    inner: Float64[Tensor, " border"],
) -> tuple[Float64[Tensor, " level"], Float64[Tensor, "level level"]]:
    """Means of the cells between these borders, and their derivatives by the levels whose halfway points these are."""
    edges = torch.cat([inner.new_tensor([-math.inf]), inner, inner.new_tensor([math.inf])])
    density = torch.exp(-edges.square() / 2) / math.sqrt(2 * math.pi)
    share = torch.special.ndtr(edges).diff()
    means = -density.diff() / share
    upward = density[1:-1] * (inner - means[:-1]) / share[:-1] / 2
    downward = density[1:-1] * (means[1:] - inner) / share[1:] / 2
    below, above = torch.cat([downward.new_zeros(1), downward]), torch.cat([upward, upward.new_zeros(1)])
    return means, torch.diag(below + above) + torch.diag(upward, 1) + torch.diag(downward, -1)
