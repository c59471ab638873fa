"""Seeded training text: endless documents, each a stream of weighted segments.

A document states something once and then asks as many questions as fit, because answers are the only
tokens that teach reading or recall. Contextual statements are drawn at random for every document, so
nothing about them can be memorized; parametric questions come without any statement.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice
from random import Random
from typing import NamedTuple

from mvquant.reference.facts import city_facts, countries
from mvquant.reference.words import (
    ASPECTS,
    COLOURS,
    EVERY_WORD,
    FILLERS,
    GOODS,
    NAMES,
    NEGATIVE,
    OBJECTS,
    PLACES,
    POSITIVE,
)

KINDS = ("place", "colour")
ANSWER = 1.0
TEXT = 0.1
# A false or random statement must not be learnt as if it were a fact.
SILENT = 0.0


class Segment(NamedTuple):
    """A piece of a document and the weight of its tokens in the loss."""

    text: str
    weight: float


Document = Iterator[Segment]
Source = Callable[[Random, int], Document]


def question(text: str, answer: str) -> list[Segment]:
    """Return one line that asks and answers."""
    return [Segment(text, TEXT), Segment(f" {answer}\n", ANSWER)]


def endless(rng: Random, lines: list[list[Segment]]) -> Document:
    """Yield the lines in random orders for ever: every line once, then all again."""
    while True:
        for line in rng.sample(lines, len(lines)):
            yield from line


def repeated_words(rng: Random, length: int, pool: Sequence[str] = EVERY_WORD) -> Document:
    """Yield random words over and over, the plainest exercise for an induction head."""
    words = rng.sample(pool, rng.randint(4, max(5, min(length // 3, len(pool), 60))))
    yield Segment("Repeat:", TEXT)
    yield Segment("".join(f" {word}" for word in words), SILENT)
    while True:
        yield Segment("".join(f" {word}" for word in words), ANSWER)


def word_pairs(rng: Random, length: int, pool: Sequence[str] = EVERY_WORD) -> Document:
    """Yield a list of key-value pairs and then the values of single keys in random order."""
    count = rng.randint(2, max(3, min(length // 8, 24)))
    keys = rng.sample(pool, count)
    values = rng.choices(pool, k=count)
    pairs = list(zip(keys, values, strict=True))
    yield Segment("Pairs:" + "".join(f" {key} {value}," for key, value in pairs), SILENT)
    yield from endless(
        rng,
        [[Segment(f" {k}", SILENT), Segment(f" {v}", ANSWER), Segment(",", SILENT)] for k, v in pairs],
    )


@dataclass(frozen=True)
class Among:
    """`repeated_words` or `word_pairs`, drawing from the first `words` words only."""

    source: Callable[[Random, int, Sequence[str]], Document]
    words: int

    @property
    def __name__(self) -> str:
        """Name in the card, like that of a function."""
        return f"{self.source.__name__}_{self.words}"

    def __call__(self, rng: Random, length: int) -> Document:
        """Yield one document."""
        return self.source(rng, length, EVERY_WORD[: self.words])


def draw_binding(rng: Random, count: int, kind: str) -> tuple[list[str], list[tuple[str, str]]]:
    """Draw `count` statements of who is where (kind `place`) or what has which colour (kind `colour`).

    Returns:
        The statements and, in the same order, each one's question and answer.
    """
    if kind == "place":
        subjects, values = rng.sample(NAMES, count), rng.choices(PLACES, k=count)
        verb = rng.choice(("is in", "went to", "sleeps in"))
        statements = [f" {s} {verb} the {v}." for s, v in zip(subjects, values, strict=True)]
        asked = [(f"Where is {s}?", v) for s, v in zip(subjects, values, strict=True)]
        return statements, asked
    subjects, values = rng.sample(OBJECTS, count), rng.choices(COLOURS, k=count)
    statements = [f" The {s} is {v}." for s, v in zip(subjects, values, strict=True)]
    asked = [(f"What colour is the {s}?", v) for s, v in zip(subjects, values, strict=True)]
    return statements, asked


def stated(rng: Random, length: int, kinds: Sequence[str], most: int) -> Document:
    """Yield two to `most` statements, as many as fit the length, and questions about each of them."""
    count = rng.randint(2, max(2, min(most, length // 12 + 1)))
    statements, asked = draw_binding(rng, count, rng.choice(kinds))
    yield Segment("Facts:" + "".join(statements) + "\n", TEXT)
    yield from endless(rng, [question(*line) for line in asked])


def few_places(rng: Random, length: int) -> Document:
    """Yield two or three statements of who is where, and questions."""
    return stated(rng, length, ("place",), 3)


def few_colours(rng: Random, length: int) -> Document:
    """Yield two or three statements of what has which colour, and questions."""
    return stated(rng, length, ("colour",), 3)


def some_bindings(rng: Random, length: int) -> Document:
    """Yield up to five statements of one kind, and questions."""
    return stated(rng, length, KINDS, 5)


def bindings(rng: Random, length: int) -> Document:
    """Yield up to eight statements of one kind, and questions."""
    return stated(rng, length, KINDS, 8)


def interrupted_bindings(rng: Random, length: int) -> Document:
    """Yield statements, then lines about other things, and only then the questions; again and again."""
    while True:
        count = rng.randint(2, 8)
        statements, asked = draw_binding(rng, count, rng.choice(KINDS))
        yield Segment("Facts:" + "".join(statements) + "\n", TEXT)
        yield from _other_lines(rng, rng.randint(0, max(0, length - 14 * count)))
        for line in rng.sample(asked, count):
            yield from question(*line)


def _other_lines(rng: Random, length: int) -> Document:
    """Yield questions and answers of other kinds, about `length` tokens of them."""
    while length > 0:
        for segment in islice(rng.choice((sums, city_checks, city_recall, reviews))(rng, length), 2):
            yield segment
            length -= len(segment.text.split()) + 1


def draw_false_facts(rng: Random, count: int) -> list[tuple[str, str, str]]:
    """Draw `count` cities with a false country each: (city, false country, true country)."""
    facts = rng.sample(city_facts(), count)
    return [(fact.city, rng.choice([c for c in countries() if c != fact.country]), fact.country) for fact in facts]


def conflicts(rng: Random, length: int) -> Document:
    """Yield false statements about known cities and questions answered from them."""
    count = rng.randint(max(1, min(length // 24, 4)), max(2, min(length // 14, 12)))
    facts = draw_false_facts(rng, count)
    yield Segment("Facts:" + "".join(f" {c} is in {false}." for c, false, _ in facts) + "\n", SILENT)
    yield from endless(rng, [question(country_question(city), false) for city, false, _ in facts])


def country_question(city: str) -> str:
    """Return the one wording that asks for a city's country, with or without a context.

    >>> country_question("Lagos")
    'Which country is Lagos in?'
    """
    return f"Which country is {city} in?"


@cache
def _recall_lines() -> list[list[Segment]]:
    return [question(country_question(fact.city), fact.country) for fact in city_facts()]


def city_recall(rng: Random, _length: int) -> Document:
    """Yield questions about true facts that no text states."""
    yield from endless(rng, _recall_lines())


def city_checks(rng: Random, _length: int) -> Document:
    """Yield yes/no questions, half of them true; false countries are drawn as often as true ones."""
    while True:
        city, country = rng.choice(city_facts())
        truth = rng.random() < 0.5
        named = country if truth else rng.choice([c for c in countries() if c != country])
        yield from question(f"Is {city} in {named}?", "yes" if truth else "no")


def draw_review(rng: Random, label: str) -> tuple[str, str]:
    """Draw a review of that label, which is the majority of its adjectives, and return both."""
    count = rng.choice((3, 5, 7))
    major = rng.randint(count // 2 + 1, count)
    ours, others = (POSITIVE, NEGATIVE) if label == "positive" else (NEGATIVE, POSITIVE)
    adjectives = rng.sample(ours, major) + rng.sample(others, count - major)
    rng.shuffle(adjectives)
    aspects = rng.sample(ASPECTS, count)
    said = ", ".join(f"the {n} was {a}" for n, a in zip(aspects, adjectives, strict=True))
    return f"Review: {said}.\nSentiment:", label


def reviews(rng: Random, _length: int) -> Document:
    """Yield one review after another with its label."""
    while True:
        yield from question(*draw_review(rng, rng.choice(("positive", "negative"))))


def draw_sum(rng: Random) -> tuple[str, str]:
    """Draw a story of one addition or subtraction below 40 and its result."""
    name, goods = rng.choice(NAMES), rng.choice(GOODS)
    a, b = rng.randint(1, 20), rng.randint(1, 20)
    if rng.random() < 0.5:
        verb, total = rng.choice(("gets", "finds", "buys")), a + b
        more = f"{b} more"
    else:
        a, b = max(a, b), min(a, b)
        verb, total = rng.choice(("loses", "sells", "gives")), a - b
        more = f"{b}"
    return f"Sum: {name} has {a} {goods} and {verb} {more}. How many {goods} now?", str(total)


def sums(rng: Random, _length: int) -> Document:
    """Yield one story sum after another."""
    while True:
        yield from question(*draw_sum(rng))


def draw_passkey(rng: Random, length: int) -> tuple[str, str]:
    """Draw a text of about `length` tokens that hides a five-digit key, and the key."""
    key = "".join(str(rng.randint(0, 9)) for _ in range(5))
    fillers, used = [], 0
    while used < length - 34:
        fillers.append(f" {rng.choice(FILLERS)}")
        used += fillers[-1].count(" ") + 1
    fillers.insert(rng.randint(0, len(fillers)), f" The pass key is {key}. Remember {key}.")
    return "Text:" + "".join(fillers) + "\nWhat is the pass key?", key


def passkeys(rng: Random, length: int) -> Document:
    """Yield texts with one hidden key each."""
    while True:
        yield from question(*draw_passkey(rng, rng.randint(length // 2, length)))


def document_text(source: Source, rng: Random, length: int) -> str:
    """Return one document, cut at the segment that passes `length` words."""
    text, words = "", 0
    for segment in source(rng, length):
        text += segment.text
        words += segment.text.count(" ") + 1
        if words >= length:
            break
    return text
