from hypothesis import given, settings
from hypothesis import strategies as st

from mvquant.report.html.labels import Box, name_box, place_names

ROOM = Box(0.0, 0.0, 300.0, 200.0)
MARKS = st.lists(st.tuples(st.floats(0, 300), st.floats(0, 200)), min_size=1, max_size=25)
RADIUS = 5.0


@given(MARKS, st.integers(1, 25))
@settings(max_examples=60)
def test_no_name_covers_a_name_or_a_mark_or_leaves_the_room(places, length):
    marks = dict(enumerate(places))
    names = dict.fromkeys(marks, "n" * length)
    placed = place_names(names, marks, ROOM, RADIUS)
    boxes = [name_box(names[key], marks[key], spot) for key, spot in placed.items()]
    bodies = [Box(x - RADIUS, y - RADIUS, x + RADIUS, y + RADIUS) for x, y in places]
    for index, box in enumerate(boxes):
        assert not any(box.covers(other) for other in [*boxes[:index], *bodies])
        assert ROOM.left <= box.left
        assert box.right <= ROOM.right
        assert ROOM.top <= box.top
        assert box.bottom <= ROOM.bottom


@given(MARKS)
@settings(max_examples=60)
def test_names_that_have_room_have_it_in_a_wider_picture_too(places):
    """Places across are shares of the width: a wider picture moves marks apart, names keep their size."""
    marks = dict(enumerate(places))
    names = dict.fromkeys(marks, "mv-protect")
    placed = place_names(names, marks, ROOM, RADIUS)
    wider = {key: (2 * x, y) for key, (x, y) in marks.items()}
    boxes = [name_box(names[key], wider[key], spot) for key, spot in placed.items()]
    assert not any(box.covers(other) for index, box in enumerate(boxes) for other in boxes[:index])


def test_the_first_names_come_first():
    marks = {"one": (150.0, 100.0), "two": (150.0, 100.0)}
    assert next(iter(place_names({"one": "first", "two": "second"}, marks, ROOM, RADIUS))) == "one"
    crowd = {index: (150.0, 100.0 + index) for index in range(12)}
    placed = place_names(dict.fromkeys(crowd, "a long name"), crowd, ROOM, RADIUS)
    assert 0 in placed
    assert len(placed) < len(crowd)


def test_what_is_taken_stays_free():
    assert place_names({1: "name"}, {1: (150.0, 100.0)}, ROOM, RADIUS, taken=[ROOM]) == {}
