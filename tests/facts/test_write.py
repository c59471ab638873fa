import hashlib
from pathlib import Path

import pytest

from mvquant.facts import TOPICS, write

DATA = Path(__file__).parents[2] / "eval" / "data"


@pytest.mark.parametrize("topic", TOPICS)
def test_shipped_items_are_what_the_tables_make(topic):
    assert (DATA / topic / "items.jsonl").read_text(encoding="utf-8") == write.jsonl(topic), (
        "python -m mvquant.facts.write"
    )


@pytest.mark.parametrize("topic", TOPICS)
def test_cards_give_the_hash(topic):
    digest = hashlib.sha256((DATA / topic / "items.jsonl").read_bytes()).hexdigest()
    assert f"{digest}  items.jsonl" in (DATA / topic / "README.md").read_text(encoding="utf-8")


def test_the_command_writes_every_topic(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["write", "-o", str(tmp_path)])
    monkeypatch.setattr(write, "jsonl", lambda topic: f"{topic}\n")
    write.main()
    assert {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.jsonl")} == {
        f"{topic}/items.jsonl" for topic in TOPICS
    }
