import pytest

from mvquant.errors import EvaluationError
from mvquant.evaluation import compare
from mvquant.evaluation.bootstrap import Change, drop_difference
from mvquant.evaluation.paired_tests import holm, mcnemar_p, minimum_detectable_drop
from mvquant.evaluation.statistics import mean, paired_drop
from tests.evaluation.examples import make_result

CHANCES = {"passkey": 0.0, "yes_no": 0.5, "recall_cities": 0.0}
BASE = {"passkey": 1.0, "yes_no": 0.9, "recall_cities": 0.95}


def result(model, accuracies=BASE, **changes):
    return make_result(model, accuracies, **{"items": 200, "chances": CHANCES, **changes})


def changed(found, task, **fields):
    tasks = {**found.tasks, task: found.tasks[task].model_copy(update=fields)}
    return found.model_copy(update={"tasks": tasks})


def test_drops_by_task_and_group():
    found = compare(result("reference"), result("w3a16", {"passkey": 0.8, "yes_no": 0.8, "recall_cities": 0.95}))
    yes_no = found.tasks["yes_no"]
    assert (yes_no.n, yes_no.lost, yes_no.gained) == (200, 20, 0)
    assert yes_no.drop == paired_drop(20, 0, 200)
    assert yes_no.corrected == paired_drop(20, 0, 200).scaled(2.0)
    assert found.groups["contextual"] == mean([found.tasks["passkey"].corrected, yes_no.corrected])
    assert found.groups["contextual"].value == pytest.approx((0.2 + 0.2) / 2)
    assert found.groups["parametric"].value == 0


def test_the_other_way_round_is_a_gain():
    first, second = result("a"), result("b", {**BASE, "passkey": 0.7})
    there, back = compare(first, second).tasks["passkey"], compare(second, first).tasks["passkey"]
    assert (there.lost, there.gained) == (back.gained, back.lost) == (60, 0)
    assert back.drop.value == -there.drop.value


def test_pairs_are_the_items_that_both_answered():
    baseline, variant = result("reference"), result("w3a16", {**BASE, "passkey": 0.5})
    rows = variant.tasks["passkey"].rows[:40]
    found = compare(baseline, changed(variant, "passkey", rows=tuple(reversed(rows)), n=40))
    assert found.tasks["passkey"].n == 40
    assert found.tasks["passkey"].lost == sum(not row.correct for row in rows)


def test_only_shared_tasks_count():
    found = compare(result("reference"), result("w3a16", {"passkey": 0.9}))
    assert (list(found.tasks), list(found.groups)) == (["passkey"], ["contextual"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param({"data_hash": "1" * 64}, "data_hash differs", id="data"),
        pytest.param({"version": 2}, r"version differs \(1 and 2\)", id="version"),
        pytest.param({"chance": 0.1}, "chance differs", id="chance"),
        pytest.param({"rows": ()}, "no item in common", id="no-items"),
    ],
)
def test_what_cannot_be_compared(change, message):
    with pytest.raises(EvaluationError, match=f"task passkey: .*{message}"):
        compare(result("reference"), changed(result("w3a16"), "passkey", **change))


def test_nothing_in_common():
    with pytest.raises(EvaluationError, match="reference and other have no task in common"):
        compare(result("reference", {"passkey": 1.0}), result("other", {"recall_cities": 1.0}))


def test_every_task_has_its_tests_adjusted_for_all_of_them():
    found = compare(result("reference"), result("w3a16", {"passkey": 0.8, "yes_no": 0.87, "recall_cities": 0.95})).tasks
    p_values = [mcnemar_p(40, 0), mcnemar_p(6, 0), mcnemar_p(0, 0)]
    assert [drop.p for drop in found.values()] == p_values
    assert [drop.p_holm for drop in found.values()] == holm(p_values)
    assert found["passkey"].minimum_detectable == minimum_detectable_drop(200, 41 / 202)


def test_the_headline_is_what_reading_lost_beyond_recall():
    variant = result("w3a16", {"passkey": 0.8, "yes_no": 0.8, "recall_cities": 0.9})
    found = compare(result("reference"), variant, seed=7)
    reading = [Change(40, 0, 200, 0.0), Change(20, 0, 200, 0.5)]
    assert found.contextual_minus_parametric == drop_difference(reading, [Change(10, 0, 200, 0.0)], seed=7)
    assert found.contextual_minus_parametric.value == pytest.approx(0.2 - 0.05)
    assert compare(result("reference"), result("w3a16", {"passkey": 0.8})).contextual_minus_parametric is None
