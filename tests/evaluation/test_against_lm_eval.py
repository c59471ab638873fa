"""Ours against lm-evaluation-harness 0.4.13 on the same task files and the same tiny model."""

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from mvquant.evaluation import Item, evaluate, load_tasks
from mvquant.evaluation.tasks import hash_items
from mvquant.evaluation.text_length import count_tokens
from tests.evaluation.examples import task_yaml, tiny_tokenizer, with_whole_path, write_task
from tests.evaluation.test_sources import reviews
from tests.tiny_models import tiny_model

pytestmark = [pytest.mark.backend, pytest.mark.filterwarnings("ignore")]

EVAL = Path(__file__).parents[2] / "eval"
CHOICES = [
    {"id": str(i), "prompt": f"Is {'x' * i} so?", "answer": "no", "choices": ["yes", "no", "not at all"]}
    for i in range(9)
]


def their_samples(folder, model, tokenizer, names=("checks", "free")):
    """Log-samples of the harness, by task and by item."""
    evaluator = pytest.importorskip("lm_eval.evaluator")
    hf = pytest.importorskip("lm_eval.models.huggingface")
    tasks = pytest.importorskip("lm_eval.tasks")
    found = evaluator.simple_evaluate(
        hf.HFLM(pretrained=model, tokenizer=tokenizer, batch_size=4, device="cpu"),
        tasks=list(names),
        task_manager=tasks.TaskManager(include_path=str(folder / "tasks"), include_defaults=False),
        bootstrap_iters=0,
    )
    return {name: {sample["doc"]["id"]: sample for sample in samples} for name, samples in found["samples"].items()}


def test_same_answers_and_same_scores(tmp_path):
    tokenizer = tiny_tokenizer()
    model = tiny_model("llama", vocab_size=len(tokenizer))
    free = task_yaml("free") | {
        "filter_list": [{"name": "whole", "filter": [{"function": "remove_whitespace"}, {"function": "take_first"}]}]
    }
    items = [{"id": str(i), "prompt": f"Say{'!' * i}", "answer": "x"} for i in range(9)]
    for file, questions in ((task_yaml("checks", choice=True), CHOICES), (free, items)):
        write_task(tmp_path, with_whole_path(file, tmp_path), questions)
    ours = evaluate(model, tokenizer, load_tasks(tmp_path))
    theirs = their_samples(tmp_path, model, tokenizer)
    for row in ours.tasks["free"].rows:
        assert row.prediction == theirs["free"][row.id]["filtered_resps"][0]
    for row in ours.tasks["checks"].rows:
        scores = [float(response[0]) for response in theirs["checks"][row.id]["filtered_resps"]]
        assert row.log_likelihoods == pytest.approx(scores, abs=2e-3)
        assert row.correct == bool(theirs["checks"][row.id]["acc"])


def test_texts_made_to_a_length_are_the_same_for_both(tmp_path):
    """Plain `lm_eval --model_args pretrained=...` counts by the model's tokenizer too."""
    tasks = pytest.importorskip("lm_eval.tasks")
    tiny_tokenizer([("Ġ", "t"), ("h", "e")]).save_pretrained(tmp_path)
    metadata = {"pretrained": str(tmp_path), "dtype": "float32"}
    manager = tasks.TaskManager(include_path=str(EVAL / "tasks"), include_defaults=False, metadata=metadata)
    theirs = manager.load(["passkey"])["tasks"]["passkey"].eval_docs
    count = count_tokens(lambda: AutoTokenizer.from_pretrained(tmp_path))
    (ours,) = load_tasks(EVAL, ["passkey"], count=count)
    assert hash_items([Item.model_validate(row) for row in theirs]) == ours.data_hash
    assert ours.data_hash != load_tasks(EVAL, ["passkey"])[0].data_hash


def test_reviews_mean_the_same_to_both(tmp_path, monkeypatch):
    reviews(tmp_path, 7, 5)
    monkeypatch.setenv("MVQUANT_DATA", str(tmp_path))
    tokenizer = tiny_tokenizer()
    model = tiny_model("llama", vocab_size=len(tokenizer), max_position_embeddings=512)
    (task,) = load_tasks(EVAL, ["imdb_balanced"])
    theirs = their_samples(EVAL, model, tokenizer, ["imdb_balanced"])["imdb_balanced"]
    ours = evaluate(model, tokenizer, [task]).tasks["imdb_balanced"]
    assert ours.n == len(theirs) == 10
    for row in ours.rows:
        scores = [float(response[0]) for response in theirs[row.id]["filtered_resps"]]
        assert row.log_likelihoods == pytest.approx(scores, abs=2e-3)
        assert row.correct == bool(theirs[row.id]["acc"])


def test_shipped_tasks_mean_the_same_to_both(shared_data, monkeypatch):
    monkeypatch.setenv("MVQUANT_DATA", str(shared_data / "eval"))
    names = ["binding", "knowledge_conflict", "cities", "aqua_rat_generative", "gsm8k_chat", "reference_passkey"]
    evaluator = pytest.importorskip("lm_eval.evaluator")
    hf = pytest.importorskip("lm_eval.models.huggingface")
    managed = pytest.importorskip("lm_eval.tasks").TaskManager(include_path=str(EVAL / "tasks"), include_defaults=False)
    tokenizer = tiny_tokenizer()
    model = tiny_model("llama", vocab_size=len(tokenizer), max_position_embeddings=4096)
    found = evaluator.simple_evaluate(
        hf.HFLM(pretrained=model, tokenizer=tokenizer, batch_size=4, device="cpu", max_length=4096),
        tasks=names,
        task_manager=managed,
        limit=3,
        gen_kwargs={"max_gen_toks": 8},
        bootstrap_iters=0,
    )
    for task in load_tasks(EVAL, names):
        samples = found["samples"][task.name]
        assert [sample["doc"]["id"] for sample in samples] == [item.id for item in task.items[:3]]
        assert [sample["arguments"][0][0] for sample in samples] == [item.prompt for item in task.items[:3]]
        assert [str(sample["target"]) for sample in samples] == [item.answer for item in task.items[:3]]
        if task.file.output_type == "generate_until":
            said = [sample["resps"][0][0] for sample in samples]
            assert [sample["filtered_resps"][0] for sample in samples] == [task.file.parser(text) for text in said]
