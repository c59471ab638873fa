"""Folding: logits stay, K evens out, in every family."""

import pytest
import torch

from mvquant.arch import model_view
from mvquant.errors import CalibrationError, PlanError, UnsupportedModelError
from mvquant.folding import (
    LARGEST_SCALE,
    fold_factors,
    fold_scales,
    folded_parameters,
    folded_stats,
    load_folded,
    recorded_scales,
)
from mvquant.stats import collect_stats
from tests.tiny_models import ROPE_FAMILY_NAMES, tiny_config, tiny_model, tiny_tokens

SHARED_NORM = ("qwen3", "qwen3_moe", "gemma3_text")


def uneven_model(family, **changes):
    """A tiny model some of whose K rows (or norm weights) are much larger than others."""
    model = tiny_model(family, **changes)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("k_proj.weight", "k_norm.weight", "k_proj.bias")):
                parameter[::5] *= 6.0
    return model


def random_scales(view, family, seed=0, powers_of_two=False):
    generator = torch.Generator().manual_seed(seed)
    scales = []
    for attention in view.attentions:
        exponents = 4 * torch.rand(attention.k.heads, attention.k.pairs, generator=generator) - 2
        if family in SHARED_NORM:
            exponents = exponents[:1].expand_as(exponents)
        scales.append(torch.exp2(exponents.round() if powers_of_two else exponents))
    return tuple(scales)


def logits(model):
    with torch.no_grad():
        return model(tiny_tokens()).logits


@pytest.mark.parametrize("family", [*ROPE_FAMILY_NAMES, "cohere-norm", "llama-bias"])
def test_logits_stay_up_to_rounding(family):
    family, _, feature = family.partition("-")
    changes = {"norm": {"use_qk_norm": True}, "bias": {"attention_bias": True}}.get(feature, {})
    model, view = uneven_model(family, **changes), model_view(tiny_config(family, **changes))
    before = logits(model)
    changed = folded_parameters(model, view, random_scales(view, family))
    assert logits(model).equal(before), "the model must stay as it is"
    assert any(not values.equal(model.get_parameter(name)) for name, values in changed.items())
    load_folded(model, changed)
    torch.testing.assert_close(logits(model), before, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", [name for name in ROPE_FAMILY_NAMES if name != "gemma3_text"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_powers_of_two_change_no_bit(family, dtype):
    model, view = tiny_model(family, dtype=dtype), model_view(tiny_config(family))
    before = logits(model)
    load_folded(model, folded_parameters(model, view, random_scales(view, family, powers_of_two=True)))
    assert logits(model).equal(before)


@pytest.mark.parametrize("family", ROPE_FAMILY_NAMES)
def test_keys_even_out(family):
    model, view = uneven_model(family), model_view(tiny_config(family))
    before = collect_stats(model, view, [tiny_tokens()])
    load_folded(model, folded_parameters(model, view, fold_scales(before, view, strength=1.0, powers_of_two=False)))
    after = collect_stats(model, view, [tiny_tokens()])
    for old, new, attention in zip(before.layers, after.layers, view.attentions, strict=True):
        energies = [each.k.pair_energy(attention.k.rotary_dim, attention.k.layout) for each in (old, new)]
        uneven = [float(energy.log().std()) for energy in energies]
        assert uneven[1] < (1.0 if family in SHARED_NORM else 0.35) * uneven[0]


def test_strength_nothing_folds_nothing():
    model, view = uneven_model("llama"), model_view(tiny_config("llama"))
    stats = collect_stats(model, view, [tiny_tokens()])
    assert all(bool((layer == 1).all()) for layer in fold_scales(stats, view, strength=0.0))


def test_dead_channels_are_left_alone():
    model, view = uneven_model("llama"), model_view(tiny_config("llama"))
    with torch.no_grad():
        for pair_row in view.attentions[0].k.pair_rows(pair=3, head=1):
            model.get_parameter("model.layers.0.self_attn.k_proj.weight")[pair_row] = 0
    scales = fold_scales(collect_stats(model, view, [tiny_tokens()]), view)
    assert scales[0][1, 3] == 1
    assert all(1 / LARGEST_SCALE <= float(layer.min()) <= float(layer.max()) <= LARGEST_SCALE for layer in scales)


def test_scales_that_do_not_fit_are_refused():
    model, view = tiny_model("llama"), model_view(tiny_config("llama"))
    good = random_scales(view, "llama")
    with pytest.raises(PlanError, match="1 layers, not 2"):
        folded_parameters(model, view, good[:1])
    with pytest.raises(PlanError, match=r"\(2, 3\), not \(2, 8\)"):
        folded_parameters(model, view, (good[0], good[1][:, :3]))
    with pytest.raises(PlanError, match="not all positive"):
        folded_parameters(model, view, (good[0], -good[1]))


def test_heads_that_share_a_norm_share_their_scales():
    model, view = tiny_model("qwen3"), model_view(tiny_config("qwen3"))
    with pytest.raises(PlanError, match="one norm weight serves all heads"):
        folded_parameters(model, view, random_scales(view, "llama"))


def test_models_without_rope_are_refused():
    view = model_view(tiny_config("gpt2"))
    with pytest.raises(UnsupportedModelError, match="gpt2 has no RoPE"):
        folded_parameters(tiny_model("gpt2"), view, ())
    with pytest.raises(UnsupportedModelError, match="gpt2 has no RoPE"):
        fold_scales(collect_stats(tiny_model("gpt2"), view, [tiny_tokens()]), view)


def test_statistics_of_another_model_are_refused():
    stats = collect_stats(tiny_model("mistral"), model_view(tiny_config("mistral")), [tiny_tokens()])
    with pytest.raises(CalibrationError, match="another model"):
        fold_scales(stats, model_view(tiny_config("llama")))


def test_quantized_projections_are_refused():
    model, view = tiny_model("llama"), model_view(tiny_config("llama"))
    model.model.layers[0].self_attn.k_proj = torch.nn.Identity()
    with pytest.raises(UnsupportedModelError, match="fold before quantizing"):
        folded_parameters(model, view, random_scales(view, "llama"))


@pytest.mark.parametrize("family", ROPE_FAMILY_NAMES)
def test_folded_statistics_are_those_of_the_folded_model(family):
    model, view = uneven_model(family), model_view(tiny_config(family))
    before, scales = collect_stats(model, view, [tiny_tokens()]), random_scales(view, family)
    load_folded(model, folded_parameters(model, view, scales))
    after = collect_stats(model, view, [tiny_tokens()])
    for said, found in zip(folded_stats(before, view, scales).layers, after.layers, strict=True):
        for role in ("q_pre", "k_pre", "q", "k", "v"):
            for name in ("total", "squares", "within_variance"):
                expected = getattr(getattr(found, role), name)
                tolerance = 1e-4 * float(expected.abs().max())
                torch.testing.assert_close(getattr(getattr(said, role), name), expected, rtol=1e-3, atol=tolerance)


@pytest.mark.parametrize("family", ROPE_FAMILY_NAMES)
def test_parameters_can_be_folded_one_by_one(family):
    model, view = uneven_model(family), model_view(tiny_config(family))
    scales = random_scales(view, family)
    factors = fold_factors(view, scales)
    whole = folded_parameters(model, view, scales)
    assert list(whole) == list(factors)
    assert set(factors) <= set(view.parameters)
    assert all(whole[name].equal(factors[name].folded(model.get_parameter(name))) for name in whole)


def test_recorded_scales_read_back_to_the_bit():
    scales = random_scales(model_view(tiny_config("llama")), "llama")
    record = tuple(tuple(map(tuple, layer.double().tolist())) for layer in scales)
    assert all(torch.equal(read, layer.double()) for read, layer in zip(recorded_scales(record), scales, strict=True))
