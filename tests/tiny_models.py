"""Tiny random models of every family, built from configs: no download, a few milliseconds each."""

import copy

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

CONTEXT = 128
VOCABULARY = 128

_IDS = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_LLAMA = {
    **_IDS,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": CONTEXT,
    "initializer_range": 0.1,
    "tie_word_embeddings": False,
}
# some configs have no head_dim: it is the hidden size divided by the heads
_HIDDEN_BY_HEADS = {name: value for name, value in _LLAMA.items() if name != "head_dim"}
_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
_PHI3 = {**_HIDDEN_BY_HEADS, "original_max_position_embeddings": CONTEXT}

# Local and global layers alternate in Gemma; the windows are shorter than the context so that it matters.
_GEMMA = {**_LLAMA, "tie_word_embeddings": True, "sliding_window": 16, "query_pre_attn_scalar": 24}

_CONFIGS: dict[str, tuple[str, dict[str, object]]] = {
    "llama": ("llama", _LLAMA),
    "mistral": ("mistral", {**_LLAMA, "head_dim": 32, "sliding_window": None}),
    "qwen2": ("qwen2", {**_HIDDEN_BY_HEADS, "tie_word_embeddings": True}),
    "qwen3": ("qwen3", {**_LLAMA, "head_dim": 32}),
    "gemma2": ("gemma2", _GEMMA),
    "gemma3_text": (
        "gemma3_text",
        {
            **_GEMMA,
            "num_hidden_layers": 3,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
            "rope_parameters": {
                "sliding_attention": _ROPE,
                "full_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e6},
            },
        },
    ),
    "cohere": ("cohere", {**_HIDDEN_BY_HEADS, "tie_word_embeddings": True}),
    "phi3": ("phi3", _PHI3),
    "phi3_partial": ("phi3", {**_PHI3, "rope_parameters": {**_ROPE, "partial_rotary_factor": 0.75}}),
    "gpt_neox": (
        "gpt_neox",
        {
            **_IDS,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "max_position_embeddings": CONTEXT,
            "initializer_range": 0.1,
            "rope_parameters": {**_ROPE, "partial_rotary_factor": 0.25},
        },
    ),
    "olmo2": ("olmo2", _HIDDEN_BY_HEADS),
    "mixtral": ("mixtral", {**_LLAMA, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None}),
    "qwen3_moe": (
        "qwen3_moe",
        {**_LLAMA, "moe_intermediate_size": 32, "num_experts": 4, "num_experts_per_tok": 2},
    ),
    "opt": (
        "opt",
        {
            **_IDS,
            "hidden_size": 64,
            "ffn_dim": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": CONTEXT,
            "word_embed_proj_dim": 64,
            "init_std": 0.1,
        },
    ),
    "gpt2": (
        "gpt2",
        {
            **_IDS,
            "n_embd": 64,
            "n_inner": 128,
            "n_layer": 2,
            "n_head": 4,
            "n_positions": CONTEXT,
            "initializer_range": 0.1,
        },
    ),
}

FAMILY_NAMES: tuple[str, ...] = tuple(_CONFIGS)
ROPE_FAMILY_NAMES: tuple[str, ...] = tuple(name for name in _CONFIGS if name not in ("opt", "gpt2"))


def tiny_config(family: str, **changes: object) -> PreTrainedConfig:
    """A config of 2 layers (3 for Gemma 3) and hidden size 64; every Linear's input is a multiple of 32."""
    model_type, fields = _CONFIGS[family]
    return AutoConfig.for_model(model_type, **copy.deepcopy({**fields, **changes}))


def tiny_model(family: str, seed: int = 0, dtype: torch.dtype = torch.float32, **changes: object) -> PreTrainedModel:
    """A random model in eval mode, equal for equal seeds; biases and norm weights are random as well."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(tiny_config(family, **changes), dtype=dtype)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 1:  # norms start at a constant and biases at 0, which would hide mistakes
                    parameter.add_(torch.randn(parameter.shape).to(dtype), alpha=0.1)
    return model.eval()


def tiny_tokens(sequences: int = 2, length: int = 24, seed: int = 0) -> torch.Tensor:
    """Random token ids, special ones left out."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCABULARY, (sequences, length), generator=generator)
