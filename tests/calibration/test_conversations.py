"""Conversations as data sets hold them."""

import pytest

from mvquant.calibration.conversations import Conversation, as_conversation
from tests.calibration.words import chat_tokenizer

ASKED = Conversation((("system", "be brief"), ("user", "why?"), ("assistant", "so")))


@pytest.mark.parametrize(
    "cell",
    [
        [
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": "why?"},
            {"role": "assistant", "content": "so"},
        ],
        [{"from": "system", "value": "be brief"}, {"from": "human", "value": "why?"}, {"from": "gpt", "value": "so"}],
        [
            {"role": "system", "content": [{"type": "text", "text": "be "}, {"type": "text", "text": "brief"}]},
            {"role": "user", "content": [{"type": "image", "image": "x"}, {"type": "text", "text": "why?"}]},
            {"role": "assistant", "content": "so", "weight": 1},
        ],
    ],
    ids=["messages", "sharegpt", "parts"],
)
def test_usual_forms_are_read_alike(cell):
    assert as_conversation(cell) == ASKED


@pytest.mark.parametrize(
    "cell",
    [None, 3, "text", [], ["why?"], [{"role": "user"}], [{"role": "user", "content": " "}], [{"speaker": "a"}]],
    ids=str,
)
def test_what_is_none_is_none(cell):
    assert as_conversation(cell) is None


def test_plain_and_rendered():
    assert ASKED.plain == "be brief\n\nwhy?\n\nso"
    assert ASKED.rendered(chat_tokenizer()) == "<s> <system> be brief <end> <user> why? <end> <assistant> so <end> "
