"""The table of model families: where their decoder layers keep queries, keys, values and experts.

To add a family: one line in `FAMILIES` and one tiny config in `tests/tiny_models.py`; the tests then
check every claim of the line against transformers' own forward pass.
"""

from dataclasses import dataclass
from typing import Literal

from mvquant.heads import RotaryLayout

Fusion = Literal["separate", "stacked", "by-head"]
"""How Q, K and V share modules: one each; one module with rows [Q | K | V]; one with [Q, K, V] head by head."""


@dataclass(frozen=True)
class Family:
    """Module names of one `model_type`, relative to the module that holds them."""

    layers: str = "model.layers"
    """The list of decoder layers, from the root."""
    attention: str = "self_attn"
    """The attention, in a decoder layer."""
    projections: tuple[str, ...] = ("q_proj", "k_proj", "v_proj")
    """Q, K and V in the attention; one name where they are fused."""
    fusion: Fusion = "separate"
    layout: RotaryLayout = "half-split"
    rope: bool = True
    partial_rotary: bool = False
    """Whether `partial_rotary_factor` is read; the others turn all dims of a head."""
    experts: str = ""
    """The module with 3-D parameters `[experts, rows, columns]`, in a decoder layer; empty for dense models."""


_LLAMA = Family()
_MIXTURE = Family(experts="mlp.experts")

FAMILIES: dict[str, Family] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "gemma2": _LLAMA,
    "gemma3_text": _LLAMA,
    "olmo2": _LLAMA,
    "cohere": Family(layout="interleaved"),
    "phi3": Family(projections=("qkv_proj",), fusion="stacked", partial_rotary=True),
    "gpt_neox": Family(
        layers="gpt_neox.layers",
        attention="attention",
        projections=("query_key_value",),
        fusion="by-head",
        partial_rotary=True,
    ),
    "mixtral": _MIXTURE,
    "qwen3_moe": _MIXTURE,
    "opt": Family(layers="model.decoder.layers", rope=False),
    "gpt2": Family(layers="transformer.h", attention="attn", projections=("c_attn",), fusion="stacked", rope=False),
}
"""Every family that mvquant handles, by `config.model_type`."""
