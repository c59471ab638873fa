import json

import datasets
import pytest
from pyarrow import Table, parquet

from mvquant.errors import EvaluationError, MissingDataError
from mvquant.evaluation import hub_data
from mvquant.evaluation.hub_data import AQUA_RAT, GSM8K, IMDB, read_rows

ROW = {"question": "How many?", "answer": "#### 3"}
OTHER = {"question": "How few?", "answer": "#### 2"}


@pytest.fixture(autouse=True)
def _no_folder_in_the_environment(monkeypatch):
    monkeypatch.delenv(hub_data.VARIABLE, raising=False)


def write_lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_parquet(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(Table.from_pylist(rows), path)


def write_broken_parquet(path):
    """Its head and its end are whole, its rows are not."""
    write_parquet(path, [ROW, OTHER] * 100)
    content = bytearray(path.read_bytes())
    content[4:60] = b"\xff" * 56
    path.write_bytes(content)


def rows_of(wanted, folder):
    return [row for _, row in read_rows(wanted, folder)]


@pytest.mark.parametrize(
    "path",
    [
        "openai/gsm8k/main/test-00000-of-00001.parquet",
        "gsm8k/main/test-00000-of-00001.parquet",
        "gsm8k.test.jsonl",
        "gsm8k/test.jsonl",
    ],
)
def test_every_layout_is_read(tmp_path, path):
    (write_parquet if path.endswith("parquet") else write_lines)(tmp_path / path, [ROW, OTHER])
    assert rows_of(GSM8K, tmp_path) == [ROW, OTHER]


def test_shards_are_read_in_order_and_other_layouts_left_alone(tmp_path):
    for shard, row in enumerate([ROW, OTHER]):
        write_parquet(tmp_path / f"openai/gsm8k/main/test-0000{shard}-of-00002.parquet", [row])
    write_parquet(tmp_path / "openai/gsm8k/main/train-00000-of-00001.parquet", [ROW])
    write_lines(tmp_path / "gsm8k.test.jsonl", [ROW])
    assert rows_of(GSM8K, tmp_path) == [ROW, OTHER]


def test_the_folder_can_come_from_the_environment(tmp_path, monkeypatch):
    write_lines(tmp_path / "gsm8k.test.jsonl", [ROW])
    monkeypatch.setenv(hub_data.VARIABLE, str(tmp_path))
    assert rows_of(GSM8K, None) == [ROW]


def test_no_data_in_the_folder_says_what_to_download_where(tmp_path):
    with pytest.raises(
        MissingDataError, match=r"gsm8k: no data in .*: none of openai/gsm8k/main/test-\*\.parquet"
    ) as error:
        rows_of(GSM8K, tmp_path)
    assert error.value.way_out == "hf download openai/gsm8k --repo-type dataset --local-dir DATA/gsm8k"


def test_neither_folder_nor_hub_says_what_to_download_where():
    with pytest.raises(MissingDataError, match=r"huggingface\.co/datasets/stanfordnlp/imdb cannot be had") as error:
        rows_of(IMDB, None)
    assert error.value.way_out == "hf download stanfordnlp/imdb --repo-type dataset --local-dir DATA/imdb"


@pytest.mark.parametrize("wanted", [GSM8K, AQUA_RAT, IMDB])
def test_what_the_command_downloads_is_found(tmp_path, wanted):
    """The Hub's own files, where the command puts them: those of the split are read, no others."""
    folder = tmp_path / wanted.download.rsplit("DATA/", 1)[1] / wanted.config
    rows = [{field: kind() for field, kind in wanted.fields.items()} for _ in range(3)]
    write_parquet(folder / "test-00000-of-00001.parquet", rows)
    write_parquet(folder / "train-00000-of-00001.parquet", rows * 2)
    assert rows_of(wanted, tmp_path) == rows


def test_the_hub_is_asked_where_no_folder_is_named(monkeypatch):
    asked = []

    def load_dataset(*where, **split):
        asked.append((where, split))
        return [ROW]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert rows_of(GSM8K, None) == [ROW]
    assert asked == [(("openai/gsm8k", "main"), {"split": "test"})]


def test_a_download_that_is_broken_says_what_to_download_anew(tmp_path, monkeypatch):
    """What the library itself raises over a broken file is no ValueError, nor any other of the usual ones."""
    broken, load = tmp_path / "broken.parquet", datasets.load_dataset
    write_broken_parquet(broken)

    def load_dataset(*_where, split):
        return load("parquet", data_files={split: str(broken)}, split=split, cache_dir=str(tmp_path / "cache"))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    message = r"^gsm8k: https://huggingface\.co/datasets/openai/gsm8k cannot be had \(.*: Couldn't deserialize"
    with pytest.raises(MissingDataError, match=message):
        rows_of(GSM8K, None)


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(EvaluationError, match=r"the data folder .*nowhere does not exist"):
        rows_of(GSM8K, tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        pytest.param("{", "not JSON", id="not-json"),
        pytest.param("[1]", "not an object", id="no-object"),
        pytest.param('{"question": "?"}', "answer: str is needed, and there is None", id="missing"),
        pytest.param('{"question": 3, "answer": "4"}', "question: str is needed, and there is 3", id="type"),
    ],
)
def test_malformed_lines_are_named(tmp_path, line, message):
    path = tmp_path / "gsm8k.test.jsonl"
    path.write_text(json.dumps(ROW) + "\n\n" + line + "\n")
    with pytest.raises(EvaluationError, match=rf"gsm8k\.test\.jsonl, line 3: {message}"):
        rows_of(GSM8K, tmp_path)


def test_malformed_parquet_rows_and_files_are_named(tmp_path):
    path = tmp_path / "openai/gsm8k/main/test-00000-of-00001.parquet"
    write_parquet(path, [ROW, {"question": "?", "answer": None}])
    with pytest.raises(EvaluationError, match=r"\.parquet, row 2: answer: str is needed"):
        rows_of(GSM8K, tmp_path)
    path.write_bytes(b"no parquet")
    with pytest.raises(EvaluationError, match=r"\.parquet: not a Parquet file"):
        rows_of(GSM8K, tmp_path)


def test_text_that_is_not_utf_8(tmp_path):
    (tmp_path / "gsm8k.test.jsonl").write_bytes(b"\xff")
    with pytest.raises(EvaluationError, match=r"cannot read .*gsm8k\.test\.jsonl"):
        rows_of(GSM8K, tmp_path)
