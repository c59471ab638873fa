"""Ours against lm-evaluation-harness 0.4.13 on the same task files and the same tiny model."""

from pathlib import Path

import pytest
import yaml

from mvquant.evaluation import evaluate, load_tasks
from tests.evaluation.examples import task_yaml, tiny_tokenizer, write_task
from tests.tiny_models import tiny_model

pytestmark = [pytest.mark.backend, pytest.mark.filterwarnings("ignore")]

EVAL = Path(__file__).parents[2] / "eval"
CHOICES = [
    {"id": str(i), "prompt": f"Is {'x' * i} so?", "answer": "no", "choices": ["yes", "no", "not at all"]}
    for i in range(9)
]


def their_samples(folder, model, tokenizer):
    """Log-samples of the harness, by task and by item."""
    evaluator = pytest.importorskip("lm_eval.evaluator")
    hf = pytest.importorskip("lm_eval.models.huggingface")
    tasks = pytest.importorskip("lm_eval.tasks")
    for path in (folder / "tasks").glob("*.yaml"):
        content = yaml.safe_load(path.read_text())
        content["dataset_kwargs"]["data_files"]["test"] = str(folder / content["dataset_kwargs"]["data_files"]["test"])
        content["dataset_kwargs"]["cache_dir"] = str(folder / "cache")
        path.write_text(yaml.safe_dump(content))
    found = evaluator.simple_evaluate(
        hf.HFLM(pretrained=model, tokenizer=tokenizer, batch_size=4, device="cpu"),
        tasks=["checks", "free"],
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
    write_task(tmp_path, task_yaml("checks", choice=True), CHOICES)
    write_task(tmp_path, free, items)
    ours = evaluate(model, tokenizer, load_tasks(tmp_path))
    theirs = their_samples(tmp_path, model, tokenizer)
    for row in ours.tasks["free"].rows:
        assert row.prediction == theirs["free"][row.id]["filtered_resps"][0]
    for row in ours.tasks["checks"].rows:
        scores = [float(response[0]) for response in theirs["checks"][row.id]["filtered_resps"]]
        assert row.log_likelihoods == pytest.approx(scores, abs=2e-3)
        assert row.correct == bool(theirs["checks"][row.id]["acc"])


def test_shipped_tasks_mean_the_same_to_both(shared_data, monkeypatch):
    monkeypatch.setenv("MVQUANT_DATA", str(shared_data / "eval"))
    names = ["binding", "knowledge_conflict", "cities", "aqua_rat_generative", "gsm8k_chat"]
    evaluator = pytest.importorskip("lm_eval.evaluator")
    hf = pytest.importorskip("lm_eval.models.huggingface")
    managed = pytest.importorskip("lm_eval.tasks").TaskManager(include_path=str(EVAL / "tasks"), include_defaults=False)
    assert {"contextual", "parametric", "contextual_harness", "conflict_both_ways"} <= set(managed.all_groups)
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
