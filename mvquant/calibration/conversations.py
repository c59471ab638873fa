"""Conversations as data sets hold them, and as a chat model reads them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

COLUMNS = ("messages", "conversations", "conversation", "chat")
"""What columns with conversations are called, most usual first."""

_KEYS = (("role", "content"), ("from", "value"))
"""What speaker and speech are called: in most data sets, and in ShareGPT's."""

_ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant", "model": "assistant"}


@dataclass(frozen=True)
class Conversation:
    """Who said what, in order: pairs of a role (`system`, `user`, `assistant`) and a text."""

    turns: tuple[tuple[str, str], ...]

    @property
    def plain(self) -> str:
        """What was said, without who said it."""
        return "\n\n".join(text for _, text in self.turns)

    def rendered(self, tokenizer: PreTrainedTokenizerBase) -> str:
        """Return the text that a chat model reads.

        Raises:
            jinja2.TemplateError: the tokenizer's chat template refuses the conversation.
        """
        messages = [{"role": role, "content": text} for role, text in self.turns]
        return str(tokenizer.apply_chat_template(messages, tokenize=False))


def as_conversation(value: Any) -> Conversation | None:  # noqa: ANN401 - a cell of any table
    """Read a cell of a table as a conversation; None if it is none, or nothing is said in it.

    >>> as_conversation([{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]).turns
    (('user', 'Hi'), ('assistant', 'Hello'))
    >>> as_conversation([{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]).plain
    'Hi'
    >>> as_conversation("Hi"), as_conversation([])
    (None, None)
    """
    if not isinstance(value, list):
        return None
    turns = tuple(turn for turn in map(_turn, value) if turn is not None)
    return Conversation(turns) if len(turns) == len(value) and any(text.strip() for _, text in turns) else None


def _turn(message: Any) -> tuple[str, str] | None:  # noqa: ANN401
    if not isinstance(message, Mapping):
        return None
    for speaker, speech in _KEYS:
        role, text = message.get(speaker), _speech(message.get(speech))
        if isinstance(role, str):
            return None if text is None else (_ROLES.get(role, role), text)
    return None


def _speech(content: Any) -> str | None:  # noqa: ANN401
    """Return a text; of a list of parts those that are text."""
    if isinstance(content, list):
        return "".join(part["text"] for part in content if isinstance(part, Mapping) and _is_text(part))
    return content if isinstance(content, str) else None


def _is_text(part: Mapping[str, Any]) -> bool:
    return isinstance(part.get("text"), str)
