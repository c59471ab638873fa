import pytest
import torch

from mvquant.comparison.fingerprint import Fingerprint
from mvquant.comparison.store import Store, file_name
from mvquant.errors import EvaluationError, UsageError
from mvquant.evaluation.text_quality import TextQuality, text_quality

MADE = Fingerprint(model="m", plan=None, data="d", settings={"limit": 4}, versions={"torch": "2.13"})
PIECE = text_quality([[1, 2]], [True], 4)


@pytest.fixture
def store(tmp_path):
    notes = []
    store = Store(tmp_path / "out", notes.append)
    store.open()
    return store, notes


def test_a_piece_comes_back_if_nothing_changed(store):
    store, notes = store
    assert store.load("w4a16", "passkey", MADE, TextQuality) is None
    store.save("w4a16", "passkey", MADE, PIECE)
    assert store.load("w4a16", "passkey", MADE, TextQuality) == PIECE
    assert notes == []


def test_a_stale_piece_is_refused_and_it_is_said_why(store):
    store, notes = store
    store.save("w4a16", "passkey", MADE, PIECE)
    other = MADE.model_copy(update={"model": "n", "settings": {"limit": 8}})
    assert store.load("w4a16", "passkey", other, TextQuality) is None
    assert notes == ["w4a16, passkey: was made with other model, limit (4, now 8); done again"]


@pytest.mark.parametrize("text", ["", "{", '{"fingerprint": {}}', '{"fingerprint": 3, "content": 4}', "[]"])
def test_a_damaged_piece_is_done_again(store, text):
    store, notes = store
    store.save("w4a16", "passkey", MADE, PIECE)
    (path,) = store.folder.rglob("passkey.json")
    path.write_text(text)
    assert store.load("w4a16", "passkey", MADE, TextQuality) is None
    assert "damaged" in notes[0]


def test_a_folder_with_something_else_is_not_touched(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UsageError, match="holds something else"):
        Store(tmp_path, print).open()
    with pytest.raises(UsageError, match="holds something else"):
        Store(tmp_path / "thesis.tex", print).open()
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_logits_keep_their_bits(store):
    store, _ = store
    logits = [torch.randn(3, 5).bfloat16(), torch.randn(3, 5)]
    store.save_logits(0, logits[0])
    assert store.logits(2) is None
    store.save_logits(1, logits[1])
    found = store.logits(2)
    assert len(found) == 2
    assert all(torch.equal(found[i], logits[i]) and found[i].dtype == logits[i].dtype for i in range(2))
    store.drop_logits()
    assert store.logits(2) is None


def test_what_a_killed_run_left_is_gone_when_the_next_begins(store):
    """Logits may be another model's, and files that were not complete are nobody's."""
    store, _ = store
    store.save("w4a16", "passkey", MADE, PIECE)
    store.save_logits(0, torch.randn(3, 5))
    for name in ("pieces/w4a16/.recall.json.123", ".results.json.77", ".flips.jsonl.77", "logits/.00001.safetensors.9"):
        (store.folder / name).write_text("{")
    (store.folder / ".notes").write_text("mine")
    store.open()
    assert {path.name for path in store.folder.rglob("*") if path.is_file()} == {"passkey.json", ".notes"}
    assert store.logits(1) is None


@pytest.mark.parametrize("what", ["piece", "logits"])
def test_a_full_disk_leaves_nothing_half_written(store, monkeypatch, what):
    store, _ = store

    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_text", full)
    monkeypatch.setattr("mvquant.comparison.store.save_file", lambda _, path: path.write_bytes(b"half") and full())
    with pytest.raises(EvaluationError, match="No space left on device"):
        if what == "piece":
            store.save("w4a16", "passkey", MADE, PIECE)
        else:
            store.save_logits(0, torch.randn(3, 5))
    assert [path for path in store.folder.rglob("*") if path.is_file()] == []


def test_different_names_never_share_a_file():
    names = ["a/b", "a-b", "a b", "..", "ä", "CON", "full precision", ".a", "a"]
    found = [file_name(name) for name in names]
    assert len(set(found)) == len(names)
    assert not any("/" in name or name.startswith(".") for name in found)
