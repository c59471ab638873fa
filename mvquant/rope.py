"""RoPE as a model's config describes it: wavelengths of the pairs, the slow ones, and their rows.

A pair is two dims of a head that turn together; pairs are numbered fastest first. The frequencies of
scaled types (linear, dynamic, yarn, llama3, longrope) are the ones that transformers itself computes.
"""

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from mvquant.errors import UnsupportedModelError
from mvquant.heads import HeadRows, RotaryLayout

ROPE_TYPES: tuple[str, ...] = ("default", "linear", "dynamic", "yarn", "llama3", "longrope")
"""Values of `rope_type` that mvquant reads."""


def has_rope(config: PreTrainedConfig) -> bool:
    """Whether the model turns queries and keys by their position."""
    return bool(getattr(config, "rope_parameters", None))


def head_dim(config: PreTrainedConfig) -> int:
    """Dims of one query or key head."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def rotary_dim(config: PreTrainedConfig, layer_type: str | None = None) -> int:
    """The first dims of a head that RoPE turns: two per pair; 0 for a model without RoPE.

    Raises:
        UnsupportedModelError: an odd number of dims, which cannot be paired.
    """
    if not has_rope(config):
        return 0
    dims = head_dim(config)
    turned = int(dims * _rope_parameters(config, layer_type).get("partial_rotary_factor", 1.0))
    for name, size in (("head_dim", dims), ("rotary dim", turned)):
        if size % 2:
            message = f"{_name(config)}: {name} {size} is odd, but RoPE turns pairs of dims"
            raise UnsupportedModelError(message)
    return turned


def training_context(config: PreTrainedConfig, layer_type: str | None = None) -> int:
    """Tokens of context that the frequencies were trained with, before any stretching.

    That is `original_max_position_embeddings` where RoPE scaling sets it, else `max_position_embeddings`.
    """
    longest: int = config.max_position_embeddings
    if not has_rope(config) or (layer_type is None and _layer_types(config)):
        return longest
    return _rope_parameters(config, layer_type).get("original_max_position_embeddings") or longest


def wavelengths(
    config: PreTrainedConfig, layer_type: str | None = None, *, length: int | None = None
) -> Float[Tensor, " pair"]:
    """Tokens per full turn of each pair, fastest first, with RoPE scaling applied.

    Two types change their frequencies with the length of the text: beyond the training context
    `dynamic` raises its base, and `longrope` goes over from its short to its long factors. The default
    is the training context itself, because "slow" is a statement about that length: so `dynamic` is
    unscaled and `longrope` uses the short factors. Pass a greater `length` for the others.

    Args:
        config: a transformers config.
        layer_type: a key of `rope_parameters` where these differ by layer type (Gemma 3), as
            `"sliding_attention"`; of no effect where all layers share them.
        length: tokens of the text; the training context where None.

    Raises:
        UnsupportedModelError: no RoPE, an unknown rope type or layer type, an odd head_dim.

    >>> from transformers import LlamaConfig
    >>> config = LlamaConfig(hidden_size=64, num_attention_heads=8, rope_parameters={"rope_theta": 256.0})
    >>> (wavelengths(config) / (2 * math.pi)).round().tolist()
    [1.0, 4.0, 16.0, 64.0]
    """
    inverse_frequencies, _ = _frequencies(config, layer_type, length)
    return 2 * math.pi / inverse_frequencies


def attention_scaling(config: PreTrainedConfig, layer_type: str | None = None, *, length: int | None = None) -> float:
    """What RoPE multiplies queries and keys by, apart from turning them: 1 but for `yarn` and `longrope`.

    The arguments and errors are those of `wavelengths`.
    """
    return _frequencies(config, layer_type, length)[1]


def slow_pairs(config: PreTrainedConfig, layer_type: str | None = None) -> list[int]:
    """Pairs that turn at most once within the training context.

    >>> from transformers import LlamaConfig
    >>> rope = {"rope_theta": 256.0}
    >>> slow_pairs(LlamaConfig(head_dim=8, max_position_embeddings=100, rope_parameters=rope))
    [2, 3]
    """
    slow = wavelengths(config, layer_type) >= training_context(config, layer_type)
    return slow.nonzero().flatten().tolist()


def pair_rows(
    pair: int,
    head: int,
    *,
    head_dim: int,
    rotary_dim: int | None = None,
    layout: RotaryLayout = "half-split",
    start: int = 0,
    head_stride: int | None = None,
) -> tuple[int, int]:
    """The two rows of a projection that hold RoPE pair `pair` of head `head`.

    Args:
        pair: fastest first.
        head: a query head of `q_proj`, or a key head of `k_proj`.
        head_dim: dims of a head.
        rotary_dim: the first dims of a head that are turned; all of them where None.
        layout: which two dims make a pair.
        start: row of the first head, in a fused projection.
        head_stride: rows from one head to the next, where other roles lie in between.

    Raises:
        UnsupportedModelError: `head_dim` or `rotary_dim` is odd.
        IndexError: no such pair.

    >>> pair_rows(3, head=1, head_dim=8), pair_rows(3, head=1, head_dim=8, layout="interleaved")
    ((11, 15), (14, 15))
    """
    turned = head_dim if rotary_dim is None else rotary_dim
    if head_dim % 2 or turned % 2:
        message = f"head_dim {head_dim} with {turned} rotary dims: RoPE turns pairs, so both must be even"
        raise UnsupportedModelError(message)
    rows = HeadRows(
        module="projection",
        role="q",
        heads=head + 1,
        head_dim=head_dim,
        rotary_dim=turned,
        layout=layout,
        start=start,
        head_stride=head_stride,
    )
    return rows.pair_rows(pair, head)


def _frequencies(
    config: PreTrainedConfig, layer_type: str | None, length: int | None
) -> tuple[Float[Tensor, " pair"], float]:
    """Radians per token of each pair, fastest first, and the attention scaling."""
    parameters = _rope_parameters(config, layer_type)
    turned = rotary_dim(config, layer_type)
    rope_type = parameters.get("rope_type", "default")
    if rope_type not in ROPE_TYPES:
        message = f"{_name(config)}: unknown rope type {rope_type!r} (known: {', '.join(ROPE_TYPES)})"
        raise UnsupportedModelError(message)
    if rope_type == "default":
        exponents = torch.arange(0, turned, 2, dtype=torch.float32) / turned
        return 1.0 / parameters["rope_theta"] ** exponents, 1.0
    by_layer_type = layer_type if _layer_types(config) else None
    return ROPE_INIT_FUNCTIONS[rope_type](
        config,
        torch.device("cpu"),
        seq_len=length or training_context(config, layer_type),
        layer_type=by_layer_type,
    )


def _rope_parameters(config: PreTrainedConfig, layer_type: str | None) -> dict[str, Any]:
    if not has_rope(config):
        message = f"{_name(config)} has no RoPE: no pairs, no wavelengths, nothing that mv-protect could protect"
        raise UnsupportedModelError(message)
    by_layer_type = _layer_types(config)
    if not by_layer_type:
        return config.rope_parameters
    if layer_type not in by_layer_type:
        message = (
            f"{_name(config)}: RoPE differs by layer type, and {layer_type!r} is not one of "
            f"{', '.join(sorted(by_layer_type))}: pass one of them as layer_type"
        )
        raise UnsupportedModelError(message)
    return by_layer_type[layer_type]


def _layer_types(config: PreTrainedConfig) -> dict[str, dict[str, Any]]:
    """RoPE parameters by layer type; empty where all layers share theirs."""
    parameters = getattr(config, "rope_parameters", None) or {}
    return {name: value for name, value in parameters.items() if isinstance(value, dict)}


def _name(config: PreTrainedConfig) -> str:
    return f"model type {config.model_type!r}"
