"""Configs for transformers 4.53, which ignores what it does not know: `rope_parameters` and `dtype`.

It then takes a RoPE base of 10000, whatever the model has, and says nothing.
"""

from typing import Any

from transformers import PreTrainedConfig


def legacy_config(config: PreTrainedConfig) -> dict[str, Any]:
    """Return the `config.json` of a model for transformers 4.53, with every default written out."""
    raw = config.to_dict()
    raw.pop("transformers_version", None)
    raw["torch_dtype"] = raw.pop("dtype", None)
    rope = raw.pop("rope_parameters", None)
    return raw if rope is None else {**raw, **legacy_rope(rope, config.model_type)}


def legacy_rope(rope: dict[str, Any], model_type: str) -> dict[str, Any]:
    """Return the keys that say in transformers 4.53 what `rope_parameters` says in 5.

    >>> legacy_rope({"rope_type": "default", "rope_theta": 500000.0}, "llama")
    {'rope_theta': 500000.0, 'rope_scaling': None}
    >>> legacy_rope({"rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": 0.5}, "gpt_neox")
    {'rotary_emb_base': 100.0, 'rotary_pct': 0.5, 'rope_scaling': None}
    """
    scaling = dict(rope)
    base = scaling.pop("rope_theta")
    partial = scaling.pop("partial_rotary_factor", None)
    is_scaled = scaling.get("rope_type", "default") != "default"
    names = ("rotary_emb_base", "rotary_pct") if model_type == "gpt_neox" else ("rope_theta", "partial_rotary_factor")
    return {
        names[0]: base,
        **({} if partial is None else {names[1]: partial}),
        "rope_scaling": scaling if is_scaled else None,
    }
