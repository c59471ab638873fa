"""How many massive values every layer has."""

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mvquant.analysis import Analysis
from mvquant.heads import Role
from mvquant.report.charts import ROLE_COLOURS, page, shorten, tidy

_BARS = 12
"""Up to so many layers are drawn as bars."""

_PLACES: dict[Role, float] = {"q": -0.27, "k": 0.0, "v": 0.27}


def count_page(analysis: Analysis) -> Figure:
    """Draw the number of massive values in Q, K and V of every layer, after RoPE."""
    figure = page(max(6.5, min(11.0, 1.0 + 0.35 * len(analysis.layers))), 3.6)
    axes = figure.subplots()
    numbers = [layer.layer for layer in analysis.layers]
    for role, place in _PLACES.items():
        counts = [len(layer.role(role).massive) for layer in analysis.layers]
        label, colour = f"{role.upper()} ({sum(counts)} in all)", ROLE_COLOURS[role]
        if len(numbers) <= _BARS:
            bars = axes.bar([number + place for number in numbers], counts, 0.25, color=colour, label=label)
            axes.bar_label(bars, fontsize=8, padding=1)
        else:
            axes.plot(numbers, counts, color=colour, marker="o", markersize=3.5, linewidth=1.5, label=label)
    axes.set_xlabel("decoder layer")
    axes.set_ylabel("massive values (head, dim)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=16))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axes.set_ylim(bottom=0, top=None if analysis.massive("q", "k", "v") else 1)
    figure.suptitle(
        f"{shorten(analysis.model)}: massive values per layer{', after RoPE' if analysis.has_rope else ''}\n"
        f"(norm over {analysis.ratio:.3g} x the mean of its head)",
        fontsize=11,
    )
    figure.legend(frameon=False, fontsize=9, loc="outside lower center", ncols=3)
    tidy(axes)
    return figure
