"""Where calibration text comes from, and what bad text says."""

import gzip
import json
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from mvquant.calibration import Conversation, calibration_texts
from mvquant.errors import CalibrationError

UNREADABLE = Path("/proc/self/mem")
"""A file that gives an error when it is read from its start, whoever reads."""


def write_table(path: Path, rows: list[dict[str, object]]) -> None:
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    else:
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_tables_give_a_text_per_row(suffix: str, tmp_path: Path):
    rows = [{"text": "one\u2028line", "id": 1, "title": "a"}, {"text": " ", "id": 2, "title": "b"}, {"text": "two"}]
    write_table(tmp_path / f"table{suffix}", rows)
    assert calibration_texts(str(tmp_path / f"table{suffix}")) == ["one\u2028line", "two"]
    assert calibration_texts(str(tmp_path / f"table{suffix}"), column="title") == ["a", "b"]


def test_a_single_column_of_strings_needs_no_name(tmp_path: Path):
    write_table(tmp_path / "table.jsonl", [{"question": "why?", "n": 1}])
    assert calibration_texts(str(tmp_path / "table.jsonl")) == ["why?"]
    write_table(tmp_path / "table.jsonl", [{"question": "why?", "answer": "so", "n": 1}])
    with pytest.raises(CalibrationError, match=r"no column 'text'.*text columns: question, answer"):
        calibration_texts(str(tmp_path / "table.jsonl"))
    with pytest.raises(CalibrationError, match=r"no column 'n' with text; its text columns: question, answer"):
        calibration_texts(str(tmp_path / "table.jsonl"), column="n")


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
@pytest.mark.parametrize("column", ["text", "body"])
def test_rows_without_a_text_may_come_first(suffix: str, column: str, tmp_path: Path):
    write_table(tmp_path / f"table{suffix}", [{"id": 1, column: None}, {"id": 2, column: "one"}])
    assert calibration_texts(str(tmp_path / f"table{suffix}")) == ["one"]
    assert calibration_texts(str(tmp_path / f"table{suffix}"), column=column) == ["one"]


def test_a_column_may_be_missing_from_the_first_row(tmp_path: Path):
    write_table(tmp_path / "table.jsonl", [{"id": 1}, {"id": 2, "text": "one"}])
    assert calibration_texts(str(tmp_path / "table.jsonl")) == ["one"]


def test_a_column_that_is_named_is_looked_for_in_every_row(tmp_path: Path):
    write_table(tmp_path / "table.jsonl", [{"id": 1}] * 1000 + [{"id": 2, "text": "one"}])
    assert calibration_texts(str(tmp_path / "table.jsonl"), column="text") == ["one"]


def test_a_folder_is_read_in_the_order_of_its_names(tmp_path: Path):
    (tmp_path / "deeper").mkdir()
    (tmp_path / "b.txt").write_text("second\nline")
    (tmp_path / "a.txt").write_text("first")
    (tmp_path / "README.md").write_text("not this")
    write_table(tmp_path / "deeper" / "c.jsonl", [{"text": "third"}])
    assert calibration_texts(str(tmp_path)) == ["first", "second\nline", "third"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("bad.txt", b"\xff\xfe\xff", r"bad\.txt is not UTF-8"),
        ("bad.jsonl", b'{"text": "good"}\n{"text": ', r"bad\.jsonl, line 2 is not JSON"),
        ("bad.jsonl", b"[1, 2]", r"bad\.jsonl, line 1 is not a JSON object"),
        ("bad.parquet", b"PAR1 not really", r"bad\.parquet cannot be read as parquet"),
        ("bad.json", b'[{"text": "a"},\n 3]', r"bad\.json, line 1 is not a JSON object .* nor is its entry 2 one"),
        ("bad.json", b'[{"text": "a"},\n{"te', r"bad\.json, line 2 is not JSON"),
        ("bad.jsonl.gz", b"not compressed", r"bad\.jsonl\.gz cannot be read as compressed UTF-8 text"),
        ("quiet.jsonl", b'{"messages": [{"role": "user", "content": " "}], "text": ""}', "holds no text"),
        ("empty.txt", b" \n", "holds no text"),
        ("empty.jsonl", b"", "holds no text"),
        ("picture.png", b"png", r"picture\.png is no calibration text .*\.txt, \.jsonl, \.json, \.parquet"),
    ],
)
def test_files_that_hold_no_text_are_named(name: str, content: bytes, message: str, tmp_path: Path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CalibrationError, match=message):
        calibration_texts(str(tmp_path / name))


@pytest.mark.skipif(not UNREADABLE.is_file(), reason="no file here that root cannot read either")
@pytest.mark.parametrize("name", ["bad.txt", "bad.json", "bad.jsonl", "bad.jsonl.gz", "bad.parquet"])
def test_a_file_that_cannot_be_read_is_named(name: str, tmp_path: Path):
    (tmp_path / name).symlink_to(UNREADABLE)
    with pytest.raises(CalibrationError, match=rf"{name} cannot be read"):
        calibration_texts(str(tmp_path / name))


def test_compressed_lines_that_are_damaged_are_named(tmp_path: Path):
    whole = bytearray(gzip.compress(b'{"text": "one"}\n'))
    whole[10] = 0xFF  # the type of the first block
    (tmp_path / "lines.jsonl.gz").write_bytes(whole)
    with pytest.raises(CalibrationError, match=r"lines\.jsonl\.gz cannot be read as compressed"):
        calibration_texts(str(tmp_path / "lines.jsonl.gz"))


def test_a_table_with_damaged_pages_is_named(tmp_path: Path):
    path = tmp_path / "table.parquet"
    write_table(path, [{"text": "one " * 1000}, {"text": "two"}])
    column = parquet.read_metadata(path).row_group(0).column(0)
    first = min(page for page in (column.dictionary_page_offset, column.data_page_offset) if page)
    damaged = bytearray(path.read_bytes())
    damaged[first : first + column.total_compressed_size] = b"\xff" * column.total_compressed_size
    path.write_bytes(damaged)
    with pytest.raises(CalibrationError, match=r"table\.parquet cannot be read as parquet"):
        calibration_texts(str(path))


def test_an_empty_folder_is_named(tmp_path: Path):
    with pytest.raises(CalibrationError, match="is no calibration text"):
        calibration_texts(str(tmp_path))


@pytest.mark.parametrize("source", ["no/such/folder/text.txt", "missing.jsonl", "what is this?", "a/b/c"])
def test_a_source_that_does_not_exist_is_an_error(source: str):
    with pytest.raises(CalibrationError, match=r"does not exist; give a file \(\.txt, \.jsonl, \.json, \.parquet"):
        calibration_texts(source)


MESSAGES = [{"role": "user", "content": "why?"}, {"role": "assistant", "content": "so"}]
SHAREGPT = [{"from": "human", "value": "why?"}, {"from": "gpt", "value": "so"}]
ASKED = Conversation((("user", "why?"), ("assistant", "so")))


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
@pytest.mark.parametrize(("column", "cell"), [("messages", MESSAGES), ("conversations", SHAREGPT)])
def test_a_column_of_conversations_is_found_by_itself(suffix: str, column: str, cell: object, tmp_path: Path):
    rows = [{"prompt": "why?", "id": "1", column: cell}, {"prompt": "", "id": "2", column: []}]
    write_table(tmp_path / f"table{suffix}", rows)
    assert calibration_texts(str(tmp_path / f"table{suffix}")) == [ASKED]
    assert calibration_texts(str(tmp_path / f"table{suffix}"), column="prompt") == ["why?"]


def test_conversations_count_before_the_text_made_of_them(tmp_path: Path):
    write_table(tmp_path / "table.jsonl", [{"text": "<|user|>why?", "messages": MESSAGES}])
    assert calibration_texts(str(tmp_path / "table.jsonl")) == [ASKED]
    assert calibration_texts(str(tmp_path / "table.jsonl"), column="text") == ["<|user|>why?"]


def test_a_wrong_column_is_told_which_there_are(tmp_path: Path):
    write_table(tmp_path / "table.jsonl", [{"a": "x", "b": "y", "dialog": MESSAGES}])
    with pytest.raises(CalibrationError, match=r"its text columns: a, b; with conversations: dialog \(choose one\)"):
        calibration_texts(str(tmp_path / "table.jsonl"))
    assert calibration_texts(str(tmp_path / "table.jsonl"), column="dialog") == [ASKED]


def test_json_lists_and_compressed_lines_are_read_too(tmp_path: Path):
    (tmp_path / "list.json").write_text(json.dumps([{"text": "one"}, {"text": "two"}]))
    (tmp_path / "lines.json").write_text('{"text": "one"}\n{"text": "two"}\n')
    with gzip.open(tmp_path / "lines.jsonl.gz", "wt") as file:
        file.write('{"text": "one"}\n\n{"text": "two"}\n')
    for name in ("list.json", "lines.json", "lines.jsonl.gz"):
        assert calibration_texts(str(tmp_path / name)) == ["one", "two"]
    assert len(calibration_texts(str(tmp_path))) == 6


def test_a_web_corpus_is_read_up_to_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("mvquant.calibration.texts.MOST_ROWS", 2)
    with gzip.open(tmp_path / "lines.jsonl.gz", "wt") as file:
        file.write('{"text": "one"}\n{"text": "two"}\n{"text": "not JSON any more')
    assert calibration_texts(str(tmp_path / "lines.jsonl.gz")) == ["one", "two"]
