"""The items that flipped, small enough to lie inside the page.

Only items that some model got right and another wrong are there at all. Equal answers to one item are kept once, and
long prompts and answers lose their middle: as much of it as the page's budget asks for.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from mvquant.comparison import FlippedItem
from mvquant.report.html.material import Material

BUDGET = 2_000_000
"""Bytes that flips may take in the page."""

_LENGTHS = (8000, 3000, 1200, 500, 240)
"""Characters of a prompt or an answer that are tried, one after the other."""


@dataclass(frozen=True)
class Flips:
    """The items as JSON that cannot end its script element.

    Attributes:
        data: names, tasks, and items.
        shown: how many items are in it.
        left_out: how many did not fit; never any but in huge comparisons.
        longest: characters kept of a prompt.
    """

    data: Markup
    shown: int
    left_out: int
    longest: int


def packed_flips(material: Material, budget: int = BUDGET) -> Flips | None:
    """Return the flipped items within so many bytes; None where nothing flipped.

    What does not fit even with the shortest prompts is left out evenly over all items.
    """
    if not material.flips:
        return None
    names = [variant.name for variant in material.results.variants]
    head = {
        "variants": [[each.name, each.role] for each in material.results.variants],
        "tasks": [[name, material.task_labels[name]] for name in material.results.tasks],
    }
    packed, longest = [""], 0
    for longest in _LENGTHS:
        packed = [_json(_item(item, names, longest)) for item in material.flips]
        if _size(packed) <= budget:
            break
    kept = _spread(packed, budget)
    data = f'{{"head":{_json(head)},"items":[{",".join(kept)}]}}'
    return Flips(Markup(data), len(kept), len(packed) - len(kept), longest)


def _size(packed: Iterable[str]) -> int:
    return sum(len(line.encode()) + 1 for line in packed)


def _spread(packed: Sequence[str], budget: int) -> list[str]:
    """Keep every item, or every second, third, ... until they fit."""
    step = 1
    while _size(packed[::step]) > budget:
        step += 1
    return list(packed[::step])


def _item(item: FlippedItem, names: Sequence[str], longest: int) -> list[object]:
    """Task, id, prompt, answer, choices, different answers, and which of them each variant gave (-1: none)."""
    said = {name: (answer.prediction, answer.correct, answer.text) for name, answer in item.answers.items()}
    place = {answer: index for index, answer in enumerate(dict.fromkeys(said.values()))}
    given = [place[said[name]] if name in said else -1 for name in names]
    different = [_answer(*answer, longest) for answer in place]
    choices = None if item.choices is None else [shortened(choice, longest) for choice in item.choices]
    return [item.task, item.id, shortened(item.prompt, longest), item.answer, choices, different, given]


def _answer(prediction: str, correct: bool, text: str | None, longest: int) -> tuple[str, bool, str | None]:
    return shortened(prediction, longest), correct, None if text is None else shortened(text, longest)


def shortened(text: str, longest: int) -> str:
    """Leave out the middle of a long text, and say how much.

    >>> shortened("abcdefghij", 4)
    'ab … [6 characters left out] … ij'
    """
    if len(text) <= longest:
        return text
    half = longest // 2
    return f"{text[:half]} … [{len(text) - 2 * half:,} characters left out] … {text[-half:]}"


_ESCAPES = str.maketrans(
    {
        "<": "\\u003c",
        ">": "\\u003e",
        "&": "\\u0026",
        "\u2028": "\\u2028",
        "\u2029": "\\u2029",
    }
)


def _json(value: object) -> str:
    """Compact JSON without any character that HTML or an old script engine takes for something else."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).translate(_ESCAPES)
