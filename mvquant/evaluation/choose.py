"""Answers picked from given choices by their log-likelihood after the prompt."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mvquant.evaluation.batches import (
    Engine,
    TokenIds,
    batches_by_length,
    encode,
    input_device,
    last_logits,
    left_pad,
)
from mvquant.evaluation.result import ItemRow
from mvquant.evaluation.tasks import Item


def chosen_rows(engine: Engine, delimiter: str, items: Sequence[Item]) -> Iterator[tuple[int, ItemRow | None]]:
    """Yield the index and the row of each item as it is answered; None for items that do not fit the model.

    The prediction is the choice with the highest log-likelihood, summed over its tokens (of equal ones, the
    first), where each choice follows the prompt after `delimiter`.

    Raises:
        NonFiniteLogitsError: the model's logits are NaN or infinite.
    """
    choices = [item.choices or () for item in items]
    owners = [index for index, texts in enumerate(choices) for _ in texts]
    pairs = [(items[index].prompt, delimiter + text) for index, texts in enumerate(choices) for text in texts]
    continuations = encode_continuations(engine.tokenizer, pairs)
    too_long = {
        owner for owner, tokens in zip(owners, continuations, strict=True) if not engine.fits(len(tokens.inputs))
    }
    yield from ((index, None) for index in too_long)
    kept = [place for place, owner in enumerate(owners) if owner not in too_long]
    scores: dict[int, dict[int, float]] = {}
    for index, score in log_likelihoods(engine.model, [continuations[k] for k in kept], engine.batch_size):
        place = kept[index]
        owner = owners[place]
        found = scores.setdefault(owner, {})
        found[place] = score
        if len(found) == len(choices[owner]):
            yield owner, _row(items[owner], choices[owner], [found[key] for key in sorted(found)])


def choices_fit(engine: Engine, delimiter: str, item: Item) -> bool:
    """Whether the model can read the prompt whole with each of the choices after it."""
    pairs = [(item.prompt, delimiter + text) for text in item.choices or ()]
    return all(engine.fits(len(tokens.inputs)) for tokens in encode_continuations(engine.tokenizer, pairs))


def _row(item: Item, choices: Sequence[str], scores: Sequence[float]) -> ItemRow:
    prediction = choices[scores.index(max(scores))]
    rounded = tuple(round(score, 4) for score in scores)
    return ItemRow(item.id, prediction, item.answer, prediction == item.answer, rounded)


@dataclass(frozen=True)
class Continuation:
    """Tokens to be scored after the tokens of a prompt."""

    prompt: TokenIds
    tokens: TokenIds

    @property
    def inputs(self) -> TokenIds:
        """What the model must read to predict every scored token."""
        return self.prompt + self.tokens[:-1]


def encode_continuations(tokenizer: PreTrainedTokenizerBase, pairs: Sequence[tuple[str, str]]) -> list[Continuation]:
    """Split the tokens of each prompt + continuation where the continuation begins.

    As in lm-evaluation-harness, white space at the end of a prompt goes to the continuation, and both are
    encoded together, so that a token which begins with a space stays whole. Where the two share a token after
    all, the shared tokens are those of the whole text (the harness would put the prompt's own before them).
    """
    prompts = [prompt.rstrip() or prompt for prompt, _ in pairs]
    whole = encode(tokenizer, [prompt + continuation for prompt, continuation in pairs])
    alone = encode(tokenizer, prompts)
    return [
        Continuation(tokens[: len(start)], tokens[len(start) :])
        if len(tokens) > len(start)
        else Continuation(start, _encode_bare(tokenizer, pair[1]))
        for pair, start, tokens in zip(pairs, alone, whole, strict=True)
    ]


def _encode_bare(tokenizer: PreTrainedTokenizerBase, continuation: str) -> TokenIds:
    # The continuation melted into the prompt's last token: score its own tokens instead of none.
    return tokenizer(continuation, add_special_tokens=False)["input_ids"]  # pyright: ignore[reportReturnType]


def log_likelihoods(
    model: PreTrainedModel, continuations: Sequence[Continuation], batch_size: int
) -> Iterator[tuple[int, float]]:
    """Yield the index and the summed log-likelihood of each continuation, batch by batch.

    Continuations that need the same input (choices of one token after one prompt) share one row.

    Raises:
        NonFiniteLogitsError: the model's logits are NaN or infinite.
    """
    sharing: dict[tuple[int, ...], list[int]] = {}
    for index, continuation in enumerate(continuations):
        sharing.setdefault(tuple(continuation.inputs), []).append(index)
    rows = list(sharing)
    for chosen in batches_by_length([len(row) for row in rows], batch_size):
        scored = [(row, index) for row, key in enumerate(chosen) for index in sharing[rows[key]]]
        tokens = [(row, continuations[index].tokens) for row, index in scored]
        totals = _score_batch(model, [list(rows[key]) for key in chosen], tokens)
        yield from zip((index for _, index in scored), totals, strict=True)


@torch.inference_mode()
def _score_batch(
    model: PreTrainedModel, rows: Sequence[TokenIds], scored: Sequence[tuple[int, TokenIds]]
) -> list[float]:
    """Sum log-probabilities of the tokens that end (one place after) their row."""
    keep = max(len(tokens) for _, tokens in scored)
    logits, _ = last_logits(model, left_pad(rows, input_device(model)), keep)
    log_probabilities = logits.float().log_softmax(dim=-1).cpu()
    return [
        log_probabilities[row, keep - len(tokens) + torch.arange(len(tokens)), torch.tensor(tokens)].sum().item()
        for row, tokens in scored
    ]
