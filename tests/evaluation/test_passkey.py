from collections import Counter
from pathlib import Path

import pytest

from mvquant.evaluation.items import Item, hash_items
from mvquant.evaluation.passkey import DEPTHS, LENGTHS, OPENING, QUESTION, REPEATS, count_words, passkey_items
from tests.evaluation.examples import tiny_tokenizer

CARD = Path(__file__).parents[2] / "eval" / "data" / "passkey" / "README.md"
SHORT = (512, 1024)


@pytest.fixture(scope="module")
def items():
    return passkey_items()


def test_every_length_and_depth_has_as_many_items_at_least_a_thousand_in_all(items):
    cells = Counter((item["length"], item["depth"]) for item in items)
    assert set(cells) == {(length, depth) for length in LENGTHS for depth in DEPTHS}
    assert set(cells.values()) == {REPEATS}
    assert len(items) >= 1000
    assert [item["length"] for item in items[:8]] == [*LENGTHS, LENGTHS[0]]


def test_texts_are_as_long_as_they_say_but_for_a_sentence(items):
    for item in items[::20]:
        assert item["length"] - 16 < count_words(item["prompt"]) <= item["length"]


def test_the_key_stands_at_its_depth_and_nowhere_else(items):
    for item in items[::20]:
        text = item["prompt"].removeprefix(OPENING).removesuffix(QUESTION)
        before, told, after = text.partition(f"The pass key is {item['answer']}.")
        assert told
        assert len(before) / (len(before) + len(after)) == pytest.approx(
            item["depth"], abs=0.1 if item["length"] > 512 else 0.2
        )
        assert "".join(filter(str.isdigit, text)) == item["answer"] * 2


def test_keys_have_five_digits_and_few_repeat(items):
    keys = [item["answer"] for item in items]
    assert all(len(key) == 5 and key.isdigit() for key in keys)
    assert len(set(keys)) > 0.98 * len(keys)


def test_the_hash_is_that_of_the_card(items):
    digest = hash_items([Item.model_validate(item) for item in items])
    assert digest in CARD.read_text(encoding="utf-8")


def test_a_tokenizer_can_say_how_long_a_text_is():
    tokenizer = tiny_tokenizer()
    count = lambda text: len(tokenizer(text, add_special_tokens=False)["input_ids"])  # noqa: E731
    for item in passkey_items(SHORT, (0.5,), 2, count=count):
        assert item["length"] - 60 < count(item["prompt"]) <= item["length"]


def test_the_seed_decides_everything():
    few = {"lengths": SHORT, "depths": (0.0, 1.0), "repeats": 1}
    assert passkey_items(**few) == passkey_items(**few) != passkey_items(**few, seed="another")
