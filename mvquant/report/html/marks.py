"""Signs for reading and recall: a colour and a shape each, so that either is enough to tell them apart."""

from markupsafe import Markup

from mvquant.evaluation import Estimate, Knowledge
from mvquant.report.html.svg import Scale, at, element, horizontal, joined, vertical

SIGNS: dict[Knowledge, str] = {"contextual": "reading", "parametric": "recall"}
"""Classes of the style sheet."""

_CAP = 4.0


def shape(knowledge: Knowledge, size: float = 5.0) -> Markup:
    """Return a circle for reading and a square for recall, around the origin."""
    if knowledge == "contextual":
        return element("circle", r=size, class_=f"mark {SIGNS[knowledge]}")
    side = 1.8 * size
    return element("rect", x=-side / 2, y=-side / 2, width=side, height=side, class_=f"mark {SIGNS[knowledge]}")


def interval(estimate: Estimate, scale: Scale, y: float, knowledge: Knowledge) -> Markup:
    """Return a value with its interval, lying on its side; limits beyond the scale have no cap."""
    low, high = (scale.place(100 * limit) for limit in (estimate.low, estimate.high))
    class_ = f"span {SIGNS[knowledge]}"
    caps = [vertical(end, y - _CAP, y + _CAP, class_) for end in (low, high) if 0 < end < 1]
    return joined(
        [
            horizontal(y, low, high, class_),
            *caps,
            at(scale.place(100 * estimate.value), y, shape(knowledge)),
        ]
    )
