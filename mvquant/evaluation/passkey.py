"""Passkey retrieval: a five-digit key somewhere in a long text that says nothing else worth knowing.

The texts are the same for every model: their length is counted in words and punctuation marks, which is within a few
per cent of the tokens of common tokenizers for words as plain as these. Items longer than a model's positions are
left out by the evaluator, and named.
"""

import re
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

LENGTHS = (512, 1024, 2048, 4096, 8192, 16384, 32768)
DEPTHS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
REPEATS = 13
SEED = "passkey-1"

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

Count = Callable[[str], int]


def count_words(text: str) -> int:
    """Count words and punctuation marks; each digit counts.

    >>> count_words("Keep it in mind: 12345.")
    11
    """
    return len(re.findall(r"\d|[^\W\d]+|[^\w\s]", text))


def passkey_items(
    lengths: Sequence[int] = LENGTHS,
    depths: Sequence[float] = DEPTHS,
    repeats: int = REPEATS,
    seed: str = SEED,
    count: Count = count_words,
) -> list[dict[str, Any]]:
    """Return items that go through all lengths, then all depths, so that the first few have some of each.

    Args:
        lengths: of whole prompts, as `count` counts.
        depths: where the key stands; 0 is the beginning of the text, 1 its end.
        repeats: items of each length and depth.
        seed: of keys and fillers.
        count: the length of a text: by words, or by a tokenizer.
    """
    cells = [(length, depth) for _ in range(repeats) for depth in depths for length in lengths]
    fillers = {sentence: count(" " + sentence) for sentence in FILLER}
    return [
        {"id": f"passkey-{index:04d}"} | _item(Random(f"{seed}:{index}"), length, depth, fillers, count)
        for index, (length, depth) in enumerate(cells)
    ]


def _item(rng: Random, length: int, depth: float, fillers: dict[str, int], count: Count) -> dict[str, Any]:
    key = "".join(rng.choice("0123456789") for _ in range(5))
    told = KEY.format(key=key)
    room = length - count(OPENING + told + QUESTION)
    sentences: list[str] = []
    while room >= fillers[sentence := rng.choice(FILLER)]:
        sentences.append(sentence)
        room -= fillers[sentence]
    sentences.insert(round(depth * len(sentences)), told)
    return {"prompt": OPENING + " ".join(sentences) + QUESTION, "answer": key, "length": length, "depth": depth}
