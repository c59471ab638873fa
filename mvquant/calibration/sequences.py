"""Packing texts and conversations into full token sequences; none is padded."""

import itertools
import logging
import random
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Int64
from jinja2 import TemplateError
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from mvquant.calibration.conversations import Conversation
from mvquant.errors import CalibrationError

logger = logging.getLogger(__name__)

_SPARE = 4
"""Text is tokenized until there is this many times what is asked for, so that the seed has a choice."""


def calibration_batches(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str | Conversation],
    sequences: int,
    length: int,
    seed: int,
    chat: Literal["auto", "never"] = "auto",
) -> list[Int64[Tensor, "1 length"]]:
    """Pack texts into full token sequences.

    A text of at least one sequence gives windows of its own; shorter ones are joined: plain texts with the tokenizer's
    end-of-text token between them, conversations with the token that begins a text. Every sequence begins as the
    tokenizer begins a text (`<s>`, say).

    Args:
        tokenizer: of the model to calibrate.
        texts: see `calibration_texts`.
        sequences: how many to return; fewer where the text gives no more.
        length: tokens in a sequence.
        seed: chooses which windows of which texts.
        chat: `auto` puts conversations into the tokenizer's chat template if it has one, and warns where the text is
            not what the model expects; `never` takes what was said as plain text, and is content with any text.

    Raises:
        CalibrationError: not text enough for one sequence, or conversations that the chat template refuses.

    Returns:
        Up to `sequences` tensors of token ids.
    """
    start = _start_tokens(tokenizer)
    body = length - len(start)
    if body < 1 or sequences < 1:
        message = f"calibration needs at least one sequence of {len(start) + 1} tokens, not {sequences} of {length}"
        raise CalibrationError(message)
    if chat == "auto":
        _warn_of_format(tokenizer, texts)
    rng = random.Random(seed)
    pieces = _Pieces(tokenizer, start, rendering=chat == "auto" and bool(tokenizer.chat_template))
    windows = list(itertools.islice(_windows(pieces.of(rng.sample(texts, len(texts))), body), _SPARE * sequences))
    pieces.report()
    if not windows:
        count = sum(len(piece.tokens) for piece in pieces.of(texts))
        message = (
            f"the calibration text is too short: {len(texts)} texts with {count} tokens, but one sequence of "
            f"{length} needs {body}; give more text or a smaller length"
        )
        raise CalibrationError(message)
    if len(windows) < sequences:
        logger.warning("the calibration text gives %d sequences of %d tokens, not %d", len(windows), length, sequences)
    chosen = rng.sample(windows, min(sequences, len(windows)))
    return [torch.tensor([start + window]) for window in chosen]


class _Piece(NamedTuple):
    """A text as tokens, and what is put before it where it is joined to another."""

    tokens: list[int]
    before: list[int]


class _Pieces:
    """Tokenizes texts, and keeps count of the conversations that the chat template refuses."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, start: list[int], *, rendering: bool) -> None:
        self._tokenizer, self._start, self._rendering = tokenizer, start, rendering
        self._rendered, self._refused, self._reason = 0, 0, ""

    def of(self, texts: Iterable[str | Conversation]) -> Iterator[_Piece]:
        end = _special(self._tokenizer.eos_token_id)
        for text in texts:
            if isinstance(text, str) or not self._rendering:
                yield _Piece(self._tokenize(text if isinstance(text, str) else text.plain), end)
            elif (rendered := self._render(text)) is not None:
                yield _Piece(self._tokenize(rendered), self._start)

    def report(self) -> None:
        """Say how many conversations were left out.

        Raises:
            CalibrationError: all of them.
        """
        if not self._refused:
            return
        seen = self._refused + self._rendered
        message = f"the tokenizer's chat template refuses {self._refused} of {seen} conversations ({self._reason})"
        if not self._rendered:
            raise CalibrationError(f"{message}: give other data, or set `chat: never` to take what was said as text")
        logger.warning("%s: they are left out", message)

    def _render(self, conversation: Conversation) -> str | None:
        try:
            text = conversation.rendered(self._tokenizer)
        except TemplateError as error:
            self._refused, self._reason = self._refused + 1, str(error) or type(error).__name__
            return None
        self._rendered += 1
        begin = self._tokenizer.bos_token
        # the sequence begins with this token anyhow, where the tokenizer begins texts with it: not twice
        return text.removeprefix(begin) if self._start and isinstance(begin, str) else text

    def _tokenize(self, text: str) -> list[int]:
        return self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]


def _warn_of_format(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str | Conversation]) -> None:
    """Say where a chat model is to be calibrated on plain text, or another on conversations."""
    plain = sum(isinstance(text, str) for text in texts)
    if tokenizer.chat_template and texts and plain == len(texts):
        logger.warning(
            "the model has a chat template, and the calibration text is plain: a chat model is calibrated better on "
            "conversations, such as HuggingFaceH4/ultrachat_200k (`chat: never` if plain text is meant)"
        )
    if not tokenizer.chat_template and plain < len(texts):
        logger.warning(
            "the calibration data are conversations, and the model has no chat template: what was said is taken as "
            "plain text (`chat: never` if that is meant)"
        )


def _start_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return what the tokenizer puts before every text: `[bos]` or nothing."""
    bos = _special(tokenizer.bos_token_id)
    return bos if tokenizer("a")["input_ids"][:1] == bos else []


def _special(token_id: Any) -> list[int]:  # noqa: ANN401
    """Return a special token's id; nothing where the tokenizer has none."""
    return [token_id] if isinstance(token_id, int) else []


def _windows(pieces: Iterable[_Piece], body: int) -> Iterator[list[int]]:
    """Yield windows of `body` tokens, of one text where it is long enough."""
    joined: list[int] = []
    for tokens, before in pieces:
        if len(tokens) >= body:
            yield from (tokens[begin : begin + body] for begin in range(0, len(tokens) - body + 1, body))
            continue
        joined += [*(before if joined else []), *tokens]
        if len(joined) >= body:
            yield joined[:body]
            joined = joined[body:]
