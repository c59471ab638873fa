"""How far a model's next-token distributions are from a reference's, on the same tokens.

    KL            sum over the vocabulary of p (log p - log q), p the reference's; natural, per token
    top-1         the share of tokens where both hold the same next token for the likeliest
    perplexity    exp of the mean negative log-likelihood of the token that stands there

Near lossless, KL tells no good quantizer from a better one: it never stands alone. Tokens of one sequence depend on
each other, so all intervals are over sequences (Student's t), and those of ratios over paired sequences.

s = sequences, p = predicted positions of one sequence, v = vocabulary
"""

from collections.abc import Iterator, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int64
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from scipy.stats import t as student
from torch import Tensor
from transformers import PreTrainedModel

from mvquant.evaluation.batches import PaddedBatch, input_device, last_logits
from mvquant.evaluation.statistics import LEVEL, Estimate

TAIL = 0.999
"""The quantile of KL over tokens that is reported: rare disasters do not show in a mean."""

_POSITIONS_AT_ONCE = 128


@runtime_checkable
class Logits(Protocol):
    """Logits by sequence: a list, or files that are read when they are asked for."""

    def __len__(self) -> int:
        """Number of sequences."""
        ...

    def __getitem__(self, index: int, /) -> Tensor:
        """Logits of one sequence, (position, vocabulary)."""
        ...


class SequenceScores(BaseModel):
    """One model on the same sequences; all tuples have one value a sequence.

    Attributes:
        tokens: predicted tokens in each sequence.
        nll: mean negative log-likelihood of a token, in nats.
        kl: mean KL divergence from the reference, per token; None for the reference itself.
        kl_tail: the 99.9 % quantile of KL over all tokens.
        top_1: share of tokens with the reference's likeliest next token.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    tokens: int
    nll: tuple[float, ...]
    kl: tuple[float, ...] | None = None
    kl_tail: float | None = None
    top_1: tuple[float, ...] | None = None


def sequence_logits(
    model: PreTrainedModel, sequences: Sequence[Int64[Tensor, "1 length"]], rows: int = 1
) -> Iterator[Float[Tensor, "p v"]]:
    """Yield the logits at every position that predicts a token, sequence by sequence, as computed, on the CPU.

    Args:
        model: on any device.
        sequences: token ids, all of one length.
        rows: sequences that are read at once.

    Raises:
        NonFiniteLogitsError: NaN, or a position without a finite maximum.
    """
    for start in range(0, len(sequences), rows):
        ids = torch.cat(list(sequences[start : start + rows])).to(input_device(model))
        with torch.inference_mode():
            logits, _ = last_logits(model, PaddedBatch(ids, torch.ones_like(ids, dtype=torch.bool)), ids.shape[1])
        yield from logits[:, :-1].cpu().clone()


def score_sequences(
    logits: Iterator[Float[Tensor, "p v"]],
    sequences: Sequence[Int64[Tensor, "1 length"]],
    reference: Logits | None = None,
) -> SequenceScores:
    """Score a model's logits on sequences of one length, one sequence at a time.

    Args:
        logits: of each sequence, from `sequence_logits`.
        sequences: the token ids.
        reference: the reference's logits on them; None where the model is the reference.
    """
    nll: list[float] = []
    kl: list[NDArray[np.float64]] = []
    top_1: list[float] = []
    for index, (found, ids) in enumerate(zip(logits, sequences, strict=True)):
        nll.append(_nll(found, ids[0, 1:]))
        if reference is not None:
            kl.append(kl_by_token(reference[index], found).numpy())
            top_1.append(float((reference[index].argmax(dim=-1) == found.argmax(dim=-1)).double().mean()))
    tokens = sequences[0].shape[1] - 1
    if reference is None:
        return SequenceScores(tokens=tokens, nll=tuple(nll))
    means = tuple(float(each.mean()) for each in kl)
    tail = float(np.quantile(np.concatenate(kl), TAIL))
    return SequenceScores(tokens=tokens, nll=tuple(nll), kl=means, kl_tail=tail, top_1=tuple(top_1))


def _nll(logits: Float[Tensor, "p v"], targets: Int64[Tensor, " p"]) -> float:
    parts = zip(logits.split(_POSITIONS_AT_ONCE), targets.split(_POSITIONS_AT_ONCE), strict=True)
    losses = [torch.nn.functional.cross_entropy(part.double(), wanted, reduction="sum") for part, wanted in parts]
    return float(torch.stack(losses).sum()) / len(targets)


def kl_by_token(reference: Float[Tensor, "p v"], logits: Float[Tensor, "p v"]) -> Float[Tensor, " p"]:
    """KL divergence of a model from a reference at each position, in nats and in double precision.

    >>> kl_by_token(torch.zeros(1, 2), torch.tensor([[0.0, 0.0]])).tolist()
    [0.0]
    """
    found: list[Tensor] = []
    for ours, theirs in zip(reference.split(_POSITIONS_AT_ONCE), logits.split(_POSITIONS_AT_ONCE), strict=True):
        log_p, log_q = ours.double().log_softmax(dim=-1), theirs.double().log_softmax(dim=-1)
        # a token that the reference excludes (p = 0) adds nothing; rounding can leave a sum just below zero
        terms = torch.where(log_p > -torch.inf, log_p.exp() * (log_p - log_q), 0.0)
        found.append(terms.sum(dim=-1).clamp(min=0))
    return torch.cat(found)


def mean_over_sequences(values: Sequence[float], low: float = -np.inf, high: float = np.inf) -> Estimate:
    """The mean of one value a sequence, with Student's interval; infinite limits for a single sequence.

    Args:
        values: one per sequence.
        low: the smallest value that there can be.
        high: the largest.

    >>> found = mean_over_sequences([1.0, 2.0, 3.0])
    >>> found.value, round(found.high, 3)
    (2.0, 4.484)
    """
    array = np.asarray(values, dtype=np.float64)
    count, mean = len(array), float(array.mean())
    error = float(array.std(ddof=1)) / np.sqrt(count) if count > 1 else np.inf
    reach = float(student.ppf((1 + LEVEL) / 2, max(count - 1, 1))) * error
    return Estimate(value=mean, low=max(low, mean - float(reach)), high=min(high, mean + float(reach)))


def perplexity_ratio(reference: SequenceScores, scores: SequenceScores) -> Estimate:
    """Perplexity over the reference's, with the interval of paired sequences (1 is no difference)."""
    differences = [after - before for before, after in zip(reference.nll, scores.nll, strict=True)]
    found = mean_over_sequences(differences)
    value, low, high = (float(np.exp(x)) for x in (found.value, found.low, found.high))
    return Estimate(value=value, low=low, high=high)


def perplexity(scores: SequenceScores) -> float:
    """Perplexity over all tokens.

    >>> perplexity(SequenceScores(tokens=3, nll=(0.0, 0.0)))
    1.0
    """
    return float(np.exp(np.mean(scores.nll)))
