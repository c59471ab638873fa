import math

from hypothesis import given, settings
from hypothesis import strategies as st

from mvquant.report.html.material import Material
from mvquant.report.html.pareto_chart import Axes, Point, frontier, pareto_chart, stepped_aside
from mvquant.report.html.svg import Scale
from tests.report.comparisons import around, results, variant

AXES = Axes(Scale(math.log2(2), math.log2(16)), Scale(0.0, 100.0))
PLACES = st.lists(st.tuples(st.floats(2.5, 14), st.floats(0, 1)), min_size=1, max_size=8)


def points(places):
    return [
        Point(label, variant(f"v{label}", bits=bits), bits, around(kept)) for label, (bits, kept) in enumerate(places)
    ]


@given(PLACES)
@settings(max_examples=50)
def test_the_frontier_is_what_nothing_else_beats(places):
    shown = points(places)
    best = frontier(shown)
    for point in best:
        assert not any(other.bits <= point.bits and other.kept.value > point.kept.value for other in shown)
    for point in shown:
        assert any(other.bits <= point.bits and other.kept.value >= point.kept.value for other in best)


def test_equal_marks_step_aside_in_both_directions_and_stay_inside():
    placed = stepped_aside(points([(4.0, 0.5)] * 5), AXES)
    asides = sorted(aside for _, aside in placed)
    assert asides == [-36, -18, 0, 18, 36]


@given(PLACES)
@settings(max_examples=50)
def test_no_mark_leaves_the_panel_of_a_phone(places):
    for point, aside in stepped_aside(points(places), AXES):
        assert 0 < AXES.x(point.bits) * 280 + aside < 280


def test_full_precision_is_a_line_and_not_a_point():
    chart = pareto_chart(Material(results()))
    assert [each.name for each in chart.numbers.values()] == ["w3", "random-w3"]
    assert [panel.base for panel in chart.panels] == ["90.0", "90.0"]


def test_the_best_are_named():
    reading, recall = pareto_chart(Material(results())).panels
    assert reading.best == {"w3", "random-w3"}
    assert recall.best == {"w3", "random-w3"}
    cheap = results(variant("cheap", 0.1, bits=3.0), variant("dear", 0.2, bits=4.0))
    assert pareto_chart(Material(cheap)).panels[0].best == {"cheap"}


def test_without_sizes_there_is_no_chart():
    assert pareto_chart(Material(results(variant("w3", bits=None)))) is None
