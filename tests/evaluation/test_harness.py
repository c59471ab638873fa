"""Tasks of lm-evaluation-harness by name: its samples become our rows."""

import itertools
import sys

import pytest
import torch

from mvquant.errors import EvaluationError, UsageError
from mvquant.evaluation import evaluate, load_tasks
from mvquant.evaluation.compare import compare_tasks
from mvquant.evaluation.harness import run_in_harness
from mvquant.evaluation.harness_data import require_harness
from mvquant.evaluation.harness_rows import task_result
from mvquant.evaluation.tasks import HarnessTask
from tests.evaluation.examples import task_yaml, tiny_tokenizer, with_whole_path, write_task
from tests.tiny_models import tiny_model

TASK = HarnessTask("gsm8k", "contextual", 0.0)
HASHES = {"doc_hash": "d", "prompt_hash": "p", "target_hash": "t"}


def generated(number, said, found, *, by="strict", **metrics):
    """A sample as the evaluator logs it for a generated answer."""
    scores = metrics or {"exact_match": float(found == "4")}
    return {
        **HASHES,
        "doc_id": number,
        "target": "4",
        "arguments": [(f"2+2 ({number})?", {"until": ["\n"]})],
        "resps": [[said]],
        "filtered_resps": [found],
        "filter": by,
        "metrics": list(scores),
        **scores,
    }


def chosen(number, scores, target=1):
    """A sample of a multiple-choice item."""
    return {
        **HASHES,
        "doc_id": number,
        "target": target,
        "arguments": {f"gen_args_{i}": {"arg_0": "Q?", "arg_1": f" {word}"} for i, word in enumerate(("no", "yes"))},
        "resps": [[[score, False]] for score in scores],
        "filtered_resps": [[score, False] for score in scores],
        "filter": "none",
        "metrics": ["acc", "acc_norm"],
        "acc": float(scores.index(max(scores)) == target),
        "acc_norm": 0.0,
    }


def test_generated_answers_become_rows():
    samples = [generated(0, "It is 4.", "4"), generated(1, "5", "5"), generated(0, "It is 4.", "x", by="loose")]
    found = task_result(TASK, samples, 3.0)
    assert [(row.id, row.prediction, row.answer, row.correct, row.text) for row in found.rows] == [
        ("0", "4", "4", True, "It is 4."),
        ("1", "5", "4", False, None),
    ]
    assert (found.n, found.accuracy.value, found.version, found.answer_by) == (2, 0.5, 3, "generation")
    assert found.prompts == ("2+2 (0)?", "2+2 (1)?")


def test_choices_become_rows_with_their_log_likelihoods():
    found = task_result(HarnessTask("boolq", "parametric", 0.5), [chosen(0, [-2.0, -1.0]), chosen(1, [-0.5, -1.0])], 1)
    assert [(row.prediction, row.answer, row.correct) for row in found.rows] == [
        ("yes", "yes", True),
        ("no", "yes", False),
    ]
    assert found.rows[0].log_likelihoods == (-2.0, -1.0)
    assert (found.corrected.value, found.knowledge, found.answer_by) == (0.0, "parametric", "choice")


def test_other_questions_are_other_data():
    first, second = generated(0, "4", "4"), {**generated(0, "4", "4"), "prompt_hash": "q"}
    assert task_result(TASK, [first], 1).data_hash != task_result(TASK, [second], 1).data_hash


def test_every_item_has_the_hash_of_what_was_asked():
    samples = [generated(0, "4", "4"), {**generated(1, "5", "5"), "doc_hash": "e"}]
    both, last = task_result(TASK, samples, 1), task_result(TASK, samples[1:], 1)
    assert both.item_hashes is not None
    assert len({*both.item_hashes}) == 2
    assert last.item_hashes == both.item_hashes[1:]


def test_lengths_that_an_item_does_not_have_do_not_count():
    found = task_result(TASK, [generated(0, "4", "4", **{"4096": -1.0, "8192": 1.0, "16384": -1.0})], 1)
    assert found.rows[0].correct


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        pytest.param([], "answered no item", id="empty"),
        pytest.param([chosen(0, [float("nan"), -1.0])], "NaN or infinite", id="nan"),
        pytest.param([generated(0, "4", "4", bleu=37.5)], "right or wrong", id="no-right-or-wrong"),
        pytest.param([generated(0, "4", "4", f1=(1, 2))], "right or wrong", id="no-number"),
    ],
)
def test_what_cannot_be_scored_is_no_wrong_answer(samples, message):
    with pytest.raises(EvaluationError, match=f"task gsm8k: .*{message}"):
        task_result(TASK, samples, 1)


def test_without_the_harness_the_way_to_it_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(UsageError, match=r"gsm8k: lm-evaluation-harness is needed .*pip install 'mvquant\[eval\]'"):
        require_harness([TASK])


def test_items_that_were_not_asked_are_named():
    assert task_result(TASK, [generated(1, "4", "4")], 1, [0, 2]).too_long == ("0", "2")


@pytest.fixture
def tasks(tmp_path):
    """The same two tasks for both runners."""
    choices = [
        {"id": str(i), "prompt": f"Is {'x' * i} so?", "answer": "no", "choices": ["yes", "no", "not at all"]}
        for i in range(5)
    ]
    items = [{"id": str(i), "prompt": f"Say{'!' * i}", "answer": "x"} for i in range(5)]
    whole = [{"name": "whole", "filter": [{"function": "remove_whitespace"}, {"function": "take_first"}]}]
    checks = task_yaml("checks", choice=True, knowledge="parametric", chance=0.3)
    free = task_yaml("free") | {"filter_list": whole}
    for file, questions in ((checks, choices), (free, items)):
        write_task(tmp_path, with_whole_path(file, tmp_path), questions)
    return tmp_path


@pytest.mark.backend
@pytest.mark.filterwarnings("ignore")
def test_the_harness_gives_the_rows_that_our_runner_gives(tasks):
    pytest.importorskip("lm_eval")
    tokenizer = tiny_tokenizer()
    model = tiny_model("llama", vocab_size=len(tokenizer))
    ours = evaluate(model, tokenizer, load_tasks(tasks)).tasks
    wanted = [HarnessTask("checks", "parametric", 0.3), HarnessTask("free", "contextual")]
    options = {"folder": tasks / "tasks", "defaults": False, "batch_size": 4}
    for theirs in run_in_harness((model, tokenizer), wanted, **options):
        mine = ours[theirs.task]
        assert [(row.prediction, row.answer, row.correct) for row in theirs.rows] == [
            (row.prediction, row.answer, row.correct) for row in mine.rows
        ]
        assert (theirs.accuracy, theirs.corrected, theirs.answer_by) == (mine.accuracy, mine.corrected, mine.answer_by)
    with pytest.raises(EvaluationError, match="no task 'gsm9k'"):
        run_in_harness((model, tokenizer), [HarnessTask("gsm9k", "contextual")], **options)
    with pytest.raises(UsageError, match="no engine 'vlm'"):
        run_in_harness("folder", wanted, engine="vlm", **options)
    with torch.no_grad():
        model.lm_head.weight[:] = float("nan")
    for task in wanted:
        with pytest.raises(EvaluationError, match=f"task {task.name}: the model's logits are NaN"):
            run_in_harness((model, tokenizer), [task], **options)
    (passed_through,) = run_in_harness("any folder", wanted[1:], engine="dummy", **options)
    assert {row.prediction for row in passed_through.rows} == {"lol"}


@pytest.mark.backend
@pytest.mark.filterwarnings("ignore")
def test_items_that_do_not_fit_are_named_not_cut(tasks):
    pytest.importorskip("lm_eval")
    tokenizer = tiny_tokenizer()
    wanted = [HarnessTask("checks", "parametric", 0.3), HarnessTask("free", "contextual")]
    options = {"folder": tasks / "tasks", "defaults": False, "batch_size": 4}
    own = {task.name: task for task in load_tasks(tasks)}
    answered = refused = 0
    for room, request in itertools.product((14, 20, 24), wanted):
        model = tiny_model("llama", vocab_size=len(tokenizer), max_position_embeddings=room)
        mine = said_or_done(lambda model=model, task=own[request.name]: evaluate(model, tokenizer, [task]))
        theirs = said_or_done(lambda model=model, each=request: run_in_harness((model, tokenizer), [each], **options))
        if isinstance(mine, str):
            refused += 1
            assert mine == theirs
            continue
        answered += 1
        assert theirs[0].too_long == mine.tasks[request.name].too_long
        pairs = zip(theirs[0].rows, mine.tasks[request.name].rows, strict=True)
        assert all(their[:4] == our[:4] for their, our in pairs)
    assert (answered, refused) == (5, 1)


@pytest.mark.backend
@pytest.mark.filterwarnings("ignore")
def test_models_that_read_differently_far_are_compared_on_what_both_answered(tasks):
    pytest.importorskip("lm_eval")
    tokenizer = tiny_tokenizer()
    request = HarnessTask("checks", "parametric", 0.3)
    rooms = {room: tiny_model("llama", vocab_size=len(tokenizer), max_position_embeddings=room) for room in (20, 64)}
    results = {
        room: run_in_harness((model, tokenizer), [request], folder=tasks / "tasks", defaults=False)[0]
        for room, model in rooms.items()
    }
    assert results[20].too_long
    assert not results[64].too_long
    assert results[20].data_hash != results[64].data_hash
    found = compare_tasks({"checks": results[64]}, {"checks": results[20]})
    assert found.tasks["checks"].n == results[20].n == 5 - len(results[20].too_long)


def said_or_done(work):
    """What comes of it, or the error that it ends with."""
    try:
        return work()
    except EvaluationError as error:
        return str(error)
