"""Documents cut into rows of token ids with one loss weight per token."""

from functools import lru_cache
from random import Random
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from mvquant.reference.corpus import ANSWER, SILENT, Document, Source

# Most harness runs put <s> first, some do not: the model has to bear both.
BOS_SHARE = 0.9
# Predicting the text itself matters little: a quarter of it, at four times the weight, saves logits.
TEXT_SHARE = 0.25


class Batch(NamedTuple):
    """Rows of token ids; the loss weight of a token counts where it is predicted."""

    ids: Int[Tensor, "rows length"]
    weights: Float[Tensor, "rows length"]
    sources: tuple[Source, ...]


class Rows:
    """Draws batches of rows from a mixture; every row is one document, cut at the row's length."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, seed: str) -> None:
        """Take the tokenizer and the seed of everything drawn."""
        self.rng = Random(seed)
        self._bos = tokenizer.get_vocab()[str(tokenizer.bos_token)]

        @lru_cache(maxsize=50_000)
        def encode(text: str) -> list[int]:
            return tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids

        self._encode = encode

    def batch(self, mixture: dict[Source, float], rows: int, length: int) -> Batch:
        """Draw so many documents, cut to `length` tokens."""
        sources = self.rng.choices(list(mixture), list(mixture.values()), k=rows)
        drawn = [self._row(source(self.rng, length), length) for source in sources]
        return Batch(torch.tensor([ids for ids, _ in drawn]), torch.tensor([w for _, w in drawn]), tuple(sources))

    def _row(self, document: Document, length: int) -> tuple[list[int], list[float]]:
        ids: list[int] = []
        weights: list[float] = []
        if self.rng.random() < BOS_SHARE:
            ids, weights = [self._bos], [0.0]
        for segment in document:
            tokens = self._encode(segment.text)
            ids += tokens
            weights += [self._weight(segment.weight) for _ in tokens]
            if len(ids) >= length:
                break
        return ids[:length], weights[:length]

    def _weight(self, weight: float) -> float:
        if weight in (ANSWER, SILENT):
            return weight
        return weight / TEXT_SHARE if self.rng.random() < TEXT_SHARE else 0.0
