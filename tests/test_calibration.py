"""Calibration: where text comes from, how it is packed, and what bad text says."""

import json
import logging
from pathlib import Path

import pyarrow
import pytest
import torch
from pyarrow import parquet
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from mvquant.calibration import calibration_batches, calibration_texts
from mvquant.errors import CalibrationError
from mvquant.stats import token_hash

BOS, EOS = 0, 1
WORDS = 500


def word_tokenizer(*, bos: bool = True, eos: bool = True) -> PreTrainedTokenizerFast:
    """One token per word: `w7` is token 9."""
    vocabulary = {"<s>": BOS, "</s>": EOS, **{f"w{number}": number + 2 for number in range(WORDS)}}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="</s>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if bos:
        words.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    names = {"bos_token": "<s>"} if bos else {}
    return PreTrainedTokenizerFast(tokenizer_object=words, **names, **({"eos_token": "</s>"} if eos else {}))


def text(begin: int, count: int) -> str:
    return " ".join(f"w{number}" for number in range(begin, begin + count))


def tokens(begin: int, count: int) -> list[int]:
    return list(range(begin + 2, begin + 2 + count))


def sequences(batches: list[torch.Tensor]) -> list[list[int]]:
    return [batch[0].tolist() for batch in batches]


def test_sequences_are_full_and_begin_as_the_tokenizer_begins_a_text():
    batches = calibration_batches(word_tokenizer(), [text(0, 200)], sequences=4, length=10, seed=0)
    assert [batch.shape for batch in batches] == [(1, 10)] * 4
    assert all(row[0] == BOS and BOS not in row[1:] for row in sequences(batches))
    without = calibration_batches(word_tokenizer(bos=False), [text(0, 200)], sequences=4, length=10, seed=0)
    assert all(BOS not in row for row in sequences(without))


def test_windows_of_a_long_text_do_not_overlap():
    rows = sequences(calibration_batches(word_tokenizer(), [text(0, 90)], sequences=10, length=10, seed=3))
    assert sorted(rows) == [[BOS, *tokens(9 * index, 9)] for index in range(10)]


def test_short_texts_are_joined_with_the_end_of_text_token_between_them():
    texts = [text(10 * index, 3) for index in range(3)]
    (row,) = sequences(calibration_batches(word_tokenizer(), texts, sequences=1, length=12, seed=0))
    inner = row[1:]
    assert inner[3] == inner[7] == EOS
    assert sorted([inner[:3], inner[4:7], inner[8:]]) == [tokens(10 * index, 3) for index in range(3)]
    (joined,) = sequences(calibration_batches(word_tokenizer(eos=False), texts, sequences=1, length=10, seed=0))
    assert EOS not in joined


def test_a_long_text_is_not_mixed_with_others():
    texts = [text(0, 30), *(text(100 + index, 1) for index in range(40))]
    for row in sequences(calibration_batches(word_tokenizer(), texts, sequences=8, length=10, seed=1)):
        long = [token in tokens(0, 30) for token in row[1:]]
        assert all(long) or not any(long)


def test_the_seed_chooses():
    texts = [text(20 * index, 20) for index in range(20)]
    chosen = [calibration_batches(word_tokenizer(), texts, sequences=3, length=16, seed=seed) for seed in (0, 0, 1)]
    assert token_hash(chosen[0]) == token_hash(chosen[1]) != token_hash(chosen[2])


def test_less_text_than_asked_for_gives_what_there_is_and_says_so(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING, "mvquant"):
        batches = calibration_batches(word_tokenizer(), [text(0, 30)], sequences=8, length=11, seed=0)
    assert len(batches) == 3
    assert "gives 3 sequences of 11 tokens, not 8" in caplog.text


def test_text_shorter_than_one_sequence_is_an_error_with_both_numbers():
    with pytest.raises(CalibrationError, match=r"too short: 2 texts with 30 tokens.* one sequence of 64 needs 63"):
        calibration_batches(word_tokenizer(), [text(0, 20), text(0, 10)], sequences=2, length=64, seed=0)
    with pytest.raises(CalibrationError, match="0 texts with 0 tokens"):
        calibration_batches(word_tokenizer(), [], sequences=2, length=64, seed=0)


@pytest.mark.parametrize(("count", "length"), [(0, 16), (2, 1), (2, 0)])
def test_no_sequences_or_no_room_is_an_error(count: int, length: int):
    with pytest.raises(CalibrationError, match="at least one sequence of 2 tokens"):
        calibration_batches(word_tokenizer(), [text(0, 20)], sequences=count, length=length, seed=0)


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
        ("empty.txt", b" \n", "holds no text"),
        ("empty.jsonl", b"", "holds no text"),
        ("picture.png", b"png", r"picture\.png is no calibration text .*\.txt, \.jsonl, \.parquet"),
    ],
)
def test_files_that_hold_no_text_are_named(name: str, content: bytes, message: str, tmp_path: Path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CalibrationError, match=message):
        calibration_texts(str(tmp_path / name))


def test_an_empty_folder_is_named(tmp_path: Path):
    with pytest.raises(CalibrationError, match="is no calibration text"):
        calibration_texts(str(tmp_path))


@pytest.mark.parametrize("source", ["no/such/folder/text.txt", "missing.jsonl", "what is this?", "a/b/c"])
def test_a_source_that_does_not_exist_is_an_error(source: str):
    with pytest.raises(CalibrationError, match=r"does not exist; give a file \(\.txt, \.jsonl, \.parquet\)"):
        calibration_texts(source)


@pytest.mark.parametrize("source", ["Salesforce/wikitext:wikitext-2-raw-v1", "nobody/no-such-dataset"])
def test_a_hub_dataset_without_a_network_says_what_to_download(source: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    name = source.partition(":")[0]
    with pytest.raises(CalibrationError, match=rf"'{name}' .*could not be loaded") as caught:
        calibration_texts(source)
    assert f"hf download --repo-type dataset {name}" in str(caught.value)


@pytest.mark.network
def test_a_hub_dataset_is_streamed():
    texts = calibration_texts("Salesforce/wikitext:wikitext-2-raw-v1", split="test")
    assert len(texts) > 1000
