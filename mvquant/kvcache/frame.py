"""Keys as they were before RoPE: turned back before they are packed, turned again when they are read.

A cache is handed keys after RoPE. What it needs to turn them back is how far each pair turns per position, and the
position of each column, which is its distance from the first column of its row that is not padding.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedConfig

from mvquant.attention_states import unrotate
from mvquant.errors import UnsupportedModelError
from mvquant.heads import HeadRows, RotaryLayout
from mvquant.rope import attention_scaling, training_context, wavelengths


@dataclass(frozen=True)
class RotaryFrame:
    """How far the pairs of one layer's keys turn per position, and which dims of a head they are."""

    radians: Float[Tensor, " pair"]
    rotary_dim: int
    layout: RotaryLayout
    scaling: float = 1.0
    """What the turned dims were multiplied by besides."""
    limit: int | None = None
    """Positions up to which the angles hold, where they change with the length of the text."""

    def turn_back(
        self, states: Float[Tensor, "batch head column head_dim"], positions: Int[Tensor, "batch column"]
    ) -> Float[Tensor, "batch head column head_dim"]:
        """Undo RoPE; the states keep their dtype.

        Raises:
            UnsupportedModelError: a position beyond `limit`.
        """
        if self.limit is not None and int(positions.max()) >= self.limit:
            message = (
                f"this model's RoPE changes its angles beyond {self.limit} tokens, so keys cannot be packed there as "
                "they were before RoPE: use a plan with stage 'post-rope'"
            )
            raise UnsupportedModelError(message)
        cos, sin = self._angles(positions)
        return unrotate(states, cos * self.scaling, sin * self.scaling, self.rotary_dim, self.layout).to(states.dtype)

    def turn(
        self, states: Float[Tensor, "batch head column head_dim"], positions: Int[Tensor, "batch column"]
    ) -> Float[Tensor, "batch head column head_dim"]:
        """Apply RoPE; the states keep their dtype."""
        cos, sin = self._angles(positions)
        # unrotate divides by the square of the length of (cos, sin)
        turned = unrotate(states, cos / self.scaling, -sin / self.scaling, self.rotary_dim, self.layout)
        return turned.to(states.dtype)

    def _angles(self, positions: Int[Tensor, "batch column"]) -> tuple[Tensor, Tensor]:
        angles = positions[..., None].float() * self.radians.to(positions.device)
        return angles.cos(), angles.sin()


def rotary_frame(config: PreTrainedConfig, keys: HeadRows, layer_type: str | None) -> RotaryFrame:
    """Read a layer's frame off the model's config.

    Args:
        config: the model's config.
        keys: the key heads of the layer.
        layer_type: as in `mvquant.arch.AttentionView`.

    Raises:
        UnsupportedModelError: the model has no RoPE.
    """
    radians = 2 * math.pi / wavelengths(config, layer_type)
    context = training_context(config, layer_type)
    varies = not torch.equal(2 * math.pi / wavelengths(config, layer_type, length=2 * context), radians)
    return RotaryFrame(
        radians, keys.rotary_dim, keys.layout, attention_scaling(config, layer_type), context if varies else None
    )
