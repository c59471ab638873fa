"""Names beside marks: none covers another or a mark, or stands nearer to another; without a place, none is shown."""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

LETTER = 6.4
"""Pixels of a letter of the page's labels, on the wide side."""

_ABOVE, _BELOW = 9.0, 4.0
"""Pixels of a line of letters above and below its base line."""

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Spot:
    """Where a name stands, in pixels from its mark, and which end of it (`start`, `middle`, `end`) is there."""

    dx: float
    dy: float
    anchor: str


_SPOTS = (
    *(Spot(9.0, dy, "start") for dy in (4.0, -7.0, 15.0)),
    *(Spot(-9.0, dy, "end") for dy in (4.0, -7.0, 15.0)),
    Spot(0.0, -12.0, "middle"),
    Spot(0.0, 20.0, "middle"),
)


@dataclass(frozen=True)
class Box:
    """A rectangle in pixels."""

    left: float
    top: float
    right: float
    bottom: float

    def covers(self, other: "Box") -> bool:
        """Whether two rectangles share more than an edge."""
        across = self.left < other.right and other.left < self.right
        return across and self.top < other.bottom and other.top < self.bottom


def place_names(
    names: Mapping[Key, str],
    marks: Mapping[Key, tuple[float, float]],
    room: Box,
    radius: float,
    taken: Sequence[Box] = (),
) -> dict[Key, Spot]:
    """Find a spot for each name, the first ones first.

    Args:
        names: of some of the marks.
        marks: middles of all marks, in pixels.
        room: what no name may leave.
        radius: of a mark.
        taken: what no name may cover either.
    """
    bodies = {key: Box(x - radius, y - radius, x + radius, y + radius) for key, (x, y) in marks.items()}
    covered = [*taken, *bodies.values()]
    placed: dict[Key, Spot] = {}
    for key, name in names.items():
        for spot in _SPOTS:
            box = name_box(name, marks[key], spot)
            free = _inside(box, room) and not any(box.covers(other) for other in covered)
            if free and _is_nearest(key, box, marks):
                placed[key] = spot
                covered.append(box)
                break
    return placed


def name_box(name: str, mark: tuple[float, float], spot: Spot) -> Box:
    """The rectangle of a name at a spot."""
    width = LETTER * len(name)
    left = mark[0] + spot.dx - {"start": 0.0, "middle": width / 2, "end": width}[spot.anchor]
    base = mark[1] + spot.dy
    return Box(left, base - _ABOVE, left + width, base + _BELOW)


def _is_nearest(key: Key, box: Box, marks: Mapping[Key, tuple[float, float]]) -> bool:
    """Whether a name stands by no other mark more than by its own, so that nobody takes it for another's."""
    own = _distance(box, marks[key])
    return all(_distance(box, mark) >= own for mark in marks.values())


def _distance(box: Box, mark: tuple[float, float]) -> float:
    x, y = mark
    return math.hypot(max(box.left - x, x - box.right, 0.0), max(box.top - y, y - box.bottom, 0.0))


def _inside(box: Box, room: Box) -> bool:
    return room.left <= box.left and box.right <= room.right and room.top <= box.top and box.bottom <= room.bottom
