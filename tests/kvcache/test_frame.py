"""Undoing RoPE and applying it again, against transformers' own."""

import pytest
import torch

from mvquant.arch import model_view
from mvquant.attention_states import attention_states
from mvquant.errors import UnsupportedModelError
from mvquant.kvcache.frame import rotary_frame
from tests.tiny_models import ROPE_FAMILY_NAMES, tiny_model, tiny_tokens

YARN = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 10000.0, "original_max_position_embeddings": 32}
DYNAMIC = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
CASES = [*((name, {}) for name in ROPE_FAMILY_NAMES), ("llama", {"rope_parameters": YARN})]


@pytest.mark.parametrize(("family", "changes"), CASES)
def test_the_config_alone_undoes_the_models_own_rope(family: str, changes: dict[str, object]):
    model = tiny_model(family, **changes)
    view = model_view(model.config)
    positions = torch.arange(24).expand(2, -1)
    seen = []

    def compare(attention, states) -> None:
        frame = rotary_frame(model.config, attention.k, attention.layer_type)
        back = frame.turn_back(states.k, positions)
        assert torch.allclose(back, states.k_pre, atol=1e-5)
        assert torch.allclose(frame.turn(back, positions), states.k, atol=1e-5)
        seen.append(attention.layer)

    with torch.no_grad(), attention_states(model, view, compare):
        model(tiny_tokens())
    assert seen == list(range(len(view.attentions)))


def test_angles_that_change_with_the_length_are_refused_beyond_the_training_context():
    model = tiny_model("llama", rope_parameters=DYNAMIC)
    frame = rotary_frame(model.config, model_view(model.config).attentions[0].k, None)
    states = torch.zeros(1, 2, 1, 16)
    frame.turn_back(states, torch.tensor([[127]]))
    with pytest.raises(UnsupportedModelError, match=r"beyond 128 tokens.*'post-rope'"):
        frame.turn_back(states, torch.tensor([[128]]))
