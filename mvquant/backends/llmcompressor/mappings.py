"""Where the decoder layers of a family take scales: which output is divided, and which weights are multiplied.

The package has tables by architecture, and takes Llama's for all others. With SmoothQuant for Gemma and OLMo 2 that
breaks the model without a word: the norm after their attention does not feed the MLP. So every family is named here,
with the package's entry where that is right, and one that is not named is refused.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedConfig

from mvquant.backends.llmcompressor.package import package
from mvquant.errors import UnsupportedModelError

Scaled = tuple[str, tuple[str, ...]]
"""Ends of names of modules: the one whose output is divided, and those whose weights are multiplied."""

_QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
_BEFORE_MLP: tuple[Scaled, ...] = (
    ("input_layernorm", _QKV),
    ("pre_feedforward_layernorm", ("mlp.gate_proj", "mlp.up_proj")),
)
_NEOX: tuple[Scaled, ...] = (
    ("input_layernorm", ("attention.query_key_value",)),
    ("post_attention_layernorm", ("mlp.dense_h_to_4h",)),
)
_OPT: tuple[Scaled, ...] = (("self_attn_layer_norm", _QKV), ("final_layer_norm", ("fc1",)))
_OPT_WITHIN: tuple[Scaled, ...] = (("self_attn.v_proj", ("self_attn.out_proj",)),)
_OPT_RELU: tuple[Scaled, ...] = (("fc1", ("fc2",)),)
"""Scales pass through a ReLU, and through no other activation."""

AWQ_ENTRIES: Mapping[str, str | tuple[Scaled, ...]] = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
    "cohere": "CohereForCausalLM",
    "phi3": "Phi3ForCausalLM",
    "olmo2": "Olmo3ForCausalLM",
    "mixtral": "Qwen3MoeForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
    "gpt_neox": _NEOX,
    "opt": (*_OPT, *_OPT_WITHIN, *_OPT_RELU),
}
"""By family: the architecture in the package's table that is built like it, or what the table lacks."""

SMOOTHQUANT_ENTRIES: Mapping[str, str | tuple[Scaled, ...]] = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gemma2": _BEFORE_MLP,
    "gemma3_text": _BEFORE_MLP,
    "cohere": "CohereForCausalLM",
    "phi3": "Phi3ForCausalLM",
    "mixtral": "MixtralForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
    "gpt_neox": _NEOX,
    "opt": _OPT,
}

_DENSE = "LlamaForCausalLM"
"""What the dense layers of a model with experts are like."""

_WHY = {
    "gpt2": "its Conv1D weights lie the other way round than the package's code takes them",
    "olmo2": "its norms come after attention and MLP, and feed no weight",
}


def awq_mappings(config: PreTrainedConfig, *, experts: bool) -> list[Any]:
    """Return the package's mappings for the layers of a family.

    Args:
        config: of the model.
        experts: whether it is a layer with experts.

    Raises:
        UnsupportedModelError: AWQ cannot scale this family.
    """
    found = _entry(AWQ_ENTRIES, config, "AWQ", experts=experts)
    module = package("modifiers.transform.awq.mappings")
    if isinstance(found, str):
        return list(module.AWQ_MAPPING_REGISTRY[found])
    return [module.AWQMapping(_pattern(smooth), [*map(_pattern, balance)]) for smooth, balance in found]


def smoothquant_mappings(config: PreTrainedConfig, *, experts: bool) -> list[Any]:
    """Return the package's mappings for the layers of a family; arguments and errors are those of `awq_mappings`."""
    found = _entry(SMOOTHQUANT_ENTRIES, config, "SmoothQuant", experts=experts)
    module = package("modifiers.transform.smoothquant.utils")
    if isinstance(found, str):
        return list(module.MAPPINGS_REGISTRY[found])
    return [module.LayerMap([*map(_pattern, balance)], _pattern(smooth)) for smooth, balance in found]


def _entry(
    entries: Mapping[str, str | tuple[Scaled, ...]], config: PreTrainedConfig, method: str, *, experts: bool
) -> str | Sequence[Scaled]:
    family = config.model_type
    if family not in entries:
        raise _unsupported(family, method, _WHY.get(family, "it is not in the table of families with places for them"))
    if family == "opt" and not config.do_layer_norm_before:
        raise _unsupported("this opt model", method, "its norms come after attention and MLP (do_layer_norm_before)")
    found = entries[family]
    if isinstance(found, str):
        return _DENSE if "Moe" in found and not experts else found
    dropped = _OPT_RELU if family == "opt" and config.activation_function != "relu" else ()
    return [scaled for scaled in found if scaled not in dropped]


def _unsupported(what: str, method: str, why: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"{method} by llmcompressor has nowhere to put scales in {what}: {why}; use method gptq, autoround or rtn"
    )


def _pattern(name: str) -> str:
    r"""Make a pattern of the package for a module of a decoder layer.

    >>> print(_pattern("mlp.up_proj"))
    re:.*\.\d+\.mlp\.up_proj$
    """
    escaped = name.replace(".", r"\.")
    return rf"re:.*\.\d+\.{escaped}$"
