import re

from mvquant.report.cache_chart import BitsPoint, CachePanel, cache_chart, cache_figure
from tests.evaluation.examples import make_result

FULL = make_result("reference", {"passkey": 0.9, "recall_cities": 0.8})
POOR = make_result("k2", {"passkey": 0.5, "recall_cities": 0.8})
GOOD = make_result("mv-protect-k2", {"passkey": 0.88, "recall_cities": 0.8})
PANEL = CachePanel("K alone", protected=[BitsPoint(2.25, GOOD), BitsPoint(2.0, POOR)], alike=[BitsPoint(2.0, POOR)])


def test_the_legend_tells_reading_from_recall_and_protected_from_not(tmp_path):
    path = tmp_path / "pictures" / "cache.svg"
    cache_chart([PANEL, CachePanel("Q and K", PANEL.protected, PANEL.alike)], FULL, path)
    comments = set(re.findall(r"<!-- (.*?) -->", path.read_text()))
    expected = {
        f"{word}, {how}" for word in ("reading", "recall") for how in ("protected pairs get more", "all pairs alike")
    }
    assert expected | {"K alone", "Q and K", "average bits of a key"} <= comments


def test_points_are_joined_by_rising_bits_whatever_their_order(tmp_path):
    turned = CachePanel("K alone", protected=PANEL.protected[::-1], alike=PANEL.alike)
    for name, panel in (("one.svg", PANEL), ("two.svg", turned)):
        cache_chart([panel], FULL, tmp_path / name)
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()


def test_no_panel_cuts_off_what_another_one_lost():
    bad = make_result("k1", {"passkey": 0.1, "recall_cities": 0.8})
    lost = CachePanel("Q and K", protected=PANEL.protected, alike=[BitsPoint(1.0, bad)])
    first, second = cache_figure([PANEL, lost], FULL).axes
    assert first.get_ylim() == second.get_ylim()
    assert first.get_ylim()[0] < 100 * bad.groups["contextual"].corrected.low
