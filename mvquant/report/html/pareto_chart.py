"""What is kept for how many bits: accuracy against bits per weight, one panel for reading, one for recall."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from mvquant.comparison import VariantResult
from mvquant.evaluation import Estimate, Knowledge
from mvquant.report.html.marks import SIGNS
from mvquant.report.html.material import Material
from mvquant.report.html.svg import Number, Scale, across, at, element, horizontal, joined, scale_over, vertical
from mvquant.report.html.words import number, points, with_limits

HEIGHT = 340.0
_TOP, _BOTTOM = 14.0, 312.0
_RADIUS = 8.5
_SIDE_STEP = 18.0
"""Marks nearer than this would cover each other, so they step aside."""

_MOST_STEPS = 3
"""A mark further away would tell the wrong bits; in a crowd marks may cover each other."""

_WIDTHS = (280.0, 400.0, 520.0)
"""Pixels that a panel has, from a phone to a desk."""

_ROUND_BITS: tuple[Number, ...] = (1, 1.5, 2, 2.5, 3, 3.5, 4, 4.5, 5, 6, 7, 8, 10, 12, 16, 24, 32)
_MOST_TICKS = 6


@dataclass(frozen=True)
class Point:
    """One variant in one panel; `label` is its number in the list beside the chart."""

    label: int
    variant: VariantResult
    bits: float
    kept: Estimate


@dataclass(frozen=True)
class Axes:
    """Where things lie: `log_bits` goes across, doublings being equally far apart, `kept` (per cent) upwards."""

    log_bits: Scale
    kept: Scale

    def x(self, bits: Number) -> float:
        """How far across, as a fraction."""
        return self.log_bits.place(math.log2(bits))

    def y(self, fraction: float) -> float:
        """How far down, in pixels."""
        return _BOTTOM - (_BOTTOM - _TOP) * self.kept.place(100 * fraction)


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
class ParetoChart:
    """The panels, and what their numbers stand for."""

    panels: tuple[Panel, ...]
    numbers: dict[int, VariantResult]


def pareto_chart(material: Material) -> ParetoChart | None:
    """Draw all variants whose size and accuracy are known; None where there are none.

    Accuracies are chance-corrected means over tasks. Both panels share their scales.
    """
    numbered = dict(enumerate((each for each in material.compared if each.bits_per_weight is not None), start=1))
    panels: dict[Knowledge, list[Point]] = {group: _points(numbered, group) for group in SIGNS}
    shown = [point for chosen in panels.values() for point in chosen]
    if not shown:
        return None
    base = {group: material.baseline.groups[group].corrected for group in SIGNS if group in material.baseline.groups}
    ends = [100 * value for point in shown for value in (point.kept.low, point.kept.high)]
    axes = Axes(
        scale_over([math.log2(point.bits) for point in shown], span=0.2, margin=0.1),
        scale_over([*ends, *(100 * each.value for each in base.values())], span=10.0, margin=0.06),
    )
    return ParetoChart(
        tuple(_panel(chosen, group, base.get(group), axes) for group, chosen in panels.items() if chosen), numbered
    )


def _points(numbered: dict[int, VariantResult], group: Knowledge) -> list[Point]:
    return [
        Point(label, variant, variant.bits_per_weight, variant.groups[group].corrected)
        for label, variant in numbered.items()
        if group in variant.groups and variant.bits_per_weight is not None
    ]


def frontier(shown: Sequence[Point]) -> list[Point]:
    """Return the points that no other beats in bits and accuracy, from few bits to many."""
    best: list[Point] = []
    for point in sorted(shown, key=lambda point: (point.bits, -point.kept.value)):
        if not best or point.kept.value > best[-1].kept.value:
            best.append(point)
    return best


def _panel(shown: list[Point], group: Knowledge, base: Estimate | None, axes: Axes) -> Panel:
    best = frontier(shown)
    full = Markup("") if base is None else horizontal(axes.y(base.value), 0, 1, "base")
    marks = [_mark(point, group, axes, aside) for point, aside in stepped_aside(shown, axes)]
    what = f"{SIGNS[group].capitalize()}, per cent, against bits per weight; the figures are in the list below"
    plot = element(
        "svg",
        _grid(axes),
        full,
        _steps(best, axes),
        *marks,
        class_="plot pareto",
        height=HEIGHT,
        role="img",
        aria_label=what,
    )
    return Panel(
        group, plot, "" if base is None else points(base.value), frozenset(point.variant.name for point in best)
    )


def _grid(axes: Axes) -> Markup:
    levels = [
        joined(
            [
                horizontal(axes.y(tick / 100), 0, 1, "grid"),
                element("text", number(tick, 0), x=-8, y=axes.y(tick / 100) + 4, class_="tick end"),
            ]
        )
        for tick in axes.kept.ticks(6)
        if tick <= 100
    ]
    ticks = [
        joined(
            [
                vertical(axes.x(tick), _BOTTOM, _BOTTOM + 5, "rule"),
                element("text", f"{tick:g}", x=across(axes.x(tick)), y=_BOTTOM + 19, class_="tick"),
            ]
        )
        for tick in bit_ticks(axes.log_bits)
    ]
    return joined([*levels, horizontal(_BOTTOM, 0, 1, "rule"), *ticks])


def bit_ticks(log_bits: Scale) -> list[Number]:
    """Return round numbers of bits on a logarithmic scale, not too many.

    >>> bit_ticks(Scale(math.log2(2.9), math.log2(4.6)))
    [3, 3.5, 4, 4.5]
    """
    inside = [bits for bits in _ROUND_BITS if log_bits.low <= math.log2(bits) <= log_bits.high]
    if len(inside) > _MOST_TICKS:
        inside = [bits for bits in inside if bits == int(bits)]
    if len(inside) > _MOST_TICKS:
        inside = [bits for bits in inside if math.log2(bits).is_integer()]
    return inside


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


def stepped_aside(shown: Sequence[Point], axes: Axes) -> list[tuple[Point, float]]:
    """Give every point the pixels that it steps aside, so that no mark covers another at any usual width.

    Those of fewer bits choose first, and all stay inside the panel and near their place.
    """
    placed: list[tuple[Point, float]] = []
    for point in sorted(shown, key=lambda point: point.bits):
        steps = (_SIDE_STEP * turn * sign for turn in range(_MOST_STEPS + 1) for sign in (1, -1))
        free = (
            step
            for step in steps
            if _is_inside(point, step, axes) and not any(_covers(point, step, *other, axes) for other in placed)
        )
        placed.append((point, next(free, 0.0)))
    return placed


def _is_inside(point: Point, aside: float, axes: Axes) -> bool:
    return all(_RADIUS <= axes.x(point.bits) * width + aside <= width - _RADIUS for width in _WIDTHS)


def _covers(point: Point, aside: float, other: Point, other_aside: float, axes: Axes) -> bool:
    if abs(axes.y(point.kept.value) - axes.y(other.kept.value)) >= _SIDE_STEP:
        return False
    apart = axes.x(point.bits) - axes.x(other.bits)
    return any(abs(apart * width + aside - other_aside) < _SIDE_STEP - 0.5 for width in _WIDTHS)


def _mark(point: Point, group: Knowledge, axes: Axes, aside: float) -> Markup:
    y = axes.y(point.kept.value)
    ends = {"y1": axes.y(point.kept.low) - y, "y2": axes.y(point.kept.high) - y}
    kind = "control" if point.variant.role == "control" else "variant"
    mark = element(
        "g",
        element("title", f"{point.variant.name}: {number(point.bits, 2)} bits, {with_limits(point.kept)} %"),
        element("line", x1=0, x2=0, class_=f"span {SIGNS[group]}", **ends),
        _body(group, kind),
        element("text", str(point.label), y=3.5, class_=f"label {kind}"),
        transform=f"translate({aside:g} 0)",
        class_="point",
        data_label=str(point.label),
    )
    leader = element("line", x1=0, x2=aside, class_="leader") if aside else Markup("")
    return at(axes.x(point.bits), y, leader, mark)


def _body(group: Knowledge, kind: str) -> Markup:
    class_ = f"body {SIGNS[group]} {kind}"
    if group == "contextual":
        return element("circle", r=_RADIUS, class_=class_)
    half = _RADIUS - 0.5
    return element("rect", x=-half, y=-half, width=2 * half, height=2 * half, class_=class_)
