"""Norms of Q, K and V by head and dim, as in the figure 1 of Jin et al.: massive values are bright columns."""

from collections.abc import Sequence

import torch
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from mvquant.analysis import Analysis, LayerAnalysis
from mvquant.heads import Role
from mvquant.report.charts import page, shorten
from mvquant.stats import CalibrationStats, LayerStats

ROLES: tuple[Role, ...] = ("q", "k", "v")
_MAP = "viridis"
_MARK = "#FF3B30"


def heatmap_page(analysis: Analysis, stats: CalibrationStats, layers: Sequence[int]) -> Figure:
    """Draw a row of heat maps (Q, K, V after RoPE) for each of these layers, all on one scale.

    Args:
        analysis: says which values are massive.
        stats: that it was made of; they hold the norms.
        layers: positions in `analysis.layers`.
    """
    figure = page(12.0, 1.2 + 2.0 * len(layers))
    grid = figure.subplots(len(layers), 3, squeeze=False)
    scale = Normalize(0.0, _top(analysis, stats))
    for row, layer in zip(grid, layers, strict=True):
        for axes, role in zip(row, ROLES, strict=True):
            _heatmap(axes, analysis.layers[layer], stats.layers[layer], role, scale)
    for axes in grid[-1]:
        axes.set_xlabel("dim of the head")
    bar = figure.colorbar(ScalarMappable(scale, _MAP), ax=grid, shrink=min(1.0, 3.0 / len(layers)), pad=0.01)
    bar.set_label("norm / mean norm of its head")
    bar.ax.axhline(analysis.ratio, color=_MARK, linewidth=1.5)
    figure.suptitle(_title(analysis), fontsize=11)
    return figure


def _title(analysis: Analysis) -> str:
    after, slow = (", after RoPE", "   orange bar: dims of slow pairs") if analysis.has_rope else ("", "")
    return (
        f"{shorten(analysis.model)}: norm of every dim over {analysis.calibration.sequences} x "
        f"{analysis.calibration.length} tokens{after}\n"
        f"red circle: massive, over {analysis.ratio:.3g} x the mean norm of its head{slow}"
    )


def _top(analysis: Analysis, stats: CalibrationStats) -> float:
    """The scale ends at the largest ratio anywhere, and shows the threshold in any case."""
    largest = [float(getattr(layer, role).ratios().max()) for layer in stats.layers for role in ROLES]
    return max(1.1 * analysis.ratio, *largest)


def _heatmap(axes: Axes, layer: LayerAnalysis, stats: LayerStats, role: Role, scale: Normalize) -> None:
    found = layer.role(role)
    ratios: torch.Tensor = getattr(stats, role).ratios()
    axes.imshow(ratios.numpy(), aspect="auto", cmap=_MAP, norm=scale, interpolation="nearest")
    points = [(value.dim, value.head) for value in found.massive]
    if points:
        dims, heads = zip(*points, strict=True)
        axes.scatter(dims, heads, s=24, facecolors="none", edgecolors=_MARK, linewidths=0.9)
    if role != "v":
        _mark_slow(axes, layer, found.head_dim)
    counts = f"{len(found.massive)} massive in {found.massive_heads} of {found.heads} heads"
    axes.set_title(f"{role.upper()}: {counts if found.massive else 'none massive'}", fontsize=9, pad=8)
    axes.set_yticks(range(0, found.heads, max(1, found.heads // 4)))
    axes.set_xlim(-0.5, found.head_dim - 0.5)
    axes.tick_params(labelsize=8)
    if role == "q":
        axes.set_ylabel(f"layer {layer.layer}\nhead", fontsize=9)


def _mark_slow(axes: Axes, layer: LayerAnalysis, head_dim: int) -> None:
    """Draw a bar above the map wherever the dim belongs to a slow pair."""
    for begin, end in runs(layer.slow_dims):
        edges = [begin / head_dim, (end + 1) / head_dim]
        axes.plot(
            edges,
            [1.02, 1.02],
            color="#E69F00",
            linewidth=3,
            transform=axes.transAxes,
            clip_on=False,
            solid_capstyle="butt",
        )


def runs(numbers: Sequence[int]) -> list[tuple[int, int]]:
    """Return the first and last of every run of neighbours.

    >>> runs([1, 2, 3, 7])
    [(1, 3), (7, 7)]
    """
    edges: list[tuple[int, int]] = []
    for number in sorted(numbers):
        if edges and number == edges[-1][1] + 1:
            edges[-1] = (edges[-1][0], number)
        else:
            edges.append((number, number))
    return edges
