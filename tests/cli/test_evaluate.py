"""`mvquant eval` as a person meets it: what is asked of which model, and what is said when something is not there."""

import json
from collections import Counter

import pytest
import torch

from mvquant import pipeline
from mvquant.evaluation import load_results
from mvquant.evaluation.hub_data import VARIABLE
from tests.evaluation.examples import tiny_tokenizer
from tests.evaluation.test_hub_data import write_lines
from tests.evaluation.test_sources import reviews
from tests.tiny_models import tiny_model

PUBLIC = ("gsm8k_chat", "aqua_rat_generative", "imdb_balanced")


def saved(folder, model):
    tokenizer = tiny_tokenizer()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model of 700 positions that reads bytes."""
    model = tiny_model("llama", vocab_size=len(tiny_tokenizer()), max_position_embeddings=700)
    return saved(tmp_path_factory.mktemp("tiny") / "model", model)


@pytest.fixture(autouse=True)
def _no_folder_in_the_environment(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)


def flat(text):
    return " ".join(text.split())


def test_every_model_is_asked_what_suits_it(folder):
    names = {model: pipeline.default_tasks(model) for model in ("reference", str(folder))}
    assert names == {
        "reference": ["reference_contextual", "reference_parametric"],
        str(folder): ["general_contextual", "general_parametric"],
    }
    asked = {task.name for task in pipeline.find_tasks(names["reference"])}
    assert all(name.startswith("reference_") for name in asked)
    found = pipeline.find_available_tasks(names[str(folder)], None, len)
    assert not {task.name for task in found.tasks} & asked
    assert {task.name for task in found.missing} == set(PUBLIC)


def test_tasks_without_data_are_named_and_the_others_run(mvquant, folder, tmp_path):
    output = tmp_path / "result.json"
    tasks = "general_contextual,cities"
    code, out, err = mvquant("eval", folder, "--tasks", tasks, "--limit", "2", "-o", output)
    assert code == 1
    assert "no data for aqua_rat_generative, gsm8k_chat, imdb_balanced" in flat(err)
    assert "\n  hf download openai/gsm8k --repo-type dataset --local-dir DATA/gsm8k\n" in err
    assert "--data-dir or MVQUANT_DATA" in err
    rows = [line.split() for line in out.splitlines()]
    assert all([name, "-", "-", "no", "data"] in rows for name in PUBLIC)
    (result,) = load_results(output)
    assert set(result.without_data) == set(PUBLIC)
    assert set(result.tasks) == {"binding", "knowledge_conflict", "passkey", "cities"}
    assert max(map(len, (out + err).splitlines())) <= 80


def test_nothing_to_ask_is_an_error(mvquant, folder, tmp_path):
    code, out, err = mvquant("eval", folder, "--tasks", "imdb_balanced,gsm8k_chat", "--data-dir", tmp_path)
    assert (code, out) == (1, "")
    assert flat(err).startswith("error: no data for gsm8k_chat, imdb_balanced: ")
    assert f"no data in {tmp_path}" in err.replace("\n", "")


def test_reviews_in_the_hubs_own_layout_are_asked_balanced(mvquant, folder, tmp_path):
    reviews(tmp_path, 9, 6)
    output = tmp_path / "result.json"
    code, out, err = mvquant("eval", folder, "--tasks", "imdb_balanced", "--data-dir", tmp_path, "-o", output)
    assert code == 0, err
    assert "imdb_balanced" in out
    rows = load_results(output)[0].tasks["imdb_balanced"].rows
    assert Counter(row.answer for row in rows) == {"negative": 6, "positive": 6}
    assert all(row.prediction in {"negative", "positive"} and len(row.log_likelihoods) == 2 for row in rows)


def test_shared_sets_are_asked_from_a_local_folder(mvquant, folder, tmp_path, shared_data, monkeypatch):
    wanted = ("--tasks", "gsm8k_chat,aqua_rat_generative", "--limit", "2", "--json")
    wide = saved(tmp_path / "wide", tiny_model("llama", vocab_size=len(tiny_tokenizer()), max_position_embeddings=3000))
    code, by_option, err = mvquant("eval", wide, *wanted, "--data-dir", shared_data / "eval")
    assert code == 0, err
    monkeypatch.setenv(VARIABLE, str(shared_data / "eval"))
    _, by_variable, _ = mvquant("eval", wide, *wanted)
    assert json.loads(by_option)["tasks"] == json.loads(by_variable)["tasks"]
    assert set(json.loads(by_option)["tasks"]) == {"gsm8k_chat", "aqua_rat_generative"}


@pytest.mark.parametrize(
    ("name", "line", "message"),
    [
        pytest.param("gsm8k_chat", "{", "task gsm8k_chat: DATA/gsm8k.test.jsonl, line 2: not JSON", id="json"),
        pytest.param("gsm8k_chat", '{"question": 1}', "line 2: question: str is needed, and there is 1", id="field"),
        pytest.param(
            "gsm8k_chat", '{"question": "?", "answer": "4"}', "line 2: answer: a number after #### is needed", id="mark"
        ),
    ],
)
def test_malformed_local_data_is_named_by_file_and_line(mvquant, folder, tmp_path, name, line, message):
    path = tmp_path / "gsm8k.test.jsonl"
    write_lines(path, [{"question": "?", "answer": "#### 4"}])
    path.write_text(path.read_text() + line + "\n")
    code, _, err = mvquant("eval", folder, "--tasks", f"cities,{name}", "--data-dir", tmp_path)
    assert code == 1
    assert message.replace("DATA", str(tmp_path)).replace(" ", "") in err.replace("\n", "").replace(" ", "")


def test_an_unknown_task_and_a_folder_that_is_not_there(mvquant, folder):
    code, _, err = mvquant("eval", folder, "--tasks", "citys")
    assert code == 2
    assert "unknown task 'citys': did you mean 'cities'?" in flat(err)
    code, _, err = mvquant("eval", folder, "--tasks", "gsm8k_chat", "--data-dir", "nowhere")
    assert code == 1
    assert "the data folder nowhere does not exist" in flat(err)


def test_a_task_that_the_model_cannot_read_is_refused_before_anything_is_asked(mvquant, tmp_path):
    short = saved(tmp_path, tiny_model("llama", vocab_size=len(tiny_tokenizer()), max_position_embeddings=64))
    code, out, err = mvquant("eval", short, "--tasks", "binding,passkey,cities", "--limit", "4")
    assert (code, out) == (1, "")
    assert "task binding: none of 4 items fits the model's 64 positions (nor any of passkey" in flat(err)


def test_items_that_are_too_long_are_counted_apart(mvquant, folder):
    _, out, _ = mvquant("eval", folder, "--tasks", "passkey", "--limit", "7", "--json")
    found = json.loads(out)["tasks"]["passkey"]
    assert found["n"] == 1
    assert found["too_long"] == [f"passkey-{index:04d}" for index in range(1, 7)]
    _, out, _ = mvquant("eval", folder, "--tasks", "passkey", "--limit", "7")
    assert "6 items of passkey are longer than the model reads: not counted" in flat(out)


def test_logits_that_are_no_numbers_are_named_not_scored(mvquant, tmp_path):
    model = tiny_model("llama", vocab_size=len(tiny_tokenizer()), max_position_embeddings=700)
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[0, 0] = float("nan")
    code, out, err = mvquant("eval", saved(tmp_path, model), "--tasks", "cities,passkey", "--limit", "2")
    assert (code, out) == (1, "")
    assert "the model's logits are NaN or infinite: no answer can be scored" in flat(err)


def test_answers_that_never_end_are_cut_and_told(mvquant, folder, tmp_path):
    output = tmp_path / "result.json"
    code, out, _ = mvquant("eval", folder, "--tasks", "binding", "--limit", "4", "-o", output)
    assert code == 0
    rows = load_results(output)[0].tasks["binding"].rows
    cut = sum(row.ended is False for row in rows)
    assert cut
    assert all(row.tokens == 8 for row in rows if row.ended is False)
    assert f"{cut} answers of binding did not end by themselves and were cut" in flat(out)
