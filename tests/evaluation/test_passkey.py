from collections import Counter
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from mvquant.evaluation.items import Item, hash_items
from mvquant.evaluation.passkey import (
    DEPTHS,
    FILLER,
    KEY,
    LENGTHS,
    OPENING,
    QUESTION,
    REPEATS,
    ROOM,
    passkey_items,
)
from mvquant.evaluation.text_length import count_tokens, count_words
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


def test_texts_leave_room_for_the_answer_and_are_as_long_as_they_say_but_for_a_sentence(items):
    for item in items[::20]:
        assert item["length"] - ROOM - 16 < count_words(item["prompt"]) <= item["length"] - ROOM


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


def trained(model, trainer, pre_tokenizer):
    """A tokenizer of a few hundred tokens, trained on the sentences themselves."""
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.train_from_iterator([OPENING, KEY, QUESTION, *FILLER], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


def byte_level():
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["<unk>"], initial_alphabet=alphabet)
    return trained(models.BPE(), trainer, pre_tokenizers.ByteLevel(add_prefix_space=False))


def sentence_pieces():
    trainer = trainers.UnigramTrainer(
        vocab_size=200, special_tokens=["<unk>"], unk_token="<unk>", initial_alphabet=list("0123456789\n")
    )
    return trained(models.Unigram(), trainer, pre_tokenizers.Metaspace())


TOKENIZERS = {"bytes": tiny_tokenizer, "byte-level-bpe": byte_level, "sentence-pieces": sentence_pieces}


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("depth", [0.0, 0.5])
def test_lengths_are_those_of_the_tokenizer(kind, depth):
    """Prompt, special tokens and an answer of 16 tokens fit a model of exactly that many positions."""
    tokenizer = TOKENIZERS[kind]()
    loads = []
    count = count_tokens(lambda: loads.append(kind) or tokenizer)
    longest = max(count(f" {sentence}") for sentence in FILLER)
    assert loads == [kind]
    for item in passkey_items((512, 2048, 8192), (depth,), 2, count=count):
        found = len(tokenizer(item["prompt"], verbose=False)["input_ids"])
        assert item["length"] - ROOM - longest - 8 < found <= item["length"] - 17


def test_a_tokenizer_changes_how_much_is_said_and_nothing_else():
    words, letters = (passkey_items(SHORT, (0.0,), 2, count=count) for count in (count_words, len))
    for more, less in zip(words, letters, strict=True):
        body = less["prompt"].removesuffix(QUESTION)
        assert more["prompt"].startswith(body)
        assert more["answer"] == less["answer"]


def test_a_tokenizer_that_counts_nothing_makes_no_endless_text():
    assert passkey_items(SHORT, (0.5,), 1, count=lambda _: 0)


def test_the_seed_decides_everything():
    few = {"lengths": SHORT, "depths": (0.0, 1.0), "repeats": 1}
    assert passkey_items(**few) == passkey_items(**few) != passkey_items(**few, seed="another")
