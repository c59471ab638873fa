"""In-context binding: things are put in places, and the prompt ends where one of the places is to be named."""

from random import Random
from typing import Any


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


ITEMS = 1200
SEED = "binding-1"
SIZES = (4, 8, 12, 16)
"""Statements in a prompt; every thing and every place occurs once in it, so that a guess is right once in so many."""

NAMES = _words("Alex Bella Carl Dora Emil Fay Gus Holly Ivan Jane Kurt Lena Milo Nina Otto Pia Rick Sara Theo Vera")
THINGS = _words(
    "apple basket bell blanket brush bucket button camera candle carpet coin comb compass drum envelope feather flute "
    "guitar hammer helmet jacket jar kettle knife ladder lantern letter map mirror needle pen pillow ring rope saw "
    "scarf shell shoe spoon stamp ticket towel umbrella violin wallet watch whistle"
)
PLACES = _words(
    "attic bakery barn basement bathroom bedroom cabin cafe castle cave cellar chapel church classroom corridor garage "
    "garden greenhouse hotel kitchen laboratory library lobby museum office pantry park shed stable station studio "
    "theater tower tunnel village workshop"
)
VERBS = ("put", "left", "found", "hid", "saw")


def chance() -> float:
    """Return the accuracy of naming one of the prompt's places at random.

    >>> round(chance(), 4)
    0.1302
    """
    return sum(1 / size for size in SIZES) / len(SIZES)


def binding_items(count: int = ITEMS, seed: str = SEED) -> list[dict[str, Any]]:
    """Return items of 4, 8, 12 and 16 statements by turns, and of each size ask for every position in turn.

    >>> item = binding_items(1)[0]
    >>> item["prompt"].splitlines()[1], item["answer"]
    ('The coin is in the', 'corridor')
    """
    return [{"id": f"binding-{index:04d}"} | _item(Random(f"{seed}:{index}"), index) for index in range(count)]


def _item(rng: Random, index: int) -> dict[str, Any]:
    size = SIZES[index % len(SIZES)]
    asked = index // len(SIZES) % size
    things, places = rng.sample(THINGS, size), rng.sample(PLACES, size)
    statements = [
        f"{rng.choice(NAMES)} {rng.choice(VERBS)} the {thing} in the {place}."
        for thing, place in zip(things, places, strict=True)
    ]
    prompt = " ".join(statements) + f"\nThe {things[asked]} is in the"
    return {"prompt": prompt, "answer": places[asked], "stated": size, "position": asked}
