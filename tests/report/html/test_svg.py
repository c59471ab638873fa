import itertools
import math
import xml.etree.ElementTree as ET

from hypothesis import given
from hypothesis import strategies as st

from mvquant.report.html.svg import Scale, across, at, element, scale_over
from tests.report.comparisons import HOSTILE

NUMBERS = st.floats(-1e6, 1e6)


def test_hostile_content_and_values_stay_text():
    made = ET.fromstring(element("text", HOSTILE, data_name=HOSTILE))
    assert made.text == HOSTILE
    assert made.attrib == {"data-name": HOSTILE}


def test_markup_inside_is_kept():
    made = ET.fromstring(at(0.25, 10, element("circle", r=4.0)))
    assert made.attrib == {"x": "25%", "y": "10", "class": "at"}
    assert made[0].tag == "circle"


@given(st.lists(NUMBERS, min_size=1), st.floats(0.1, 100))
def test_a_scale_shows_every_value_and_never_less_than_its_span(values, span):
    scale = scale_over(values, span)
    assert scale.high - scale.low >= span * (1 - 1e-9)
    assert scale.low <= min(values)
    assert max(values) <= scale.high
    assert 0 <= scale.place(values[0]) <= 1


@given(st.floats(-1e4, 1e4), st.floats(0.01, 1e4), st.integers(2, 12))
def test_ticks_are_few_even_and_inside(low, width, most):
    ticks = Scale(low, low + width).ticks(most)
    assert len(ticks) <= most + 1
    assert all(low - 1e-6 <= tick <= low + width + 1e-6 for tick in ticks)
    steps = {round(b - a, 6) for a, b in itertools.pairwise(ticks)}
    assert len(steps) <= 1


def test_infinite_values_do_not_stretch_a_scale():
    assert scale_over([math.inf, 1.0, 2.0, math.nan], span=1.0, margin=0.0) == Scale(1.0, 2.0)
    assert Scale(0.0, 1.0).place(math.inf) == 1.0


def test_places_across_are_short():
    assert across(1 / 3) == "33.33%"
