import pytest
from transformers import OPTConfig

from mvquant.arch import FAMILIES
from mvquant.backends.llmcompressor.mappings import AWQ_ENTRIES, SMOOTHQUANT_ENTRIES, awq_mappings, smoothquant_mappings
from mvquant.errors import UnsupportedModelError
from tests.tiny_models import tiny_config

ABSENT = {"awq": {"gpt2"}, "smoothquant": {"gpt2", "olmo2"}}


def test_every_family_has_an_entry_or_is_known_to_have_none():
    assert set(FAMILIES) - set(AWQ_ENTRIES) == ABSENT["awq"]
    assert set(FAMILIES) - set(SMOOTHQUANT_ENTRIES) == ABSENT["smoothquant"]


def test_a_family_added_later_is_refused_rather_than_taken_for_llama():
    config = tiny_config("llama")
    config.model_type = "new"
    for mappings in (awq_mappings, smoothquant_mappings):
        with pytest.raises(UnsupportedModelError, match="new: it is not in the table"):
            mappings(config, experts=False)


@pytest.mark.parametrize("mappings", [awq_mappings, smoothquant_mappings])
def test_opt_with_norms_after_its_blocks_is_refused(mappings):
    with pytest.raises(UnsupportedModelError, match="do_layer_norm_before"):
        mappings(OPTConfig(do_layer_norm_before=False), experts=False)


def test_scales_pass_through_a_relu_and_nothing_else():
    relu = awq_mappings(OPTConfig(activation_function="relu"), experts=False)
    gelu = awq_mappings(OPTConfig(activation_function="gelu"), experts=False)
    assert len(relu) == len(gelu) + 1
    assert not any("fc2" in balanced for mapping in gelu for balanced in mapping.balance_layers)


def test_dense_layers_of_a_model_with_experts_have_no_router():
    config = tiny_config("qwen3_moe")
    with_experts, dense = awq_mappings(config, experts=True), awq_mappings(config, experts=False)
    assert any("mlp.gate$" in name for mapping in with_experts for name in mapping.balance_layers)
    assert not any("mlp.gate$" in name for mapping in dense for name in mapping.balance_layers)
