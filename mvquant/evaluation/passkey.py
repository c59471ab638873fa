"""Passkey retrieval: a five-digit key somewhere in a long text that says nothing else worth knowing.

Lengths are in tokens of the model's own tokenizer, with room for the answer, so that a model with 4,096 positions
reads the texts of that length whole. Keys, depths and the order of sentences are the same for every tokenizer. Items
longer than a model's positions are left out by the evaluator, and named.
"""

from collections.abc import Sequence
from random import Random
from typing import Any

from mvquant.evaluation.text_length import Count, count_words

LENGTHS = (512, 1024, 2048, 4096, 8192, 16384, 32768)
DEPTHS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
REPEATS = 13
SEED = "passkey-1"
ROOM = 64
"""Of each length: for the answer, for special tokens, and for what a chat template adds."""

OPENING = "Somewhere in the text below there is a pass key. Find it and keep it in mind.\n\n"
QUESTION = "\n\nWhat is the pass key in the text above? The pass key is"
KEY = "The pass key is {key}. Keep it in mind: {key} is the pass key."
FILLER = (
    "The river runs slowly past the old mill.",
    "A cat sleeps on the warm stones of the wall.",
    "In the evening the wind turns and the leaves move.",
    "Someone has left the gate open again.",
    "The road goes over the hill and down to the sea.",
    "Bread is cheap here, and the coffee is good.",
    "There are more boats in the harbor than last week.",
    "The children play in the yard until it is dark.",
    "Nobody knows who built the little bridge.",
    "After the rain the air smells of wet grass.",
    "The clock in the tower is always a little late.",
    "Two women talk at the corner of the market.",
    "The train stops for a moment and goes on.",
    "Birds sit on the roof and wait for the morning.",
    "It is quiet in the house when the guests have gone.",
    "The shop sells paper, string and candles.",
)


def passkey_items(
    lengths: Sequence[int] = LENGTHS,
    depths: Sequence[float] = DEPTHS,
    repeats: int = REPEATS,
    seed: str = SEED,
    count: Count = count_words,
) -> list[dict[str, Any]]:
    """Return items that go through all lengths, then all depths, so that the first few have some of each.

    Args:
        lengths: of prompt and answer, as `count` counts.
        depths: where the key stands; 0 is the beginning of the text, 1 its end.
        repeats: items of each length and depth.
        seed: of keys and fillers.
        count: the length of a text: by a tokenizer, or by words where none is known.
    """
    cells = [(length, depth) for _ in range(repeats) for depth in depths for length in lengths]
    fillers = {sentence: max(1, count(" " + sentence)) for sentence in FILLER}
    return [
        {"id": f"passkey-{index:04d}"} | _item(Random(f"{seed}:{index}"), length, depth, fillers, count)
        for index, (length, depth) in enumerate(cells)
    ]


def _item(rng: Random, length: int, depth: float, fillers: dict[str, int], count: Count) -> dict[str, Any]:
    key = "".join(rng.choice("0123456789") for _ in range(5))
    told = KEY.format(key=key)
    room = length - ROOM - count(OPENING + told + QUESTION)
    sentences: list[str] = []
    while room >= fillers[sentence := rng.choice(FILLER)]:
        sentences.append(sentence)
        room -= fillers[sentence]
    sentences.insert(round(depth * len(sentences)), told)
    return {"prompt": OPENING + " ".join(sentences) + QUESTION, "answer": key, "length": length, "depth": depth}
