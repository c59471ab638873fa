"""RoPE for cached keys, against transformers' own."""

import pytest
import torch
from transformers.models.cohere.modeling_cohere import apply_rotary_pos_emb as rotate_interleaved
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb as rotate_half_split

from mvquant.attention_states import unrotate
from mvquant.kvcache.rotation import angles, rotate

INV_FREQ = 100.0 ** (-torch.arange(4) / 4)


@pytest.mark.parametrize("layout", ["half-split", "interleaved"])
def test_it_is_transformers_rotation(layout):
    states = torch.randn(2, 3, 5, 8, generator=torch.Generator().manual_seed(0))
    cos, sin = angles(INV_FREQ, start=7, tokens=5)
    if layout == "half-split":
        expected, _ = rotate_half_split(states, states, torch.cat([cos, cos], -1), torch.cat([sin, sin], -1))
    else:
        both = [each.repeat_interleave(2, dim=-1) for each in (cos, sin)]
        expected, _ = rotate_interleaved(states, states, *both)
    torch.testing.assert_close(rotate(states, cos, sin, 8, layout), expected)


@pytest.mark.parametrize("rotary_dim", [8, 6])
@pytest.mark.parametrize("layout", ["half-split", "interleaved"])
def test_turning_back_gives_the_states(layout, rotary_dim):
    states = torch.randn(2, 3, 5, 8, generator=torch.Generator().manual_seed(1))
    cos, sin = (1.3 * each for each in angles(INV_FREQ[: rotary_dim // 2], start=0, tokens=5))
    turned = rotate(states, cos, sin, rotary_dim, layout)
    torch.testing.assert_close(unrotate(turned, cos, sin, rotary_dim, layout), states)
    assert turned[..., rotary_dim:].equal(states[..., rotary_dim:])
