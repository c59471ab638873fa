"""What transformers 4.53 is told: everything that it would otherwise make up."""

import json

import pytest
from transformers import AutoConfig

from mvquant.backends.auto_gptq.legacy_config import legacy_config
from tests.tiny_models import tiny_config

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def test_the_rope_base_survives():
    legacy = legacy_config(tiny_config("llama", rope_parameters={"rope_type": "default", "rope_theta": 500000.0}))
    assert (legacy["rope_theta"], legacy["rope_scaling"]) == (500000.0, None)
    assert "rope_parameters" not in legacy


def test_scaled_rope_survives():
    legacy = legacy_config(tiny_config("llama", rope_parameters=LLAMA3))
    assert legacy["rope_theta"] == 500000.0
    assert legacy["rope_scaling"] == {name: value for name, value in LLAMA3.items() if name != "rope_theta"}


def test_the_dtype_is_named_as_it_was():
    legacy = legacy_config(tiny_config("llama", dtype="bfloat16"))
    assert legacy["torch_dtype"] == "bfloat16"
    assert "dtype" not in legacy


def test_gpt_neox_has_names_of_its_own():
    legacy = legacy_config(tiny_config("gpt_neox"))
    assert (legacy["rotary_emb_base"], legacy["rotary_pct"]) == (10000.0, 0.25)


def test_defaults_are_written_out():
    legacy = legacy_config(tiny_config("mistral"))
    assert {"rms_norm_eps", "hidden_act", "attention_dropout", "sliding_window"} <= set(legacy)


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "gpt_neox"])
def test_transformers_5_reads_the_same_rope_from_it(family, tmp_path):
    config = tiny_config(family)
    (tmp_path / "config.json").write_text(json.dumps(legacy_config(config)))
    assert AutoConfig.from_pretrained(tmp_path).rope_parameters == config.rope_parameters
