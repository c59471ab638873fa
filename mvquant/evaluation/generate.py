"""Greedy answers in free text."""

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
from mvquant.evaluation.parsers import Parser
from mvquant.evaluation.result import ItemRow
from mvquant.evaluation.task_file import GenerationKwargs
from mvquant.evaluation.tasks import Item


def generated_rows(
    engine: Engine, limits: GenerationKwargs, items: Sequence[Item], parse: Parser = str.strip
) -> Iterator[tuple[int, ItemRow | None]]:
    """Yield the index and the row of each item as it is answered; None for items that do not fit the model.

    An answer is right if what `parse` finds in it, up to the first stop string, is the item's answer: all of it,
    never a part of it.

    Raises:
        NonFiniteLogitsError: the model's logits are NaN or infinite.
    """
    prompts = encode(engine.tokenizer, [item.prompt for item in items])
    fitting = [i for i, prompt in enumerate(prompts) if engine.fits(len(prompt) + limits.max_gen_toks)]
    yield from ((index, None) for index in set(range(len(items))).difference(fitting))
    stop = Stop(engine.tokenizer, limits.until, end_tokens(engine.model, engine.tokenizer), limits.max_gen_toks)
    for place, tokens in generate(engine.model, [prompts[i] for i in fitting], stop, engine.batch_size):
        item = items[fitting[place]]
        yield fitting[place], _row(item, stop.text(tokens), parse, len(tokens), ended=stop.ended(tokens))


def generation_fits(engine: Engine, limits: GenerationKwargs, item: Item) -> bool:
    """Whether the model can read the prompt whole and still answer at full length."""
    return engine.fits(len(encode(engine.tokenizer, [item.prompt])[0]) + limits.max_gen_toks)


def _row(item: Item, text: str, parse: Parser, tokens: int, *, ended: bool) -> ItemRow:
    prediction, answer = parse(text), item.answer.strip()
    whole = None if prediction == text.strip() else text
    return ItemRow(item.id, prediction, answer, prediction == answer, None, whole, tokens, ended)


@dataclass(frozen=True)
class Stop:
    """What ends an answer: one of some strings, an end token, or its length in tokens."""

    tokenizer: PreTrainedTokenizerBase
    strings: tuple[str, ...]
    end_tokens: frozenset[int]
    max_tokens: int

    def reached(self, tokens: TokenIds) -> bool:
        """Whether the newest token ended the answer."""
        return len(tokens) >= self.max_tokens or self.ended(tokens)

    def ended(self, tokens: TokenIds) -> bool:
        """Whether the newest token ended the answer by what it says, not by its number."""
        if tokens[-1] in self.end_tokens:
            return True
        # A token is at least one byte, so a string that has just ended lies in this many tokens.
        tail = max((len(string.encode()) for string in self.strings), default=0) + 2
        text = self._decode(tokens[-tail:])
        return any(string in text for string in self.strings)

    def text(self, tokens: TokenIds) -> str:
        """The answer: everything before the end token or the first stop string."""
        ended = tokens[-1] in self.end_tokens  # which need not be a special token
        text = self._decode(tokens[:-1] if ended else tokens)
        return min((text.split(string)[0] for string in self.strings), key=len, default=text)

    def _decode(self, tokens: TokenIds) -> str:
        return str(self.tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The tokens that end a text, by the generation config and by the tokenizer."""
    generation = getattr(model.generation_config, "eos_token_id", None)
    listed = generation if isinstance(generation, list) else [generation]
    return frozenset(token for token in [*listed, tokenizer.eos_token_id] if isinstance(token, int))


def generate(
    model: PreTrainedModel, prompts: Sequence[TokenIds], stop: Stop, batch_size: int
) -> Iterator[tuple[int, TokenIds]]:
    """Yield the index and the tokens of the greedy answer to each prompt, batch by batch, longest prompts first.

    An answer ends with the token that ended it, an end token or the last of a stop string.

    Raises:
        NonFiniteLogitsError: the model's logits are NaN or infinite.
    """
    for indices in batches_by_length([len(prompt) for prompt in prompts], batch_size):
        answers = _generate_batch(model, [prompts[index] for index in indices], stop)
        yield from zip(indices, answers, strict=True)


@torch.inference_mode()
def _generate_batch(model: PreTrainedModel, prompts: Sequence[TokenIds], stop: Stop) -> list[TokenIds]:
    batch = left_pad(prompts, input_device(model))
    answers: list[TokenIds] = [[] for _ in prompts]
    open_rows = set(range(len(prompts)))
    cache = None
    while True:
        logits, cache = last_logits(model, batch, 1, cache, use_cache=True)
        chosen = logits[:, -1].argmax(dim=-1)
        for row, token in enumerate(chosen.tolist()):
            if row in open_rows:
                answers[row].append(token)
                if stop.reached(answers[row]):
                    open_rows.remove(row)
        if not open_rows:
            return answers
        batch = batch.extended(chosen)
