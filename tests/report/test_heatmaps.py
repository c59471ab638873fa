"""What is drawn is what was measured: marks, images, lines and bars are read back from the figures."""

import pytest
import torch

from mvquant.analysis import Analysis, analyze
from mvquant.arch import model_view
from mvquant.report.heatmaps import heatmap_page
from mvquant.report.massive_counts import count_page
from mvquant.report.wavelengths import wavelength_page
from mvquant.stats import CalibrationStats, collect_stats
from tests.tiny_models import tiny_model, tiny_tokens


def measured(family: str, **changes: object) -> tuple[Analysis, CalibrationStats]:
    model = tiny_model(family, **changes)
    view = model_view(model.config)
    stats = collect_stats(model, view, [tiny_tokens(2, 48)])
    return analyze(view, stats, ratio=1.4), stats


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "gpt2"])
def test_heat_maps_show_the_ratios_and_mark_the_massive_ones(family: str):
    analysis, stats = measured(family)
    panels = heatmap_page(analysis, stats, [0, 1]).axes[:6]
    limits = set()
    for index, axes in enumerate(panels):
        layer, role = divmod(index, 3)
        (image,) = axes.images
        moments = getattr(stats.layers[layer], "qkv"[role])
        assert torch.equal(torch.as_tensor(image.get_array().data), moments.ratios())
        limits.add(image.get_clim())
        marks = [tuple(point) for scatter in axes.collections for point in scatter.get_offsets().tolist()]
        massive = analysis.layers[layer].role("qkv"[role]).massive
        assert marks == [(value.dim, value.head) for value in massive]
    assert len(limits) == 1


def test_slow_dims_have_a_bar():
    analysis, stats = measured("llama")
    page = heatmap_page(analysis, stats, [0])
    head_dim = analysis.layers[0].q.head_dim
    bars = [tuple(line.get_xdata()) for line in page.axes[0].lines]
    covered = {dim for left, right in bars for dim in range(round(left * head_dim), round(right * head_dim))}
    assert covered == set(analysis.layers[0].slow_dims)
    assert not page.axes[2].lines


def test_wavelengths_are_drawn_per_layer_with_their_mean():
    analysis, _ = measured("llama")
    first, second = wavelength_page(analysis).axes
    for axes, role in ((first, "q"), (second, "k")):
        shares = [layer.role(role).energy_share for layer in analysis.layers]
        drawn = [tuple(line.get_ydata()) for line in axes.lines]
        assert drawn[:2] == shares
        assert drawn[2] == pytest.approx([sum(pair) / 2 for pair in zip(*shares, strict=True)])
        assert set(drawn[3]) == {1 / 8}
        assert set(axes.lines[4].get_xdata()) == {128}
        assert axes.get_xscale() == "log"


def test_no_wavelength_is_cut_off():
    analysis, _ = measured("gemma3_text")
    for axes in wavelength_page(analysis).axes:
        bottom, top = axes.get_ylim()
        assert bottom == 0.0
        assert max(max(line.get_ydata()) for line in axes.lines if len(line.get_ydata()) > 2) <= top
        left, right = axes.get_xlim()
        assert all(left <= turn <= right for line in axes.lines[:-2] for turn in line.get_xdata())


def test_layer_types_get_panels_of_their_own():
    analysis, _ = measured("gemma3_text")
    titles = [axes.get_title() for axes in wavelength_page(analysis).axes]
    assert titles == ["Q (sliding_attention)", "K (sliding_attention)", "Q (full_attention)", "K (full_attention)"]


@pytest.mark.parametrize("layers", [2, 13])
def test_counts_are_drawn_for_every_layer_and_role(layers: int):
    analysis, _ = measured("llama", num_hidden_layers=layers)
    (axes,) = count_page(analysis).axes
    expected = [[len(layer.role(role).massive) for layer in analysis.layers] for role in ("q", "k", "v")]
    bars = [[bar.get_height() for bar in container] for container in axes.containers]
    lines = [list(line.get_ydata()) for line in axes.lines]
    assert (bars or lines) == expected
