"""Reading and recall against the bits of a cached key, protected and not: one picture of several panels."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mvquant.evaluation import EvalResult, Knowledge
from mvquant.report.charts import page, tidy, write_figure
from mvquant.report.verdict import WORDS

# Okabe & Ito's blue and vermilion, with shapes and strokes of their own: told apart without colour as well.
_COLOURS: dict[Knowledge, str] = {"contextual": "#0072B2", "parametric": "#D55E00"}
_STROKES = {True: ("-", "o"), False: ("--", "s")}


@dataclass(frozen=True)
class BitsPoint:
    """One model: bits of a cached value of K, and what it answered."""

    bits: float
    result: EvalResult


@dataclass(frozen=True)
class CachePanel:
    """What is rounded, and how, in one panel; points in any order."""

    title: str
    protected: Sequence[BitsPoint]
    alike: Sequence[BitsPoint]
    axis: str = "average bits of a key"


def cache_chart(panels: Sequence[CachePanel], full: EvalResult, path: Path) -> None:
    """Draw chance-corrected accuracy of both groups with 95 % intervals, and full precision as a line.

    Args:
        panels: at least one, from left to right; they share the axis of accuracy.
        full: the model with an ordinary cache.
        path: the picture; its ending chooses the format. Equal results give an equal file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with rc_context({"svg.hashsalt": "mvquant"}):
        write_figure(cache_figure(panels, full), path)


def cache_figure(panels: Sequence[CachePanel], full: EvalResult) -> Figure:
    """Draw what `cache_chart` writes."""
    figure = page(3.6 * len(panels), 3.8)
    axes_row: Sequence[Axes] = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, panel in zip(axes_row, panels, strict=True):
        _draw(axes, panel, full)
    axes_row[0].set_ylim(top=101)  # after all panels: it ends the scaling to what they hold
    axes_row[0].set_ylabel("chance-corrected accuracy, %")
    handles, labels = axes_row[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    return figure


def _draw(axes: Axes, panel: CachePanel, full: EvalResult) -> None:
    for group, word in WORDS.items():
        axes.axhline(
            100 * full.groups[group].corrected.value, color=_COLOURS[group], linewidth=1, linestyle=":", alpha=0.7
        )
        for protects, points in ((True, panel.protected), (False, panel.alike)):
            label = f"{word}, {'protected pairs get more' if protects else 'all pairs alike'}"
            _line(axes, points, group, protects=protects, label=label)
    axes.set_title(panel.title, fontsize=10)
    axes.set_xlabel(panel.axis)
    axes.grid(color="0.92")
    axes.set_axisbelow(True)
    tidy(axes)


def _line(axes: Axes, points: Sequence[BitsPoint], group: Knowledge, *, protects: bool, label: str) -> None:
    ordered = sorted(points, key=lambda point: point.bits)
    estimates = [point.result.groups[group].corrected for point in ordered]
    stroke, marker = _STROKES[protects]
    axes.errorbar(
        [point.bits for point in ordered],
        [100 * each.value for each in estimates],
        yerr=[
            [100 * (each.value - each.low) for each in estimates],
            [100 * (each.high - each.value) for each in estimates],
        ],
        color=_COLOURS[group],
        linestyle=stroke,
        marker=marker,
        markerfacecolor=_COLOURS[group] if protects else "white",
        markersize=5,
        capsize=2,
        linewidth=1.5,
        label=label,
    )
