"""An analysis as a person reads it: on the terminal at 80 columns, and as files in a folder."""

from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from mvquant.analysis import Analysis, LayerAnalysis, MassiveValue, save_analysis
from mvquant.heads import Role
from mvquant.report.charts import write_figure
from mvquant.report.heatmaps import heatmap_page
from mvquant.report.massive_counts import count_page
from mvquant.report.wavelengths import wavelength_page
from mvquant.stats import CalibrationStats, save_stats

_QK: tuple[Role, Role] = ("q", "k")

_LARGEST = 5
"""So many values are listed with their place."""

_PAIRS = 3
"""So many pairs are named per layer."""

_ONE_PAGE = 8
"""So many layers fit on one page of heat maps."""


def write_analysis(analysis: Analysis, stats: CalibrationStats, folder: Path) -> None:
    """Write JSON, statistics and pictures into an existing folder.

    `analysis.json`, `stats.safetensors`, `heatmaps.png` (all layers, or eight of many), `counts.png`, and
    with RoPE `wavelengths.png`; models of more than eight layers get `heatmaps/layer-NN.png` for each.
    """
    save_analysis(analysis, folder / "analysis.json")
    save_stats(stats, folder / "stats.safetensors")
    shown = _spread(len(analysis.layers), _ONE_PAGE)
    write_figure(heatmap_page(analysis, stats, shown), folder / "heatmaps.png")
    write_figure(count_page(analysis), folder / "counts.png")
    if analysis.has_rope:
        write_figure(wavelength_page(analysis), folder / "wavelengths.png")
    if len(shown) < len(analysis.layers):
        (folder / "heatmaps").mkdir()
        for position, layer in enumerate(analysis.layers):
            path = folder / "heatmaps" / f"layer-{layer.layer:02d}.png"
            write_figure(heatmap_page(analysis, stats, [position]), path)


def _spread(count: int, most: int) -> list[int]:
    """Choose up to `most` of `count`, evenly, the first and the last among them.

    >>> _spread(3, 8), _spread(32, 4)
    ([0, 1, 2], [0, 10, 21, 31])
    """
    if count <= most:
        return list(range(count))
    return [round(index * (count - 1) / (most - 1)) for index in range(most)]


def format_analysis(analysis: Analysis) -> RenderableType:
    """Return the analysis for the terminal: a verdict, counts per layer, and the largest values."""
    seen, after = analysis.calibration, " after RoPE" if analysis.has_rope else ""
    parts: list[RenderableType] = [
        Text(f"Massive values of {analysis.model} ({analysis.family})", style="bold"),
        Text(
            f"A dim of a head is massive if its norm over all tokens is more than {analysis.ratio:.3g} x the mean "
            f"of its head. Measured{after} on {seen.sequences} x {seen.length} tokens of {seen.source} "
            f"(seed {seen.seed}, tokens {seen.hash[:12]})."
        ),
        Padding(_layer_table(analysis), (1, 0)),
    ]
    largest = sorted(_placed(analysis, _QK), key=lambda found: -found[2].ratio)[:_LARGEST]
    if largest:
        parts += [Text("Largest:"), Padding(_value_table(largest), (0, 0, 1, 0))]
    return Group(*parts, Text(verdict(analysis), style="bold"))


def verdict(analysis: Analysis) -> str:
    """Say in one or two sentences where the massive values are."""
    places = [_place(analysis, role) for role in ("q", "k", "v")]
    sentence = f"Massive values: {', '.join(places)}."
    if not analysis.massive("q", "k", "v"):
        top = max((layer.role(role) for layer in analysis.layers for role in _QK), key=lambda role: role.largest_ratio)
        sentence = (
            f"No massive values in Q, K or V; the largest norm of Q and K is {top.largest_ratio:.1f} x the mean of "
            f"its head (in {top.role.upper()})."
        )
    if not analysis.has_rope:
        return f"{sentence} The model has no RoPE, so there are no pairs to protect."
    slow = analysis.slow_fraction(*_QK)
    if slow is not None:
        sentence += f" {slow:.0%} of those in Q and K sit in slow pairs."
    pairs, query, key = analysis.slow_pair_fraction or 0.0, *(analysis.slow_energy(role) or 0.0 for role in _QK)
    return f"{sentence} Slow pairs are {pairs:.0%} of all pairs; they hold {query:.0%} of Q's energy, {key:.0%} of K's."


def _place(analysis: Analysis, role: Role) -> str:
    layers, count = analysis.layers_with(role), len(analysis.massive(role))
    if not count:
        return f"none in {role.upper()}"
    return f"{count} in {role.upper()} of {len(layers)} layer{'s' if len(layers) > 1 else ''}"


def _placed(analysis: Analysis, roles: Sequence[Role]) -> Iterable[tuple[LayerAnalysis, Role, MassiveValue]]:
    return ((layer, role, value) for layer in analysis.layers for role in roles for value in layer.role(role).massive)


def _layer_table(analysis: Analysis) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("layer", justify="right", no_wrap=True)
    for header in ("Q", "K", "V", "heads Q/K", "slow"):
        table.add_column(header, justify="right", no_wrap=True)
    table.add_column("pairs (wavelength in training contexts)", overflow="fold")
    for empty, group in groupby(
        analysis.layers, key=lambda layer: not any(layer.role(r).massive for r in ("q", "k", "v"))
    ):
        layers = list(group)
        if empty:
            span = f"{layers[0].layer}-{layers[-1].layer}" if len(layers) > 1 else str(layers[0].layer)
            table.add_row(span, "0", "0", "0", "", "", "")
            continue
        for layer in layers:
            table.add_row(*_layer_row(layer))
    return table


def _layer_row(layer: LayerAnalysis) -> list[str]:
    values = [*layer.q.massive, *layer.k.massive]
    paired = [value for value in values if value.pair is not None]
    slow = f"{sum(value.slow is True for value in paired) / len(paired):.0%}" if paired else ""
    return [
        str(layer.layer),
        *(str(len(layer.role(role).massive)) for role in ("q", "k", "v")),
        f"{layer.q.massive_heads}/{layer.k.massive_heads}",
        slow,
        _pairs(layer, paired),
    ]


def _pairs(layer: LayerAnalysis, values: Sequence[MassiveValue]) -> str:
    """Write the pairs with most massive values, with their wavelengths: `50 (1.9), 51 (2.2), 3 more`."""
    counts: dict[int, int] = {}
    for value in values:
        if value.pair is not None:
            counts[value.pair] = counts.get(value.pair, 0) + 1
    often = sorted(sorted(counts, key=lambda pair: (-counts[pair], pair))[:_PAIRS])
    turns = {pair: layer.wavelengths[pair] / layer.training_context for pair in often}
    shown = [f"{pair} ({turn:.0f})" if turn >= 10 else f"{pair} ({turn:.2g})" for pair, turn in turns.items()]
    return ", ".join(shown + ([f"{len(counts) - _PAIRS} more"] if len(counts) > _PAIRS else []))


def _value_table(values: Iterable[tuple[LayerAnalysis, Role, MassiveValue]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for header in ("layer", "role", "head", "dim", "pair", "wavelength", "x mean"):
        table.add_column(header, justify="right", no_wrap=True)
    for layer, role, value in values:
        pair, wavelength = ("", "") if value.wavelength is None else (str(value.pair), f"{value.wavelength:,.0f}")
        table.add_row(
            str(layer.layer), role.upper(), str(value.head), str(value.dim), pair, wavelength, f"{value.ratio:.1f}"
        )
    return table
