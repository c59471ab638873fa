"""Where the massive values of the model sit, as bright columns.

With the statistics: every (head, dim) of Q, K and V by layer, as in the figure 1 of Jin et al. Without them, from the
analysis alone: the share of energy of every RoPE pair by layer.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from mvquant.analysis import Analysis, LayerAnalysis
from mvquant.heads import Role
from mvquant.report.analysis_summary import verdict
from mvquant.report.heatmaps import ROLES, runs
from mvquant.report.html.raster import data_address, viridis
from mvquant.report.html.svg import across, at, element, joined
from mvquant.stats import CalibrationStats, LayerStats

_FEW = 8
"""Up to so many layers are unfolded."""


@dataclass(frozen=True)
class HeatMap:
    """One picture.

    Attributes:
        title: what it shows.
        caption: how many values are massive in it.
        picture: a data address.
        rows: how many it has, which decides its height.
        overlay: massive values and slow pairs, drawn over it.
    """

    title: str
    caption: str
    picture: str
    rows: int
    overlay: Markup


@dataclass(frozen=True)
class MassiveMaps:
    """All pictures, one scale.

    Attributes:
        sentence: where the massive values are.
        measured: on what.
        unit: what brightness means.
        top: where the scale ends.
        threshold: above which a value is massive; None where the pictures show something else.
        bar: the scale, a data address.
        groups: pictures by layer.
        by_pair: rows are layers and columns pairs, not heads and dims.
        folded: too many layers to show them at once.
    """

    sentence: str
    measured: str
    unit: str
    top: float
    threshold: float | None
    bar: str
    groups: dict[str, tuple[HeatMap, ...]]
    by_pair: bool
    folded: bool


def massive_maps(analysis: Analysis | None, stats: CalibrationStats | None) -> MassiveMaps | None:
    """Draw the norms, or else the energies; None where nothing was measured."""
    if analysis is None:
        return None
    by_pair = stats is None or len(stats.layers) != len(analysis.layers)
    if by_pair and not analysis.has_rope:
        return None
    ratios = {} if stats is None or by_pair else _ratios(stats)
    top = _top(analysis, ratios)
    seen = analysis.calibration
    return MassiveMaps(
        sentence=verdict(analysis),
        measured=f"{seen.sequences} x {seen.length} tokens of {seen.source}, seed {seen.seed}",
        unit="share of its head's energy / equal share" if by_pair else "norm / mean norm of its head",
        top=top,
        threshold=None if by_pair else analysis.ratio,
        bar=data_address([[step / 127 for step in range(128)]], viridis()),
        groups=_by_pair(analysis, top) if by_pair else _by_head(analysis, ratios, top),
        by_pair=by_pair,
        folded=not by_pair and len(analysis.layers) > _FEW,
    )


def _ratios(stats: CalibrationStats) -> dict[tuple[int, Role], list[list[float]]]:
    return {(place, role): _rows(layer, role) for place, layer in enumerate(stats.layers) for role in ROLES}


def _rows(layer: LayerStats, role: Role) -> list[list[float]]:
    return {"q": layer.q, "k": layer.k, "v": layer.v}[role].ratios().tolist()


def _top(analysis: Analysis, ratios: dict[tuple[int, Role], list[list[float]]]) -> float:
    if ratios:
        return max(1.1 * analysis.ratio, *(value for rows in ratios.values() for row in rows for value in row))
    return max(
        (
            share * len(found.energy_share)
            for layer in analysis.layers
            for found in (layer.q, layer.k)
            for share in found.energy_share
        ),
        default=1.0,
    )


def _by_head(
    analysis: Analysis, ratios: dict[tuple[int, Role], list[list[float]]], top: float
) -> dict[str, tuple[HeatMap, ...]]:
    return {
        f"layer {layer.layer}": tuple(_head_map(layer, role, ratios[place, role], top) for role in ROLES)
        for place, layer in enumerate(analysis.layers)
    }


def _head_map(layer: LayerAnalysis, role: Role, rows: Sequence[Sequence[float]], top: float) -> HeatMap:
    found = layer.role(role)
    circles = [
        at((value.dim + 0.5) / found.head_dim, 0, _circle((value.head + 0.5) / found.heads)) for value in found.massive
    ]
    slow = [] if role == "v" else [_bar(begin, end + 1, found.head_dim) for begin, end in runs(layer.slow_dims)]
    count = f"{len(found.massive)} massive in {found.massive_heads} of {found.heads} heads"
    return HeatMap(
        title=role.upper(),
        caption=count if found.massive else f"none massive; largest {found.largest_ratio:.1f}",
        picture=data_address([[value / top for value in row] for row in rows], viridis()),
        rows=found.heads,
        overlay=joined([*slow, *circles]),
    )


def _circle(down: float) -> Markup:
    return element("circle", cy=across(down), r=4, class_="massive")


def _bar(begin: int, end: int, width: int) -> Markup:
    return element("rect", x=across(begin / width), width=across((end - begin) / width), y=-6, height=4, class_="slow")


def _by_pair(analysis: Analysis, top: float) -> dict[str, tuple[HeatMap, ...]]:
    layers = [layer for layer in analysis.layers if layer.wavelengths]
    widest = max(len(layer.wavelengths) for layer in layers)
    return {"": tuple(_pair_map(layers, role, widest, top) for role in ("q", "k"))}


def _pair_map(layers: Sequence[LayerAnalysis], role: Role, width: int, top: float) -> HeatMap:
    shares = [layer.role(role).energy_share for layer in layers]
    rows = [[share * len(row) / top for share in row] + [0.0] * (width - len(row)) for row in shares]
    places = {
        (index, value.pair)
        for index, layer in enumerate(layers)
        for value in layer.role(role).massive
        if value.pair is not None
    }
    circles = [at((pair + 0.5) / width, 0, _circle((index + 0.5) / len(layers))) for index, pair in sorted(places)]
    slow = [_bar(begin, end + 1, width) for begin, end in runs(layers[0].slow_pairs)]
    count = sum(len(layer.role(role).massive) for layer in layers)
    return HeatMap(
        title=role.upper(),
        caption=f"{count} massive" if count else "none massive",
        picture=data_address(rows, viridis()),
        rows=len(layers),
        overlay=joined([*slow, *circles]),
    )
