"""Wavelengths against transformers' rotary modules and against closed forms; pairs against its rotations."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig
from transformers.models.cohere import modeling_cohere
from transformers.models.glm import modeling_glm
from transformers.models.gpt_neox import modeling_gpt_neox
from transformers.models.gptj import modeling_gptj
from transformers.models.llama import modeling_llama
from transformers.models.phi3 import modeling_phi3

from mvquant import rope
from mvquant.errors import UnsupportedModelError
from tests.tiny_models import ROPE_FAMILY_NAMES, tiny_config, tiny_model

DIMS, THETA, CONTEXT, ORIGINAL = 16, 10000.0, 512, 128
PLAIN = [2 * math.pi * THETA ** (2 * pair / DIMS) for pair in range(DIMS // 2)]
LONG = [1.0 + pair for pair in range(DIMS // 2)]
SHORT = [1.0 + pair / 10 for pair in range(DIMS // 2)]

SCALED = {
    "default": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "factor": 4.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": ORIGINAL},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": ORIGINAL,
    },
    "longrope": {
        "rope_type": "longrope",
        "factor": 4.0,
        "short_factor": SHORT,
        "long_factor": LONG,
        "original_max_position_embeddings": ORIGINAL,
    },
}


def llama(**parameters) -> LlamaConfig:
    return LlamaConfig(
        hidden_size=64,
        num_attention_heads=4,
        max_position_embeddings=CONTEXT,
        rope_parameters={"rope_theta": THETA, **parameters},
    )


def by_hand(rope_type: str) -> list[float]:
    """The published formulas, one pair at a time."""
    if rope_type == "yarn":  # arXiv 2309.00071, section 3.2: ramp over the pairs between 32 and 1 turns
        edges = [DIMS * math.log(ORIGINAL / (turns * 2 * math.pi)) / (2 * math.log(THETA)) for turns in (32, 1)]
        low, high = max(math.floor(edges[0]), 0), min(math.ceil(edges[1]), DIMS - 1)
        ramps = [min(max((pair - low) / (high - low), 0), 1) for pair in range(DIMS // 2)]
        return [1 / ((1 - ramp) / plain + ramp / (4 * plain)) for plain, ramp in zip(PLAIN, ramps, strict=True)]
    if rope_type == "llama3":  # Llama 3.1's `apply_scaling`
        scaled = []
        for plain in PLAIN:
            blend = min(max((ORIGINAL / plain - 1) / (4 - 1), 0), 1)
            scaled.append(1 / (blend / plain + (1 - blend) / (8 * plain)))
        return scaled
    factors = {"linear": [4.0] * 8, "longrope": SHORT}.get(rope_type, [1.0] * 8)
    return [plain * factor for plain, factor in zip(PLAIN, factors, strict=True)]


@pytest.mark.parametrize("rope_type", SCALED)
def test_wavelengths_equal_the_published_formulas(rope_type):
    ours = rope.wavelengths(llama(**SCALED[rope_type]))

    torch.testing.assert_close(ours, torch.tensor(by_hand(rope_type)), rtol=1e-5, atol=0)


@pytest.mark.parametrize("rope_type", SCALED)
def test_wavelengths_equal_the_rotary_module_of_transformers(rope_type):
    config = llama(**SCALED[rope_type])

    theirs = 2 * math.pi / modeling_llama.LlamaRotaryEmbedding(config).inv_freq

    assert torch.equal(rope.wavelengths(config), theirs)


@pytest.mark.parametrize("length", [ORIGINAL, ORIGINAL + 1, CONTEXT, 4 * CONTEXT])
@pytest.mark.parametrize("rope_type", ["dynamic", "longrope"])
def test_wavelengths_follow_the_length_of_the_text_as_in_the_forward_pass(rope_type, length):
    config = llama(**SCALED[rope_type])
    module = modeling_llama.LlamaRotaryEmbedding(config)

    module(torch.zeros(1, length, DIMS), torch.arange(length)[None])

    torch.testing.assert_close(
        rope.wavelengths(config, length=length), 2 * math.pi / module.inv_freq, rtol=1e-6, atol=0
    )


def test_longrope_uses_long_factors_beyond_the_training_context():
    ours = rope.wavelengths(llama(**SCALED["longrope"]), length=ORIGINAL + 1)

    torch.testing.assert_close(ours, torch.tensor(PLAIN) * torch.tensor(LONG), rtol=1e-5, atol=0)


@pytest.mark.parametrize("family", ROPE_FAMILY_NAMES)
def test_wavelengths_equal_the_rotary_buffers_of_every_family(family):
    model = tiny_model(family)
    theirs = {
        name.rpartition(".")[2].removesuffix("inv_freq").rstrip("_") or None: 2 * math.pi / buffer
        for name, buffer in model.named_buffers()
        if name.endswith("inv_freq") and "original" not in name
    }

    assert theirs
    for layer_type, expected in theirs.items():
        torch.testing.assert_close(rope.wavelengths(model.config, layer_type), expected, rtol=1e-6, atol=0)
        assert rope.rotary_dim(model.config, layer_type) == 2 * len(expected)


def test_layer_types_differ_in_gemma_3():
    config = tiny_config("gemma3_text")
    local, far = (rope.wavelengths(config, name) for name in ("sliding_attention", "full_attention"))

    assert far[0] == 2 * local[0]
    assert far[-1] > 50 * local[-1]
    assert len(rope.slow_pairs(config, "full_attention")) > len(rope.slow_pairs(config, "sliding_attention"))


def test_a_layer_type_is_ignored_where_all_layers_share_their_rope():
    config = tiny_config("gemma2")

    assert torch.equal(rope.wavelengths(config, "sliding_attention"), rope.wavelengths(config))


@pytest.mark.parametrize(
    ("rope_type", "context"),
    [("default", CONTEXT), ("linear", CONTEXT), ("yarn", ORIGINAL), ("llama3", ORIGINAL), ("longrope", ORIGINAL)],
)
def test_training_context_is_the_one_before_stretching(rope_type, context):
    assert rope.training_context(llama(**SCALED[rope_type])) == context


@pytest.mark.parametrize("rope_type", SCALED)
def test_slow_pairs_turn_at_most_once_within_the_training_context(rope_type):
    config = llama(**SCALED[rope_type])
    context = rope.training_context(config)

    slow = rope.slow_pairs(config)

    assert slow == [pair for pair, length in enumerate(by_hand(rope_type)) if length >= context]
    assert slow == list(range(slow[0], DIMS // 2))


def test_llama_2_has_the_slow_pairs_of_the_paper():
    config = LlamaConfig(max_position_embeddings=4096, rope_parameters={"rope_theta": 10000.0})

    assert rope.head_dim(config) == 128
    assert rope.slow_pairs(config) == list(range(46, 64))


GLM = modeling_glm.GlmConfig(
    hidden_size=64,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    rope_parameters={"rope_type": "default", "rope_theta": THETA, "partial_rotary_factor": 0.5},
)
THEIRS = {
    "llama": ("half-split", tiny_config("llama"), modeling_llama, modeling_llama.LlamaRotaryEmbedding),
    "phi3": ("half-split", tiny_config("phi3_partial"), modeling_phi3, modeling_phi3.Phi3RotaryEmbedding),
    "gpt_neox": ("half-split", tiny_config("gpt_neox"), modeling_gpt_neox, modeling_gpt_neox.GPTNeoXRotaryEmbedding),
    "cohere": ("interleaved", tiny_config("cohere"), modeling_cohere, modeling_cohere.CohereRotaryEmbedding),
    "glm": ("interleaved", GLM, modeling_glm, modeling_glm.GlmRotaryEmbedding),
    "gptj": ("interleaved", tiny_config("llama"), modeling_gptj, None),
}


def turn_one_dim(name: str, dim: int) -> torch.Tensor:
    """[position, dim] of a head whose only energy is in `dim`, after transformers' `apply_rotary_pos_emb`."""
    _, config, module, embedding = THEIRS[name]
    states = torch.nn.functional.one_hot(torch.full((4,), dim), rope.head_dim(config)).float()
    if embedding is None:
        sin, cos = module.create_sinusoidal_positions(4, 16)[None].chunk(2, dim=-1)
        return module.apply_rotary_pos_emb(states[None, :, None], sin, cos)[0, :, 0]
    cos, sin = embedding(config)(states, torch.arange(4)[None])
    return module.apply_rotary_pos_emb(states[None, None], states[None, None], cos, sin)[0][0, 0]


def dims_of_pairs(name: str) -> list[tuple[int, int]]:
    layout, config, _, _ = THEIRS[name]
    sizes = {"head_dim": rope.head_dim(config), "rotary_dim": rope.rotary_dim(config)}
    return [rope.pair_rows(pair, 0, layout=layout, **sizes) for pair in range(sizes["rotary_dim"] // 2)]


@pytest.mark.parametrize("name", THEIRS)
def test_a_pair_is_the_two_dims_that_turn_into_each_other(name):
    partners = [
        set(turn_one_dim(name, dim).any(dim=0).nonzero().flatten().tolist())
        for dim in range(rope.head_dim(THEIRS[name][1]))
    ]

    for first, second in dims_of_pairs(name):
        assert partners[first] == partners[second] == {first, second}
    unpaired = set(range(len(partners))) - {dim for dims in dims_of_pairs(name) for dim in dims}
    assert all(partners[dim] == {dim} for dim in unpaired)
    assert bool(unpaired) == (name in ("phi3", "gpt_neox", "glm"))


@pytest.mark.parametrize("name", THEIRS)
def test_a_pair_turns_once_in_its_wavelength(name):
    wavelengths = rope.wavelengths(THEIRS[name][1]).tolist()

    for (first, second), wavelength in zip(dims_of_pairs(name), wavelengths, strict=True):
        turned = turn_one_dim(name, first)[1]
        assert math.atan2(turned[second], turned[first]) == pytest.approx(2 * math.pi / wavelength, rel=1e-4)


@given(
    half=st.integers(1, 32),
    head=st.integers(0, 7),
    start=st.integers(0, 64),
    stride=st.integers(64, 200),
    layout=st.sampled_from(["half-split", "interleaved"]),
)
def test_pair_rows_share_out_the_rows_of_a_head(half, head, start, stride, layout):
    rows = [
        row
        for pair in range(half)
        for row in rope.pair_rows(pair, head, head_dim=2 * half, layout=layout, start=start, head_stride=stride)
    ]

    assert sorted(rows) == list(range(start + head * stride, start + head * stride + 2 * half))


def test_a_model_without_rope_has_no_pairs():
    config = tiny_config("gpt2")

    assert rope.rotary_dim(config) == 0
    assert rope.training_context(config) == 128
    with pytest.raises(UnsupportedModelError, match="'gpt2' has no RoPE"):
        rope.slow_pairs(config)


def test_an_unknown_rope_type_is_named_with_the_known_ones():
    config = llama()
    config.rope_parameters["rope_type"] = "spiral"

    with pytest.raises(UnsupportedModelError, match=r"unknown rope type 'spiral' \(known: default, .*longrope\)"):
        rope.wavelengths(config)


@pytest.mark.parametrize("layer_type", [None, "chunked_attention"])
def test_a_layer_type_is_asked_for_where_layers_differ(layer_type):
    with pytest.raises(UnsupportedModelError, match="is not one of full_attention, sliding_attention"):
        rope.wavelengths(tiny_config("gemma3_text"), layer_type)


def test_an_odd_head_dim_is_refused():
    with pytest.raises(UnsupportedModelError, match="'llama': head_dim 15 is odd"):
        rope.wavelengths(LlamaConfig(head_dim=15, rope_parameters={"rope_theta": THETA}))
    with pytest.raises(UnsupportedModelError, match="head_dim 15"):
        rope.pair_rows(0, 0, head_dim=15)


def test_an_odd_rotary_dim_is_refused():
    config = tiny_config("phi3")
    config.rope_parameters["partial_rotary_factor"] = 0.7

    with pytest.raises(UnsupportedModelError, match="rotary dim 11 is odd"):
        rope.rotary_dim(config)
