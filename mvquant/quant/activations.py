"""Rounded activations: what the rows of a `w8a8` scheme are multiplied with.

`state ~ integer * scale` with integers in [-128, 127] and one scale per token (the last axis of the states), or one
for all of them, known from calibration. Both are compressed-tensors' (`calculate_qparams`, `fake_quantize`) to the
bit, which works in the dtype of the states throughout: the scale is `largest / 127.5` (or `eps` where all is zero),
the quotient is rounded to the dtype, clamped, and only then to an integer, ties to even.

One difference: states of one or two axes have a scale per token here too, where compressed-tensors takes one for all.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from mvquant.scheme import WeightScheme

LOWEST, HIGHEST = -128, 127


def activation_scale(largest: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    """Return the scale of activations whose largest magnitude is known, in its dtype.

    >>> activation_scale(torch.tensor([255.0, 0.0]))
    tensor([2.0000e+00, 1.1921e-07])
    """
    # a tensor, not a number: CUDA would multiply by a rounded reciprocal of the number
    scale = largest / torch.full_like(largest, (HIGHEST - LOWEST) / 2)
    return scale.masked_fill(scale == 0, torch.finfo(scale.dtype).eps)


def token_scale(states: Float[Tensor, "*batch columns"]) -> Float[Tensor, "*batch 1"]:
    """Return one scale per token."""
    return activation_scale(states.abs().amax(dim=-1, keepdim=True))


def scale_of(
    states: Float[Tensor, "*batch columns"], scheme: WeightScheme, input_scale: Float[Tensor, "1"] | None
) -> Float[Tensor, "..."]:
    """Return the scales that a scheme gives to states: per token, or the known one, in the dtype of the states."""
    return token_scale(states) if input_scale is None or scheme.activations == "token" else input_scale.to(states.dtype)


def to_integers(states: Float[Tensor, "*batch columns"], scale: Tensor) -> Float[Tensor, "*batch columns"]:
    """Round states to integers, which are returned in the dtype of the states.

    >>> to_integers(torch.tensor([[-300.0, 1.0, 3.0, 300.0]]), torch.tensor([2.0]))
    tensor([[-128.,    0.,    2.,  127.]])
    """
    return (states / scale).clamp_(LOWEST, HIGHEST).round_()


def rounded(
    states: Float[Tensor, "*batch columns"], scheme: WeightScheme, input_scale: Float[Tensor, "1"] | None
) -> Float[Tensor, "*batch columns"]:
    """Round states to the grid of their scales; gradients pass as if nothing were rounded.

    >>> rounded(torch.tensor([[127.5, 63.4]]), WeightScheme.model_validate("w8a8"), None)
    tensor([[127.,  63.]])
    """
    plain = states.detach()
    scale = scale_of(plain, scheme, input_scale)
    result = to_integers(plain, scale).mul_(scale)
    return result + (states - plain) if states.requires_grad else result
