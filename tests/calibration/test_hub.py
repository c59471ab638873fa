"""Data sets in the Hub's own layouts, from folders as `hf download` makes them."""

import gzip
import json
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from mvquant.calibration import Conversation, calibration_texts
from mvquant.errors import CalibrationError

SPLITS = ("train", "validation", "test")
WIKITEXT = ("wikitext-103-raw-v1", "wikitext-2-raw-v1")
CHATS = ("train_sft", "test_sft", "train_gen", "test_gen")


def card(configurations: dict[str, dict[str, str]]) -> str:
    """The top of a data set card: files by split, by configuration."""
    lines = ["---", "configs:"]
    for name, files in configurations.items():
        lines += [f"- config_name: {name}", "  data_files:"]
        lines += [line for split, path in files.items() for line in (f"  - split: {split}", f"    path: {path}")]
    return "\n".join([*lines, "---", "# A data set"])


def wikitext(folder: Path, *, with_card: bool) -> Path:
    for name in WIKITEXT:
        (folder / name).mkdir(parents=True)
        for split in SPLITS:
            table = pyarrow.table({"text": [f" = {name} {split} = \n", ""]})
            parquet.write_table(table, folder / name / f"{split}-00000-of-00001.parquet")
    if with_card:
        paths = {name: {split: f"{name}/{split}-*" for split in SPLITS} for name in WIKITEXT}
        (folder / "README.md").write_text(card(paths))
    return folder


def ultrachat(folder: Path, *splits: str, with_card: bool) -> Path:
    (folder / "data").mkdir(parents=True)
    for split in splits:
        messages = [{"content": f"from {split}", "role": "user"}, {"content": "yes", "role": "assistant"}]
        rows = [{"prompt": "p", "prompt_id": "1", "messages": messages}]
        parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "data" / f"{split}-00000-of-00003-a3ecf9.parquet")
    if with_card:
        (folder / "README.md").write_text(card({"default": {split: f"data/{split}-*" for split in CHATS}}))
    return folder


def c4(folder: Path, *, with_card: bool) -> Path:
    (folder / "en").mkdir(parents=True)
    for shard in ("train.00000-of-01024", "train.00001-of-01024", "validation.00000-of-00008"):
        with gzip.open(folder / "en" / f"c4-{shard}.json.gz", "wt") as file:
            file.write(json.dumps({"text": shard, "timestamp": "2019-04-25T12:57:54Z", "url": "https://a.b"}) + "\n")
    if with_card:
        paths = {split: f"en/c4-{split}.*.json.gz" for split in ("train", "validation")}
        (folder / "README.md").write_text(card({"en": paths, "nl": {"train": "nl/c4-train.*.json.gz"}}))
    return folder


@pytest.mark.parametrize("with_card", [True, False], ids=["card", "files"])
def test_wikitext_gives_the_training_split_of_the_configuration_asked_for(with_card: bool, tmp_path: Path):
    source = f"{wikitext(tmp_path / 'wikitext', with_card=with_card)}:wikitext-2-raw-v1"
    assert calibration_texts(source) == [" = wikitext-2-raw-v1 train = \n"]
    assert calibration_texts(source, split="test") == [" = wikitext-2-raw-v1 test = \n"]
    with pytest.raises(CalibrationError, match=r"has no split .dev.; choose one of its own.*train, validation, test"):
        calibration_texts(source, split="dev")


def test_a_card_with_several_configurations_wants_one(tmp_path: Path):
    folder = wikitext(tmp_path / "wikitext", with_card=True)
    with pytest.raises(CalibrationError, match=r"could not be loaded: .*wikitext-103-raw-v1.*wikitext-2-raw-v1"):
        calibration_texts(str(folder))
    with pytest.raises(CalibrationError, match="wikitext-3"):
        calibration_texts(f"{folder}:wikitext-3")


@pytest.mark.parametrize("with_card", [True, False], ids=["card", "files"])
def test_c4_is_read_from_its_compressed_shards(with_card: bool, tmp_path: Path):
    folder = c4(tmp_path / "c4", with_card=with_card)
    assert calibration_texts(f"{folder}:en") == ["train.00000-of-01024", "train.00001-of-01024"]
    assert calibration_texts(f"{folder}:en", split="validation") == ["validation.00000-of-00008"]
    shard = folder / "en" / "c4-train.00001-of-01024.json.gz"
    assert calibration_texts(str(shard)) == ["train.00001-of-01024"]


def test_a_card_that_lists_files_which_are_not_there_says_so(tmp_path: Path):
    with pytest.raises(CalibrationError, match=r"files that are not there\nIf its card .* remove the card"):
        calibration_texts(f"{c4(tmp_path / 'c4', with_card=True)}:nl")
    partly = ultrachat(tmp_path / "ultrachat", "train_sft", with_card=True)
    with pytest.raises(CalibrationError, match=r"(?s)could not be loaded.*remove the card"):
        calibration_texts(str(partly))


@pytest.mark.parametrize("with_card", [True, False], ids=["card", "files"])
def test_ultrachat_gives_the_conversations_of_its_first_training_split(with_card: bool, tmp_path: Path):
    splits = CHATS if with_card else CHATS[:2]
    source = str(ultrachat(tmp_path / "ultrachat", *splits, with_card=with_card))
    assert calibration_texts(source) == [Conversation((("user", "from train_sft"), ("assistant", "yes")))]
    assert calibration_texts(source, "test_sft", "messages")[0].turns[0] == ("user", "from test_sft")
    assert calibration_texts(source, column="prompt") == ["p"]


def test_a_folder_of_plain_files_is_no_data_set_of_the_hub(tmp_path: Path):
    (tmp_path / "README.md").write_text("# My texts\n---\nconfigs:\n---\n")
    (tmp_path / "train.txt").write_text("one")
    (tmp_path / "test.txt").write_text("two")
    assert calibration_texts(str(tmp_path)) == ["two", "one"]


def test_rows_beyond_the_bound_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("mvquant.calibration.texts.MOST_ROWS", 1)
    folder = c4(tmp_path / "c4", with_card=True)
    (folder / "en" / "c4-train.00001-of-01024.json.gz").write_bytes(b"never opened")
    assert calibration_texts(f"{folder}:en") == ["train.00000-of-01024"]


@pytest.mark.parametrize("source", ["Salesforce/wikitext:wikitext-2-raw-v1", "nobody/no-such-dataset"])
def test_a_hub_dataset_without_a_network_says_what_to_download(source: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    name = source.partition(":")[0]
    with pytest.raises(CalibrationError, match=rf"'{name}' .*could not be loaded") as caught:
        calibration_texts(source)
    assert f"hf download --repo-type dataset {name}" in str(caught.value)


def test_a_web_corpus_is_not_to_be_downloaded_whole(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(CalibrationError) as caught:
        calibration_texts("allenai/c4:en")
    command = "hf download --repo-type dataset allenai/c4 --include 'en/c4-train.00000-of-*.json.gz' --local-dir DIR"
    assert command in str(caught.value)
    assert "give DIR:en as the source" in str(caught.value)


@pytest.mark.network
def test_a_hub_dataset_is_streamed():
    texts = calibration_texts("Salesforce/wikitext:wikitext-2-raw-v1", split="test")
    assert len(texts) > 1000
