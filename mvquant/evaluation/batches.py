"""From texts to padded batches to logits.

Batches are padded on the left, so that every row ends where its answer begins, whatever its length.
"""

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import Cache

TokenIds = list[int]


class NonFiniteLogitsError(Exception):
    """The model's logits are NaN or infinite; the caller knows in which task."""


@dataclass(frozen=True)
class Engine:
    """What answers: a model with its tokenizer, so many prompts at a time."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    batch_size: int

    def fits(self, tokens: int) -> bool:
        """Whether the model's positions allow a text of so many tokens."""
        limit = position_limit(self.model)
        return limit is None or tokens <= limit


def encode(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[TokenIds]:
    """Encode each text as the beginning of a document, with the tokenizer's own special tokens."""
    return tokenizer(list(texts), verbose=False)["input_ids"] if texts else []  # pyright: ignore[reportReturnType]


def position_limit(model: PreTrainedModel) -> int | None:
    """Tokens that the model's positions allow; None where its config sets no limit."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None)


def batches_by_length(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Yield indices in batches of like lengths, longest first, so that memory runs out early or never.

    >>> list(batches_by_length([3, 9, 4, 8], 2))
    [[1, 3], [2, 0]]
    """
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


@dataclass(frozen=True)
class PaddedBatch:
    """Rows of token ids padded on the left; the mask is true where there is a token."""

    ids: Int[Tensor, "row column"]
    mask: Bool[Tensor, "row column"]

    @property
    def positions(self) -> Int[Tensor, "row column"]:
        """Position of each token in its own row; 0 on padding."""
        return (self.mask.long().cumsum(dim=1) - 1).clamp(min=0)

    def extended(self, ids: Int[Tensor, " row"]) -> "PaddedBatch":
        """The batch with one more token in every row."""
        mask = torch.ones_like(self.mask[:, :1])
        return PaddedBatch(torch.cat([self.ids, ids[:, None]], dim=1), torch.cat([self.mask, mask], dim=1))


def left_pad(rows: Sequence[TokenIds], device: torch.device) -> PaddedBatch:
    """Pad rows on the left to the longest. Padding is masked, so its id does not matter.

    >>> left_pad([[5, 6], [7]], torch.device("cpu")).ids.tolist()
    [[5, 6], [0, 7]]
    """
    width = max(len(row) for row in rows)
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows], device=device)
    lengths = torch.tensor([len(row) for row in rows], device=device)
    mask = torch.arange(width, device=device) >= width - lengths[:, None]
    return PaddedBatch(ids, mask)


def input_device(model: PreTrainedModel) -> torch.device:
    """The device of the embeddings, where a model spread over several devices takes its input."""
    return model.get_input_embeddings().weight.device  # pyright: ignore[reportReturnType]


def last_logits(
    model: PreTrainedModel, batch: PaddedBatch, keep: int, cache: Cache | None = None, *, use_cache: bool = False
) -> tuple[Float[Tensor, "row keep vocabulary"], Cache | None]:
    """Run the model on what the cache has not seen and return the last `keep` logits of each row.

    Raises:
        NonFiniteLogitsError: NaN, or a row without a finite maximum.
    """
    seen = 0 if cache is None else cache.get_seq_length()
    arguments = {
        "input_ids": batch.ids[:, seen:],
        "attention_mask": batch.mask.long(),
        "position_ids": batch.positions[:, seen:],
        "past_key_values": cache,
        "use_cache": use_cache,
        "logits_to_keep": keep,
    }
    known = inspect.signature(model.forward).parameters
    output = model(**{name: value for name, value in arguments.items() if name in known})
    logits = output.logits[:, -keep:]
    if not torch.isfinite(logits.amax(dim=-1)).all():
        raise NonFiniteLogitsError
    return logits, output.past_key_values if use_cache else None
