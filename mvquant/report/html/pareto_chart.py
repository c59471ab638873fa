"""What is kept for how many bits: a chart for bits per weight and one for bits per cached key, where they differ.

Each has a panel for reading and one for recall. Names stand beside what was asked for and what nothing beats, as far as
there is room; every other mark tells its name when it, or its line in the list, is pointed at or focused.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from mvquant.comparison import ComparisonResults, VariantResult
from mvquant.evaluation import Estimate, Knowledge
from mvquant.report.html.labels import Box, Spot, place_names
from mvquant.report.html.marks import SIGNS
from mvquant.report.html.material import Material
from mvquant.report.html.pareto_axes import BOTTOM, HEIGHT, Axes, axes_over, grid
from mvquant.report.html.svg import at, element, horizontal, joined, vertical
from mvquant.report.html.words import number, points, with_limits
from mvquant.report.partial import tasks_of

RADIUS = {"variant": 5.5, "control": 4.0}

WIDTHS = {"narrow": 250.0, "wide": 380.0}
"""Least pixels of a panel on a phone and on a desk: names that have room there have it in any wider one."""


@dataclass(frozen=True)
class Point:
    """One variant in one panel; `label` is the same in all panels, `part` says of how many tasks if not of all."""

    label: int
    variant: VariantResult
    bits: float
    kept: Estimate
    part: str = ""

    @property
    def kind(self) -> str:
        """Whether it was asked for."""
        return "control" if self.variant.role == "control" else "variant"


@dataclass(frozen=True)
class Panel:
    """One kind of knowledge.

    Attributes:
        knowledge: contextual or parametric.
        plot: the picture.
        base: what full precision keeps, as text.
        best: the names of the variants that no other beats in both bits and accuracy.
    """

    knowledge: Knowledge
    plot: Markup
    base: str
    best: frozenset[str]


@dataclass(frozen=True)
class Entry:
    """One line of the list beside a chart; `part` names groups of which only some tasks were answered."""

    variant: VariantResult
    bits: str
    best: str
    part: str


@dataclass(frozen=True)
class ParetoChart:
    """The panels, and what their marks stand for, by label; `what` are the bits of."""

    what: str
    panels: tuple[Panel, ...]
    entries: dict[int, Entry]


Bits = Callable[[VariantResult], float | None]

_COSTS: dict[str, Bits] = {
    "weight": lambda variant: variant.bits_per_weight,
    "cached key": lambda variant: variant.bits_per_cached_key,
}


def pareto_charts(material: Material) -> list[ParetoChart]:
    """Draw all variants whose size and accuracy are known; nothing where there are none.

    A variant that rounds its cache alone is not in the chart of weights, and one that rounds weights alone not in that
    of the cache. Accuracies are chance-corrected means over tasks. The panels of a chart share their scales.
    """
    numbered = dict(enumerate(material.compared, start=1))
    charts = (_chart(material.results, numbered, what, bits) for what, bits in _COSTS.items())
    return [chart for chart in charts if chart is not None]


def _chart(results: ComparisonResults, numbered: dict[int, VariantResult], what: str, bits: Bits) -> ParetoChart | None:
    baseline = results.variants[0]
    panels: dict[Knowledge, list[Point]] = {group: list(_points(results, numbered, group, bits)) for group in SIGNS}
    shown = [point for chosen in panels.values() for point in chosen]
    if not shown:
        return None
    base = {group: baseline.groups[group].corrected for group in SIGNS if group in baseline.groups}
    ends = [value for point in shown for value in (point.kept.low, point.kept.high)]
    axes = axes_over([point.bits for point in shown], [*ends, *(each.value for each in base.values())])
    drawn = tuple(_panel(chosen, group, base.get(group), axes, what) for group, chosen in panels.items() if chosen)
    parts = {label: _parts(label, panels) for label in numbered}
    entries = {point.label: _entry(point, drawn, parts[point.label]) for point in shown}
    return ParetoChart(what, drawn, dict(sorted(entries.items())))


def _points(
    results: ComparisonResults, numbered: dict[int, VariantResult], group: Knowledge, bits: Bits
) -> Iterator[Point]:
    unrounded = bits(results.variants[0])
    for label, variant in numbered.items():
        found = bits(variant)
        if group in variant.groups and found is not None and found != unrounded:
            yield Point(label, variant, found, variant.groups[group].corrected, tasks_of(variant, results, group))


def _parts(label: int, panels: dict[Knowledge, list[Point]]) -> str:
    parts = (
        f"{SIGNS[group]} of {point.part}"
        for group, points in panels.items()
        for point in points
        if point.label == label and point.part
    )
    return ", ".join(parts)


def _entry(point: Point, panels: Sequence[Panel], part: str) -> Entry:
    best = [SIGNS[panel.knowledge] for panel in panels if point.variant.name in panel.best]
    return Entry(point.variant, number(point.bits, 2), " and ".join(best), part)


def frontier(shown: Sequence[Point]) -> list[Point]:
    """Return the points that no other beats in bits and accuracy, from few bits to many.

    Means over a part of the tasks neither beat others nor are among the best.
    """
    best: list[Point] = []
    complete = [point for point in shown if not point.part]
    for point in sorted(complete, key=lambda point: (point.bits, -point.kept.value)):
        if not best or point.kept.value > best[-1].kept.value:
            best.append(point)
    return best


def _panel(shown: list[Point], group: Knowledge, base: Estimate | None, axes: Axes, what: str) -> Panel:
    best = frontier(shown)
    full = Markup("") if base is None else horizontal(axes.y(base.value), 0, 1, "base")
    spots = {size: _spots(shown, best, axes, width) for size, width in WIDTHS.items()}
    order = sorted(shown, key=lambda point: (point.kind != "control", point.label))  # what was asked for on top
    marks = [
        _mark(point, group, axes, {size: found.get(point.label) for size, found in spots.items()}) for point in order
    ]
    said = f"{SIGNS[group].capitalize()}, per cent, against bits per {what}; the figures are in the list below"
    plot = element(
        "svg",
        grid(axes),
        full,
        _steps(best, axes),
        *marks,
        class_="plot pareto",
        height=HEIGHT,
        role="img",
        aria_label=said,
    )
    names = frozenset(point.variant.name for point in best)
    return Panel(group, plot, "" if base is None else points(base.value), names)


def _steps(best: Sequence[Point], axes: Axes) -> Markup:
    """From each of the best straight on until the next better one."""
    ends = [*(axes.x(point.bits) for point in best[1:]), 1.0]
    parts: list[Markup] = []
    for index, (point, end) in enumerate(zip(best, ends, strict=True)):
        y = axes.y(point.kept.value)
        parts.append(horizontal(y, axes.x(point.bits), end, "frontier"))
        if index + 1 < len(best):
            parts.append(vertical(end, axes.y(best[index + 1].kept.value), y, "frontier"))
    return joined(parts)


def _spots(shown: Sequence[Point], best: Sequence[Point], axes: Axes, width: float) -> dict[int, Spot]:
    """Places for names: first of what was asked for and is among the best, then the rest of both."""
    first = [point for point in best if point.kind == "variant"]
    wanted = [*first, *(point for point in shown if point.kind == "variant"), *best]
    return place_names(
        {point.label: point.variant.name for point in wanted},
        {point.label: (axes.x(point.bits) * width, axes.y(point.kept.value)) for point in shown},
        Box(0.0, 0.0, width, BOTTOM),
        RADIUS["variant"],
    )


def _mark(point: Point, group: Knowledge, axes: Axes, spots: dict[str, Spot | None]) -> Markup:
    y = axes.y(point.kept.value)
    ends = {"y1": axes.y(point.kept.low) - y, "y2": axes.y(point.kept.high) - y}
    name = point.variant.name
    side = Spot(-10.0, 4.0, "end") if axes.x(point.bits) > 0.5 else Spot(10.0, 4.0, "start")
    mark = element(
        "g",
        element("title", f"{name}: {number(point.bits, 2)} bits, {with_limits(point.kept)} %{_of(point.part)}"),
        element("line", x1=0, x2=0, class_=f"span {SIGNS[group]}", **ends),
        _body(group, point.kind),
        *(_text(name, spot, f"name {size}") for size, spot in spots.items() if spot is not None),
        _text(name, side, "tip"),
        class_=f"point {point.kind}",
        data_label=str(point.label),
    )
    return at(axes.x(point.bits), y, mark)


def _of(part: str) -> str:
    return f" of {part}" if part else ""


def _text(name: str, spot: Spot, class_: str) -> Markup:
    return element("text", name, x=spot.dx, y=spot.dy, text_anchor=spot.anchor, class_=class_)


def _body(group: Knowledge, kind: str) -> Markup:
    class_, radius = f"body {SIGNS[group]} {kind}", RADIUS[kind]
    if group == "contextual":
        return element("circle", r=radius, class_=class_)
    half = radius - 0.5
    return element("rect", x=-half, y=-half, width=2 * half, height=2 * half, class_=class_)
