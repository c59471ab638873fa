import re
from collections import Counter
from pathlib import Path

import pytest

from mvquant.evaluation.binding import SIZES, binding_items, chance
from mvquant.evaluation.items import Item, hash_items
from mvquant.evaluation.parsers import word
from mvquant.evaluation.task_file import read_task_file

EVAL = Path(__file__).parents[2] / "eval"


@pytest.fixture(scope="module")
def items():
    return binding_items()


def read(item):
    """What the statements say: thing -> place."""
    return dict(re.findall(r"the (\w+) in the (\w+)\.", item["prompt"]))


def test_the_prompt_says_the_answer_and_every_place_once(items):
    assert len(items) >= 1000
    for item in items:
        said = read(item)
        thing = re.search(r"\nThe (\w+) is in the$", item["prompt"])[1]
        assert said[thing] == item["answer"] == word(f" {item['answer']}.")
        assert len(said) == len(set(said.values())) == item["stated"]
        assert list(said)[item["position"]] == thing


def test_every_size_asks_for_every_position_about_as_often(items):
    assert Counter(item["stated"] for item in items) == dict.fromkeys(SIZES, len(items) // len(SIZES))
    for size in SIZES:
        positions = Counter(item["position"] for item in items if item["stated"] == size)
        assert set(positions) == set(range(size))
        assert max(positions.values()) - min(positions.values()) <= 1


def test_chance_is_that_of_naming_a_place_of_the_prompt(items):
    exact = sum(1 / len(read(item)) for item in items) / len(items)
    file = read_task_file(EVAL / "tasks" / "contextual" / "binding.yaml")
    assert file.metadata.chance == pytest.approx(exact, abs=5e-5)
    assert chance() == pytest.approx(exact)


def test_the_hash_is_that_of_the_card(items):
    digest = hash_items([Item.model_validate(item) for item in items])
    assert digest in (EVAL / "data" / "binding" / "README.md").read_text(encoding="utf-8")
