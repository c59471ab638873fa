"""Where the energy of Q and K sits among the RoPE pairs, by wavelength."""

from collections import defaultdict
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from mvquant.analysis import Analysis, LayerAnalysis
from mvquant.heads import Role
from mvquant.report.charts import ROLE_COLOURS, page, shorten, tidy


def wavelength_page(analysis: Analysis) -> Figure:
    """Draw each pair's share of the energy of its head against its wavelength, after RoPE.

    One panel for Q and one for K; layers with RoPE of their own (Gemma 3) get a row of their own.
    """
    kinds: dict[tuple[float, ...], list[LayerAnalysis]] = defaultdict(list)
    for layer in analysis.layers:
        if layer.wavelengths:
            kinds[layer.wavelengths].append(layer)
    figure = page(11.0, 1.2 + 3.4 * len(kinds))
    grid = figure.subplots(len(kinds), 2, squeeze=False, sharey=True)
    for row, layers in zip(grid, kinds.values(), strict=True):
        for axes, role in zip(row, ("q", "k"), strict=True):
            _panel(axes, layers, role)
            kind = f" ({layers[0].layer_type})" if len(kinds) > 1 else ""
            axes.set_title(f"{role.upper()}{kind}", fontsize=10)
        row[0].set_ylabel("share of a head's energy, per pair")
    for axes in grid[-1]:
        axes.set_xlabel("wavelength of the RoPE pair (tokens per turn)")
    # Once, after everything is drawn: a limit ends the scaling of all panels that share the axis.
    grid[0][0].set_ylim(bottom=0)
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=9, frameon=False, loc="outside lower center", ncols=5)
    figure.suptitle(f"{shorten(analysis.model)}: energy of Q and K by wavelength", fontsize=11)
    return figure


def _panel(axes: Axes, layers: Sequence[LayerAnalysis], role: Role) -> None:
    turns, context = layers[0].wavelengths, layers[0].training_context
    shares = [layer.role(role).energy_share for layer in layers]
    for number, share in enumerate(shares):
        label = "one layer" if number == 0 else None
        axes.plot(turns, share, color=ROLE_COLOURS[role], alpha=0.3, linewidth=1, label=label)
    mean = [sum(values) / len(values) for values in zip(*shares, strict=True)]
    axes.plot(
        turns, mean, color=ROLE_COLOURS[role], linewidth=2.5, marker="o", markersize=4, label="mean of the layers"
    )
    axes.axhline(1 / len(turns), color="black", linestyle="--", linewidth=1, label="equal shares")
    axes.axvline(context, color="#009E73", linewidth=1.5, label=f"training context ({context:,} tokens)")
    axes.axvspan(context, max(*turns, context) * 1.2, color="#009E73", alpha=0.08, linewidth=0, label="slow pairs")
    axes.set_xscale("log")
    axes.set_xlim(min(turns) / 1.2, max(*turns, context) * 1.2)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    tidy(axes)
