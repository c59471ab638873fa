from mvquant.report.html.loss_chart import loss_chart
from mvquant.report.html.material import Material
from tests.report.comparisons import partly, results, variant


def test_a_strip_says_of_how_many_tasks_it_is():
    found = results(partly(variant("w3", 0.1), "set_find"), variant("random", 0.2, role="control"))
    first, second = loss_chart(Material(found)).strips
    assert (first.detail, first.control) == ("4.12 bits per weight, reading of 1 of 2 tasks", False)
    assert (second.detail, second.control) == ("4.12 bits per weight, control", True)
    assert first.losses == {"reading": "10.0 (6.0 to 14.0)", "recall": "0.0 (\N{MINUS SIGN}4.0 to 4.0)"}


def test_nothing_is_drawn_where_nothing_was_answered():
    assert loss_chart(Material(results(variant("w3", groups={}, contextual_minus_parametric=None)))) is None
