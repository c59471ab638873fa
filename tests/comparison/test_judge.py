"""What cannot be compared costs its own task, and nothing else."""

from pathlib import Path

from mvquant.comparison.judge import Answered, _comparable
from mvquant.comparison.variants import Variant
from tests.evaluation.examples import make_result

TASKS = {"passkey": 1.0, "binding": 0.9, "recall_cities": 0.95}


def answered(name, **versions):
    tasks = {
        task: found.model_copy(update={"version": versions.get(task, found.version)})
        for task, found in make_result(name, TASKS).tasks.items()
    }
    return Answered(Variant(name, "variant", name, Path("m"), "hash"), tasks)


def test_tasks_with_other_items_are_left_out_in_their_order_and_named():
    first, other = answered("full precision"), answered("w3", recall_cities=99, passkey=99)
    kept, failures = _comparable(other.tasks, first, "w3")
    assert list(kept) == ["binding"]
    assert [failure.part for failure in failures] == ["passkey", "recall_cities"]
    assert "full precision and w3 cannot be compared: version differs" in failures[0].message
    assert list(other.tasks) == list(TASKS)


def test_a_task_that_only_one_of_them_answered_is_no_failure():
    first, other = answered("full precision"), answered("w3")
    del first.tasks["binding"]
    kept, failures = _comparable(other.tasks, first, "w3")
    assert (kept, failures) == (other.tasks, [])
