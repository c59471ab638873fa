"""Figures as the page prints them: a true minus sign, and a dash where there is nothing."""

import math

from mvquant.evaluation import Estimate
from mvquant.report.verdict import percent

NOTHING = "\N{EN DASH}"
MINUS = "\N{MINUS SIGN}"


def number(value: int | float | None, digits: int) -> str:
    """Write a number with so many decimals.

    >>> number(1234.5678, 1), number(-0.01, 1), number(-3.0, 0) == MINUS + "3"
    ('1,234.6', '0.0', True)
    """
    if value is None:
        return NOTHING
    if not math.isfinite(value):
        return f"{MINUS if value < 0 else ''}∞"
    return f"{value:z,.{digits}f}".replace("-", MINUS)


def points(fraction: float) -> str:
    """Write a fraction as per cent or points.

    >>> points(0.0312), points(-0.0001)
    ('3.1', '0.0')
    """
    return percent(fraction).replace("-", MINUS)


def limits(estimate: Estimate) -> str:
    """Write the interval of a fraction, in points."""
    return f"{points(estimate.low)} to {points(estimate.high)}"


def with_limits(estimate: Estimate) -> str:
    """Write a fraction with its interval, in points.

    >>> with_limits(Estimate(value=0.083, low=0.006, high=0.154))
    '8.3 (0.6 to 15.4)'
    """
    return f"{points(estimate.value)} ({limits(estimate)})"


def small(value: float | None) -> str:
    """Write a divergence: three digits that count.

    >>> small(0.01432), small(0.0)
    ('0.0143', '0')
    """
    return NOTHING if value is None else f"{value:.3g}".replace("inf", "∞")


def size(count: int | None) -> str:
    """Write bytes with three digits.

    >>> size(2_344_960)
    '2.34 MB'
    """
    if count is None:
        return NOTHING
    for unit, one in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= one:
            return f"{count / one:.3g} {unit}"
    return f"{count} B"
