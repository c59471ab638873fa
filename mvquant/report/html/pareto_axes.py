"""Axes of accuracy against bits: doublings of bits are equally far apart, and so are halvings of what is lost.

So models that keep 97, 98 and 99 per cent lie apart, whatever a broken one does.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from markupsafe import Markup

from mvquant.report.html.svg import Number, Scale, across, element, horizontal, joined, scale_over, vertical

HEIGHT = 340.0
TOP, BOTTOM = 14.0, 312.0

_LEAST_LOST = 0.001
"""Nearer to 100 per cent than this is drawn here."""

_ROUND_BITS: tuple[Number, ...] = (1, 1.5, 2, 2.5, 3, 3.5, 4, 4.5, 5, 6, 7, 8, 10, 12, 16, 24, 32)
_MOST_TICKS = 6
_ROUND_KEPT: tuple[Number, ...] = (-100, 0, 50, 80, 90, 95, 98, 99, 99.5, 99.8, 99.9)
_TICKS_APART = 22.0


@dataclass(frozen=True)
class Axes:
    """Where things lie: `log_bits` goes across, `kept` (stretched towards 100 per cent) upwards."""

    log_bits: Scale
    kept: Scale

    def x(self, bits: Number) -> float:
        """How far across, as a fraction."""
        return self.log_bits.place(math.log2(bits))

    def y(self, fraction: Number) -> float:
        """How far down, in pixels."""
        return BOTTOM - (BOTTOM - TOP) * self.kept.place(stretched(fraction))


def axes_over(bits: Iterable[float], kept: Iterable[float]) -> Axes:
    """Return axes on which all of these have room."""
    return Axes(
        scale_over([math.log2(each) for each in bits], span=0.2, margin=0.1),
        scale_over([stretched(each) for each in kept], span=0.3, margin=0.09),
    )


def stretched(fraction: Number) -> float:
    """Stretch what is kept towards 1: equal steps halve what is lost.

    >>> round(stretched(0.9), 3), round(stretched(0.99), 3), round(stretched(1.0), 3)
    (1.0, 2.0, 3.0)
    """
    return -math.log10(max(1 - fraction, _LEAST_LOST))


def grid(axes: Axes) -> Markup:
    """Draw levels of what is kept, and bits underneath."""
    levels = [
        joined(
            [
                horizontal(axes.y(tick / 100), 0, 1, "grid"),
                element("text", f"{tick:g}", x=-8, y=axes.y(tick / 100) + 4, class_="tick end"),
            ]
        )
        for tick in kept_ticks(axes)
    ]
    ticks = [
        joined(
            [
                vertical(axes.x(tick), BOTTOM, BOTTOM + 5, "rule"),
                element("text", f"{tick:g}", x=across(axes.x(tick)), y=BOTTOM + 19, class_="tick"),
            ]
        )
        for tick in bit_ticks(axes.log_bits)
    ]
    return joined([*levels, horizontal(BOTTOM, 0, 1, "rule"), *ticks])


def kept_ticks(axes: Axes) -> list[Number]:
    """Return round per cents, the highest first, not nearer to each other than letters are high.

    >>> kept_ticks(Axes(Scale(1.0, 4.0), Scale(stretched(0.3), stretched(0.995))))
    [99.5, 99, 98, 95, 90, 80, 50]
    """
    low, high = (100 * (1 - 10**-end) for end in (axes.kept.low, axes.kept.high))
    known = [tick for tick in _ROUND_KEPT if low <= tick <= high]
    if len(known) < 3:
        known = [tick for tick in Scale(low, high).ticks(5) if tick <= 100 * (1 - _LEAST_LOST)]
    shown: list[Number] = []
    for tick in reversed(known):
        if not shown or axes.y(tick / 100) - axes.y(shown[-1] / 100) >= _TICKS_APART:
            shown.append(tick)
    return shown


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
    return inside if len(inside) > 1 else [*Scale(2**log_bits.low, 2**log_bits.high).ticks(5)]
