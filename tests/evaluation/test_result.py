import json
import math
from pathlib import Path

import pytest

from mvquant.errors import EvaluationError
from mvquant.evaluation import EvalResult, ItemRow, load_results, save_results
from tests.evaluation.examples import make_result


@pytest.fixture
def result():
    return make_result("reference", {"passkey": 0.9, "recall_cities": 0.8}, items=50, bits_per_weight=4.125)


def test_one_result_is_plain_json_and_comes_back_equal(tmp_path, result):
    path = tmp_path / "new" / "result.json"
    result.save(path)
    assert EvalResult.load(path) == result
    content = json.loads(path.read_text())
    assert content["schema_version"] == 1
    assert content["tasks"]["passkey"]["rows"][0] == ["passkey-0", "a", "a", True]


def test_several_results_share_a_file(tmp_path, result):
    path = tmp_path / "results.json"
    other = make_result("w4a16", {"passkey": 0.5}, items=50)
    save_results([result, other], path)
    assert load_results(path) == [result, other]
    with pytest.raises(EvaluationError, match="holds 2 results where one is needed"):
        EvalResult.load(path)


def test_impossible_choices_come_back_too(tmp_path, result):
    row = ItemRow("q", "yes", "yes", True, (-0.5, -math.inf))
    task = result.tasks["passkey"].model_copy(update={"rows": (row,)})
    changed = result.model_copy(update={"tasks": {"passkey": task}})
    changed.save(tmp_path / "result.json")
    assert EvalResult.load(tmp_path / "result.json") == changed


def test_a_row_is_small(tmp_path, result):
    result.save(tmp_path / "result.json")
    assert (tmp_path / "result.json").stat().st_size < 50 * 100


def test_an_interrupted_save_leaves_the_old_file_and_nothing_else(tmp_path, result, monkeypatch):
    path = tmp_path / "result.json"
    path.write_text("old")

    def interrupt(*_args):
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        result.save(path)
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("result.json", "old")]


def test_a_file_that_cannot_be_written(tmp_path, result):
    (tmp_path / "file").write_text("")
    with pytest.raises(EvaluationError, match="cannot write"):
        result.save(tmp_path / "file" / "result.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param({"schema_version": 2}, "line 1: .*schema_version", id="newer"),
        pytest.param({"colour": 1}, "line 1: .*colour", id="unknown-key"),
        pytest.param(None, "line 1: .*JSON", id="not-json"),
    ],
)
def test_files_that_are_no_results(tmp_path, result, change, message):
    content = json.dumps(json.loads(result.model_dump_json()) | change) if change else "{"
    path = tmp_path / "result.json"
    path.write_text(content)
    with pytest.raises(EvaluationError, match=message):
        load_results(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(EvaluationError, match=r"cannot read .*result\.json"):
        load_results(tmp_path / "result.json")
