from hypothesis import given, settings
from hypothesis import strategies as st

from mvquant.report.html.material import Material
from mvquant.report.html.pareto_chart import WIDTHS, Point, frontier, pareto_charts
from tests.report.comparisons import around, partly, results, variant
from tests.report.html.pages import Page

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


def test_full_precision_is_a_line_and_not_a_point():
    (chart,) = pareto_charts(Material(results()))
    assert [each.variant.name for each in chart.entries.values()] == ["w3", "random-w3"]
    assert [panel.base for panel in chart.panels] == ["90.0", "90.0"]


def test_the_best_are_named():
    reading, recall = pareto_charts(Material(results()))[0].panels
    assert reading.best == {"w3", "random-w3"}
    assert recall.best == {"w3", "random-w3"}
    cheap = results(variant("cheap", 0.1, bits=3.0), variant("dear", 0.2, bits=4.0))
    (chart,) = pareto_charts(Material(cheap))
    assert chart.panels[0].best == {"cheap"}
    assert [entry.best for entry in chart.entries.values()] == ["reading and recall", ""]


def test_a_mean_over_some_tasks_beats_nothing_and_is_told():
    found = results(partly(variant("easy", 0.0, bits=3.0), "set_find"), variant("w4", 0.1, bits=4.0))
    (chart,) = pareto_charts(Material(found))
    reading, recall = chart.panels
    assert (reading.best, recall.best) == ({"w4"}, {"easy"})
    assert [entry.part for entry in chart.entries.values()] == ["reading of 1 of 2 tasks", ""]
    assert "per cent" in str(reading.plot)
    titles = [text for path, text in Page(str(reading.plot)).texts if path[-1] == "title"]
    assert [title.endswith("% of 1 of 2 tasks") for title in titles] == [False, True][
        :: 1 if titles[0][0] == "w" else -1
    ]


def test_without_sizes_there_is_no_chart():
    assert pareto_charts(Material(results(variant("w3", bits=None)))) == []


def cached(name, key_bits, *, bits=16.0, role="variant", **changes):
    return variant(name, bits=bits, role=role, bits_per_cached_key=key_bits, bits_per_cached_value=16.0, **changes)


def test_weights_and_cache_have_a_chart_each():
    """Full precision has 16 bits of both: who rounds only one of them is in one chart only."""
    found = results(cached("w3", 16.0, bits=3.1), cached("k2", 2.2), cached("w3-k2", 2.2, bits=3.1))
    base = found.variants[0].model_copy(update={"bits_per_cached_key": 16.0})
    found = found.model_copy(update={"variants": (base, *found.variants[1:])})
    weights, keys = pareto_charts(Material(found))
    names = {chart.what: [each.variant.name for each in chart.entries.values()] for chart in (weights, keys)}
    assert names == {"weight": ["w3", "w3-k2"], "cached key": ["k2", "w3-k2"]}
    assert [entry.bits for entry in keys.entries.values()] == ["2.20", "2.20"]


def named(plot, size):
    page = Page(plot)
    return [element["x"] for tag, element in page.elements if tag == "text" and f"name {size}" in element["class"]]


def test_in_a_crowd_most_names_step_back_and_every_mark_can_still_tell_its_own():
    crowd = [variant(f"control-of-some-length-{i}", 0.01, role="control", bits=4.0 + i / 1000) for i in range(30)]
    (chart,) = pareto_charts(Material(results(variant("w4", 0.02, bits=4.0), *crowd)))
    for panel in chart.panels:
        page = Page(str(panel.plot))
        texts = [text for path, text in page.texts if path[-1] == "text"]
        assert sum(element.get("class") == "tip" for element in page.all("text")) == 31
        assert all(texts.count(each.name) >= 1 for each in crowd)
        for size in WIDTHS:
            assert len(named(str(panel.plot), size)) <= 3


def test_what_was_asked_for_is_named_before_controls():
    pair = results(
        variant("asked", 0.02, bits=4.0), variant("control", 0.01, bits=4.0, role="control", control_of=("asked",))
    )
    (chart,) = pareto_charts(Material(pair))
    names = [text for path, text in Page(str(chart.panels[0].plot)).texts if path[-1] == "text"]
    assert names.count("asked") == 1 + len(WIDTHS)  # its name at each width, and its tip
