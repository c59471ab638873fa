"""Packing: full sequences, the same for the same seed, and chat templates for conversations."""

import logging

import pytest
import torch

from mvquant.calibration import Conversation, calibration_batches
from mvquant.errors import CalibrationError
from mvquant.stats import token_hash
from tests.calibration.words import BOS, CHAT, EOS, chat_tokenizer, text, tokens, word_tokenizer


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


def talk(first: int, *roles: str) -> Conversation:
    """A conversation of two words a turn: `w1 w2`, `w3 w4`."""
    return Conversation(tuple((role, text(first + 2 * turn, 2)) for turn, role in enumerate(roles)))


def said(first: int, *roles: str) -> list[int]:
    """Its tokens in the chat template, `<s>` left out."""
    turns = [[CHAT[f"<{role}>"], *tokens(first + 2 * turn, 2), CHAT["<end>"]] for turn, role in enumerate(roles)]
    return [token for turn in turns for token in turn]


@pytest.mark.parametrize("bos", [True, False], ids=["bos", "no-bos"])
def test_conversations_are_put_into_the_chat_template_and_begin_once(bos: bool):
    start = [BOS] if bos else []
    talks = [talk(10 * number, "user", "assistant") for number in range(3)]
    length = len(start) + 3 * 8 + 2 * len(start)
    (row,) = sequences(calibration_batches(chat_tokenizer(bos=bos), talks, sequences=1, length=length, seed=0))
    parts = [row[len(start) + index * (8 + len(start)) :][:8] for index in range(3)]
    assert sorted(parts) == [said(10 * number, "user", "assistant") for number in range(3)]
    assert row.count(BOS) == (3 if bos else 0)
    assert EOS not in row


def test_a_long_conversation_gives_windows_of_its_own():
    long = talk(0, *(["user", "assistant"] * 5))
    rows = sequences(calibration_batches(chat_tokenizer(), [long], sequences=9, length=11, seed=0))
    expected = said(0, *(["user", "assistant"] * 5))
    assert sorted(row[1:] for row in rows) == sorted(expected[begin : begin + 10] for begin in range(0, 40, 10))


def test_never_takes_what_was_said_as_text_and_is_content(caplog: pytest.LogCaptureFixture):
    talks = [talk(10 * number, "user", "assistant") for number in range(3)]
    plain = [each.plain for each in talks]
    with caplog.at_level(logging.WARNING, "mvquant"):
        made = [
            calibration_batches(tokenizer, texts, 1, 15, 0, "never")
            for tokenizer, texts in ((chat_tokenizer(), talks), (chat_tokenizer(), plain), (word_tokenizer(), talks))
        ]
    assert len({token_hash(batches) for batches in made}) == 1
    assert not caplog.records


def test_plain_text_for_a_chat_model_is_warned_of_and_taken(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING, "mvquant"):
        made = calibration_batches(chat_tokenizer(), [text(0, 90)], sequences=4, length=10, seed=0)
    assert "the model has a chat template, and the calibration text is plain" in caplog.text
    assert "HuggingFaceH4/ultrachat_200k" in caplog.text
    assert token_hash(made) == token_hash(calibration_batches(word_tokenizer(), [text(0, 90)], 4, 10, seed=0))


def test_conversations_for_a_model_without_a_template_are_warned_of(caplog: pytest.LogCaptureFixture):
    talks = [talk(10 * number, "user", "assistant") for number in range(3)]
    with caplog.at_level(logging.WARNING, "mvquant"):
        (row,) = sequences(calibration_batches(word_tokenizer(), talks, sequences=1, length=15, seed=0))
    assert "are conversations, and the model has no chat template" in caplog.text
    assert [row[index] for index in (5, 10)] == [EOS, EOS]
    assert not set(row) & set(CHAT.values())


def test_what_fits_the_model_is_not_warned_of(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING, "mvquant"):
        calibration_batches(chat_tokenizer(), [talk(0, *(["user", "assistant"] * 5))], sequences=1, length=9, seed=0)
        calibration_batches(word_tokenizer(), [text(0, 90)], sequences=4, length=10, seed=0)
    assert not caplog.records


def test_conversations_that_the_template_refuses_are_counted_and_left_out(caplog: pytest.LogCaptureFixture):
    talks = [talk(0, "user", "assistant"), talk(20, "user", "tool"), talk(40, "user", "assistant")]
    with caplog.at_level(logging.WARNING, "mvquant"):
        (row,) = sequences(calibration_batches(chat_tokenizer(), talks, sequences=1, length=18, seed=0))
    assert "refuses 1 of 3 conversations (no tools): they are left out" in caplog.text
    assert not set(row) & set(tokens(20, 4))
    with pytest.raises(CalibrationError, match=r"refuses 1 of 1 conversations \(no tools\): .*`chat: never`"):
        calibration_batches(chat_tokenizer(), talks[1:2], sequences=1, length=5, seed=0)
