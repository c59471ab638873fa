import pytest

from mvquant.errors import EvaluationError
from mvquant.evaluation import compare
from mvquant.evaluation.bootstrap import Change, drop_difference
from mvquant.evaluation.compare import compare_tasks, require_comparable
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


def foreign(found, rows, hashes):
    """A result whose task passkey is the harness's: some of its items, each with its hash."""
    kept = tuple(found.tasks["passkey"].rows[number] for number in rows)
    data = "".join(map(str, hashes)).ljust(64, "0")
    return changed(found, "passkey", rows=kept, n=len(kept), data_hash=data, item_hashes=tuple(hashes))


def test_items_of_the_harness_that_both_answered_are_paired():
    baseline = foreign(result("reference"), range(10), "abcdefghij")
    variant = foreign(result("short", {**BASE, "passkey": 0.5}), [2, 3, 5, 8], "cdfi")
    rows = variant.tasks["passkey"].rows
    for found in (compare(baseline, variant), compare(variant, baseline)):
        assert found.tasks["passkey"].n == 4
        assert found.tasks["passkey"].lost + found.tasks["passkey"].gained == sum(not row.correct for row in rows) > 0


def test_items_of_the_harness_that_are_others_under_the_same_number():
    baseline = foreign(result("reference"), range(4), "abcd")
    message = "task passkey: reference and other cannot be compared: 2 of 3 shared items differ, the first of them pas"
    with pytest.raises(EvaluationError, match=f"{message}skey-1: evaluate both"):
        compare(baseline, foreign(result("other"), [0, 1, 2], "axy"))
    with pytest.raises(EvaluationError, match="cannot be compared: they have no item in common"):
        compare(baseline, foreign(result("other"), [7, 8], "hi"))
    with pytest.raises(EvaluationError, match="cannot be compared: data_hash differs"):
        compare(baseline, result("without hashes"))


def test_a_task_that_cannot_be_compared_is_told_from_those_that_can():
    baseline, variant = result("reference").tasks, changed(result("other"), "passkey", version=2).tasks
    require_comparable(baseline["yes_no"], variant["yes_no"])
    for work in (
        lambda: require_comparable(baseline["passkey"], variant["passkey"], ("base", "w3")),
        lambda: compare_tasks(baseline, variant, names=("base", "w3")),
    ):
        with pytest.raises(EvaluationError, match=r"task passkey: base and w3 cannot be compared: version differs \(1"):
            work()


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
    with pytest.raises(EvaluationError, match=f"task passkey: reference and w3a16 .*{message}"):
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


def test_tasks_that_ask_the_same_items_are_not_taken_for_independent():
    """A conflict scored both ways: whoever leaves the text for memory loses in one task and gains in the other."""
    chances = {"conflict": 0.0, "recall_conflict": 0.0}
    before, after = {"conflict": 1.0, "recall_conflict": 0.0}, {"conflict": 0.8, "recall_conflict": 0.2}
    baseline, variant = (
        result(name, accuracies, chances=chances) for name, accuracies in (("a", before), ("b", after))
    )
    read, recalled = (baseline.tasks[name] for name in chances)
    opposite = {row.id: not row.correct for row in variant.tasks["conflict"].rows}

    def recalling(found, answers):
        rows = tuple(
            row._replace(id=like.id, correct=answers(like.id))
            for row, like in zip(recalled.rows, read.rows, strict=True)
        )
        return changed(found, "recall_conflict", rows=rows)

    shared = compare(
        recalling(baseline, lambda _id: False), recalling(variant, opposite.get)
    ).contextual_minus_parametric
    change, gain = Change(40, 0, 200, 0.0), Change(0, 40, 200, 0.0)
    apart = drop_difference([change], [gain])
    assert shared.value == pytest.approx(apart.value)
    assert (shared.high - shared.low) / (apart.high - apart.low) == pytest.approx(2**0.5, rel=0.05)


def test_the_headline_is_what_reading_lost_beyond_recall():
    variant = result("w3a16", {"passkey": 0.8, "yes_no": 0.8, "recall_cities": 0.9})
    found = compare(result("reference"), variant, seed=7)
    reading = [Change(40, 0, 200, 0.0), Change(20, 0, 200, 0.5)]
    assert found.contextual_minus_parametric == drop_difference(reading, [Change(10, 0, 200, 0.0)], seed=7)
    assert found.contextual_minus_parametric.value == pytest.approx(0.2 - 0.05)
    assert compare(result("reference"), result("w3a16", {"passkey": 0.8})).contextual_minus_parametric is None
