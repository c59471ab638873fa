import pytest
import torch

from mvquant.errors import EvaluationError
from mvquant.evaluation import EvalResult, Subject, evaluate, load_tasks
from tests.evaluation.examples import AnsweringModel, task_yaml, tiny_tokenizer, write_task
from tests.tiny_models import tiny_model

QUESTIONS = [
    {"id": f"places-{i}", "prompt": f"Tom is in the {place}.\n{'Say: ' * i}Where?", "answer": place}
    for i, place in enumerate(["attic", "garden", "stable", "barn", "tower"])
]
CHECKS = [
    {"id": f"checks-{i}", "prompt": f"Is it {'so ' * i}?", "answer": ("yes", "no")[i % 2], "choices": ["yes", "no"]}
    for i in range(6)
]


@pytest.fixture
def tasks(tmp_path):
    write_task(tmp_path, task_yaml("places", chance=0.2), QUESTIONS)
    write_task(tmp_path, task_yaml("checks", choice=True, knowledge="parametric", chance=0.5), CHECKS)
    return load_tasks(tmp_path)


@pytest.fixture
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture
def model(tokenizer):
    return tiny_model("llama", vocab_size=len(tokenizer))


def test_a_result_carries_its_birth(tasks, model, tokenizer):
    subject = Subject(model="w4a16", plan_hash="abc", bits_per_weight=4.125)
    result = evaluate(model, tokenizer, tasks, subject=subject, limit=4, batch_size=3)
    assert (result.subject, result.limit, result.batch_size) == (subject, 4, 3)
    assert (result.dtype, result.device, result.decoding) == ("float32", "cpu", "greedy")
    assert result.versions["torch"] == torch.__version__
    for task in tasks:
        found = result.tasks[task.name]
        assert (found.data_hash, found.version, found.knowledge) == (task.data_hash, 1, task.knowledge)
        assert [row.id for row in found.rows] == [item.id for item in task.items[:4]]
        assert (found.n, found.accuracy.value) == (4, sum(row.correct for row in found.rows) / 4)
        assert result.groups[task.knowledge].tasks == (task.name,)


def test_a_right_answer_counts_and_a_wrong_one_does_not(tasks, tokenizer):
    answers = {question["prompt"]: f" {question['answer']}\n" for question in QUESTIONS}
    answers[QUESTIONS[1]["prompt"]] = " gardens\n"
    result = evaluate(AnsweringModel(answers, tokenizer), tokenizer, tasks[:1])
    places = result.tasks["places"]
    assert [row.correct for row in places.rows] == [True, False, True, True, True]
    assert places.rows[1].prediction == "gardens"
    assert places.corrected.value == pytest.approx((0.8 - 0.2) / 0.8)
    assert result.groups["contextual"].corrected == places.corrected


def test_the_batch_size_changes_nothing_but_noise(tasks, model, tokenizer):
    one, eight = (evaluate(model, tokenizer, tasks, batch_size=size) for size in (1, 8))
    assert one.tasks["places"].rows == eight.tasks["places"].rows
    for ours, theirs in zip(one.tasks["checks"].rows, eight.tasks["checks"].rows, strict=True):
        assert ours[:4] == theirs[:4]
        assert ours.log_likelihoods == pytest.approx(theirs.log_likelihoods, abs=1e-3)


def test_twice_is_the_same_to_the_byte(tasks, model, tokenizer):
    first, second = (evaluate(model, tokenizer, tasks).model_dump_json() for _ in range(2))
    assert first == second
    assert EvalResult.model_validate_json(first).model_dump_json() == first


def test_progress_counts_answers(tasks, model, tokenizer):
    told = []
    evaluate(model, tokenizer, tasks, batch_size=4, progress=lambda *step: told.append(step))
    assert told == [*(("places", i, 5) for i in range(1, 6)), *(("checks", i, 6) for i in range(1, 7))]


@pytest.mark.parametrize("name", ["places", "checks"])
def test_logits_that_are_no_numbers_are_not_wrong_answers(tasks, model, tokenizer, name):
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight[0, 0] = float("nan")
    with pytest.raises(EvaluationError, match=f"task {name}: the model's logits are NaN or infinite"):
        evaluate(model, tokenizer, [task for task in tasks if task.name == name])


def test_items_that_do_not_fit_are_named(tasks, tokenizer):
    lengths = [len(tokenizer(question["prompt"])["input_ids"]) for question in QUESTIONS]
    short = tiny_model("llama", vocab_size=len(tokenizer), max_position_embeddings=sorted(lengths)[2] + 8)
    places = evaluate(short, tokenizer, tasks[:1]).tasks["places"]
    assert places.n == 3
    assert places.too_long == tuple(
        question["id"] for question, length in zip(QUESTIONS, lengths, strict=True) if length > sorted(lengths)[2]
    )


def test_no_item_fits(tasks, tokenizer):
    short = tiny_model("llama", vocab_size=len(tokenizer), max_position_embeddings=8)
    with pytest.raises(EvaluationError, match="task places: none of 5 items fits the model's 8 positions"):
        evaluate(short, tokenizer, tasks)


def test_training_mode_comes_back(tasks, model, tokenizer):
    modes = []
    model.register_forward_pre_hook(lambda *_: modes.append(model.training))
    evaluate(model.train(), tokenizer, tasks)
    assert model.training
    assert not any(modes)


@pytest.mark.parametrize("asked", [{"limit": 0}, {"batch_size": 0}, {"tasks": []}])
def test_nothing_to_evaluate(tasks, model, tokenizer, asked):
    with pytest.raises(EvaluationError, match="nothing to evaluate"):
        evaluate(model, tokenizer, **{"tasks": tasks, **asked})
