"""The analysis says what the statistics say, with the right pair and wavelength for every value."""

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from mvquant.analysis import Analysis, analyze, load_analysis, save_analysis
from mvquant.arch import ModelView, model_view
from mvquant.errors import CalibrationError
from mvquant.heads import pair_dims
from mvquant.massive import default_ratio
from mvquant.rope import slow_pairs, training_context, wavelengths
from mvquant.stats import CalibrationStats, collect_stats
from tests.tiny_models import FAMILY_NAMES, tiny_model, tiny_tokens

STATES = ("q_pre", "k_pre", "q", "k", "v")


def measured(model: PreTrainedModel) -> tuple[ModelView, CalibrationStats]:
    view = model_view(model.config)
    return view, collect_stats(model, view, [tiny_tokens(2, 48)], source="random tokens", seed=3)


def planted(role: str, head: int, pair: int, layer: int = 1) -> PreTrainedModel:
    """A Llama with two rows of one pair many times larger than all others."""
    model = tiny_model("llama")
    rows = getattr(model_view(model.config).attentions[layer], role)
    with torch.no_grad():
        model.get_submodule(rows.module).weight[list(rows.pair_rows(pair, head))] *= 100.0
    return model


@pytest.mark.parametrize(("role", "head", "pair"), [("q", 2, 6), ("k", 1, 7), ("k", 0, 0)])
def test_a_planted_pair_is_found_with_its_wavelength(role: str, head: int, pair: int):
    model = planted(role, head, pair)
    view, stats = measured(model)
    analysis = analyze(view, stats, ratio=2.5)
    found = getattr(analysis.layers[1], role).massive
    assert {(value.head, value.pair, value.dim) for value in found} == {
        (head, pair, dim) for dim in pair_dims(pair, rotary_dim=16)
    }
    wavelength = float(wavelengths(model.config)[pair])
    for value in found:
        assert value.wavelength == pytest.approx(wavelength)
        assert value.slow == (pair in slow_pairs(model.config)) == (wavelength >= 128)
        assert 2.5 < value.ratio <= 16
    assert analysis.massive(role) == list(found)
    assert analysis.layers_with(role) == [1]
    assert analysis.massive("v") == []


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_every_state_of_every_family_is_as_its_moments_say(family: str):
    model = tiny_model(family)
    view, stats = measured(model)
    analysis = analyze(view, stats, ratio=1.5)
    assert [layer.layer for layer in analysis.layers] == list(range(len(view.attentions)))
    for layer, attention, sums in zip(analysis.layers, view.attentions, stats.layers, strict=True):
        for name in STATES:
            state, moments = getattr(layer, name), getattr(sums, name)
            rows = getattr(attention, name[0])
            assert (state.role, state.heads, state.head_dim) == (rows.role, rows.heads, rows.head_dim)
            assert [[value.head, value.dim] for value in state.massive] == moments.massive(1.5).nonzero().tolist()
            assert state.largest_ratio == pytest.approx(float(moments.ratios().max()))
            for value in state.massive:
                assert value.ratio == pytest.approx(float(moments.ratios()[value.head, value.dim]))
                assert (value.pair is None) == (value.wavelength is None) == (value.dim >= rows.rotary_dim)
                if value.pair is not None:
                    assert value.dim in pair_dims(value.pair, rows.rotary_dim, rows.layout)
            assert len(state.energy_share) == rows.pairs
            assert sum(state.energy_share) == pytest.approx(1.0 if rows.pairs else 0.0)
        if attention.q.pairs:
            assert layer.slow_pairs == tuple(slow_pairs(model.config, attention.layer_type))
            assert layer.training_context == training_context(model.config, attention.layer_type)
        else:
            assert layer.wavelengths == layer.slow_pairs == layer.slow_dims == ()


def test_slow_dims_are_both_dims_of_the_slow_pairs():
    view, stats = measured(tiny_model("llama"))
    layer = analyze(view, stats).layers[0]
    assert layer.slow_dims == tuple(
        sorted(dim for pair in slow_pairs(view.config) for dim in pair_dims(pair, rotary_dim=16))
    )


def test_slow_fractions_count_values_and_pairs():
    view, stats = measured(planted("k", 0, 7))
    analysis = analyze(view, stats, ratio=2.5)
    assert analysis.slow_fraction("k") == 1.0
    assert analysis.slow_fraction("q", "k") == 1.0
    assert analysis.slow_fraction("q") is None
    assert analysis.slow_pair_fraction == len(slow_pairs(view.config)) / 8


@pytest.mark.parametrize("pair", [0, 7])
def test_slow_energy_goes_to_slow_pairs_only(pair: int):
    view, stats = measured(planted("k", 0, pair))
    shares = [sum(layer.k.energy_share[slow] for slow in layer.slow_pairs) for layer in analyze(view, stats).layers]
    assert analyze(view, stats).slow_energy("k") == pytest.approx(sum(shares) / 2)
    assert (shares[1] > 0.7) if pair == 7 else (shares[1] < 0.5)


def test_without_rope_there_are_no_pairs():
    view, stats = measured(tiny_model("gpt2"))
    analysis = analyze(view, stats, ratio=1.2)
    assert analysis.massive("q", "k")
    assert all(value.pair is None and value.slow is None for value in analysis.massive("q", "k"))
    assert analysis.slow_fraction("q", "k") is None
    assert analysis.slow_pair_fraction is None
    assert analysis.slow_energy("q") is None


def test_layer_types_have_their_own_wavelengths():
    view, stats = measured(tiny_model("gemma3_text"))
    layers = analyze(view, stats).layers
    assert [layer.layer_type for layer in layers] == ["sliding_attention", "sliding_attention", "full_attention"]
    assert layers[0].wavelengths == layers[1].wavelengths != layers[2].wavelengths


def test_the_ratio_is_the_one_for_the_head_dim_unless_given():
    view, stats = measured(tiny_model("llama"))
    assert analyze(view, stats).ratio == default_ratio(16)
    assert analyze(view, stats, ratio=9.0).ratio == 9.0


def test_provenance_travels_along():
    view, stats = measured(tiny_model("llama"))
    analysis = analyze(view, stats, model="a model")
    assert (analysis.model, analysis.family) == ("a model", "llama")
    assert analysis.calibration.model_dump() == {
        "source": "random tokens",
        "sequences": 2,
        "length": 48,
        "seed": 3,
        "hash": stats.hash,
    }
    assert set(analysis.versions) == {"mvquant", "torch", "transformers"}
    assert analysis.training_context == 128


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "gpt2"])
def test_json_comes_back_as_it_was(family: str, tmp_path: Path):
    view, stats = measured(tiny_model(family))
    analysis = analyze(view, stats, ratio=1.5)
    save_analysis(analysis, tmp_path / "analysis.json")
    assert load_analysis(tmp_path / "analysis.json") == analysis
    assert Analysis.model_validate_json((tmp_path / "analysis.json").read_bytes()) == analysis


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        (b"\xff", "cannot be read"),
        (b"{", "is no analysis of version 1"),
        (b"{}", "mistakes"),
    ],
)
def test_files_that_are_no_analysis_are_refused(content: bytes | None, message: str, tmp_path: Path):
    path = tmp_path / "analysis.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CalibrationError, match=rf"analysis\.json .*{message}.*run `mvquant analyze` again"):
        load_analysis(path)


def test_statistics_of_another_model_are_refused():
    _, stats = measured(tiny_model("llama"))
    with pytest.raises(CalibrationError, match="another model"):
        analyze(model_view(tiny_model("qwen3").config), stats)
