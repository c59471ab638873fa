import pytest

from mvquant.report.partial import full_precision, partial_groups, tasks_of
from tests.report.comparisons import around, partly, results, variant


def test_a_group_says_of_how_many_tasks_it_is_only_where_some_are_missing():
    found = results(partly(variant("w3"), "set_choose"), variant("w4"))
    assert [tasks_of(each, found, "contextual") for each in found.variants] == ["", "1 of 2 tasks", ""]
    assert tasks_of(found.variants[1], found, "parametric") == ""
    assert tasks_of(variant("w2", groups={}), found, "contextual") == ""
    assert [(each.name, word, said) for each, word, said in partial_groups(found)] == [
        ("w3", "reading", "1 of 2 tasks")
    ]


def test_full_precision_is_taken_over_the_variant_s_own_tasks():
    baseline = results(variant("w3")).variants[0]
    tasks = {**baseline.tasks, "set_choose": baseline.tasks["set_choose"].model_copy(update={"corrected": around(0.3)})}
    baseline = baseline.model_copy(update={"tasks": tasks})
    assert full_precision(variant("w3"), baseline, "contextual") == baseline.groups["contextual"].corrected
    found = full_precision(partly(variant("w3"), "set_find"), baseline, "contextual")
    assert (found.value, found.low) == pytest.approx((0.3, 0.26))
    assert full_precision(partly(variant("w3"), "set_find", "set_choose"), baseline, "contextual") is None
    assert full_precision(variant("w3", groups={}), baseline, "contextual") is None


def test_of_tasks_that_full_precision_did_not_answer_nothing_is_lost():
    baseline = partly(results(variant("w3")).variants[0], "set_find")
    assert full_precision(variant("w3"), baseline, "contextual") == baseline.groups["contextual"].corrected
