"""Inline SVG that stretches with the page: places across are per cent, everything else is pixels.

So letters and marks keep their size on a phone. Colours are classes of the page's style sheet.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from markupsafe import Markup, escape

Number = int | float


def element(name: str, *content: Markup | str, **attributes: str | Number) -> Markup:
    """Return an element; contents and values are escaped, `class_` and `stroke_width` are `class` and `stroke-width`.

    >>> element("text", "a < b", x=3.0, class_="tick")
    Markup('<text x="3" class="tick">a &lt; b</text>')
    """
    pairs = (f' {key.rstrip("_").replace("_", "-")}="{escape(_plain(value))}"' for key, value in attributes.items())
    inside = "".join(escape(part) for part in content)
    return Markup(f"<{name}{''.join(pairs)}>{inside}</{name}>")


def joined(parts: Iterable[Markup]) -> Markup:
    """Return elements one after another."""
    return Markup("").join(parts)


def _plain(value: str | Number) -> str:
    return value if isinstance(value, str) else f"{round(value, 2):g}"


def across(fraction: Number) -> str:
    """Return a place across the picture.

    >>> across(0.125)
    '12.5%'
    """
    return f"{round(100 * fraction, 2):g}%"


def at(fraction: Number, y: Number, *content: Markup) -> Markup:
    """Put contents, in pixels, at a place that stretches."""
    return element("svg", *content, x=across(fraction), y=y, class_="at")


def vertical(fraction: Number, top: Number, bottom: Number, class_: str) -> Markup:
    """Draw a line from top to bottom."""
    return element("line", x1=across(fraction), x2=across(fraction), y1=top, y2=bottom, class_=class_)


def horizontal(y: Number, left: Number, right: Number, class_: str) -> Markup:
    """Draw a line from left to right."""
    return element("line", x1=across(left), x2=across(right), y1=y, y2=y, class_=class_)


@dataclass(frozen=True)
class Scale:
    """Numbers as fractions of the way from `low` to `high`.

    >>> Scale(0.0, 10.0).place(2.5)
    0.25
    """

    low: float
    high: float

    def place(self, value: Number) -> float:
        """Where a number lies; beyond the ends, at the ends."""
        return min(1.0, max(0.0, (value - self.low) / (self.high - self.low)))

    def ticks(self, most: int = 6) -> list[float]:
        """Return round numbers inside, at most so many.

        >>> Scale(-3.0, 19.0).ticks(5)
        [0.0, 5.0, 10.0, 15.0]
        """
        step = _round_step((self.high - self.low) / most)
        first, last = math.ceil(self.low / step), math.floor(self.high / step)
        return [round(number * step, 10) for number in range(first, last + 1)]


def _round_step(least: float) -> float:
    power = 10.0 ** math.floor(math.log10(least))
    return next(step * power for step in (1.0, 2.0, 5.0, 10.0) if step * power >= least * (1 - 1e-9))


def scale_over(values: Iterable[float], span: float, margin: float = 0.04) -> Scale:
    """Return a scale that shows all (finite) values, never less than `span` from end to end.

    >>> scale_over([0.0, 1.0], span=5.0, margin=0.0)
    Scale(low=-2.0, high=3.0)
    """
    finite = [value for value in values if math.isfinite(value)] or [0.0]
    low, high = min(finite), max(finite)
    missing = max(0.0, span - (high - low)) / 2
    low, high = low - missing, high + missing
    return Scale(low - margin * (high - low), high + margin * (high - low))
