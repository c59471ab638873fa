"""Draws that leave no shortcut: each object is named as often in false statements as in true ones."""

from collections.abc import Sequence
from itertools import islice, zip_longest
from random import Random

from mvquant.errors import EvaluationError
from mvquant.facts.table import Fact, by_relation

ATTEMPTS = 100


def draw_facts(rng: Random, facts: Sequence[Fact], count: int) -> list[Fact]:
    """Draw so many facts, equally many of each relation as far as they go.

    Raises:
        EvaluationError: there are fewer facts.
    """
    if count > len(facts):
        message = f"{count} facts are asked for, and there are {len(facts)}"
        raise EvaluationError(message)
    shuffled = [rng.sample(members, len(members)) for members in by_relation(facts).values()]
    turns = (fact for turn in zip_longest(*shuffled) for fact in turn if fact is not None)
    return list(islice(turns, count))


def false_objects(rng: Random, facts: Sequence[Fact]) -> list[str]:
    """Give every fact the object of another fact of its relation with which it is false; each object is used once.

    Raises:
        EvaluationError: no such exchange was found.
    """
    exchanged: dict[tuple[str, str], str] = {}
    for relation, members in by_relation(facts).items():
        objects = _exchange(rng, members)
        if objects is None:
            message = f"{relation}: its {len(members)} facts cannot exchange their objects so that all become false"
            raise EvaluationError(message)
        exchanged.update(((fact.relation, fact.subject), other) for fact, other in zip(members, objects, strict=True))
    return [exchanged[fact.relation, fact.subject] for fact in facts]


def _exchange(rng: Random, facts: Sequence[Fact]) -> list[str] | None:
    for _ in range(ATTEMPTS):
        objects = [fact.object for fact in facts]
        rng.shuffle(objects)
        if all(_mend(rng, facts, objects, place) for place in range(len(facts))):
            return objects
    return None


def _mend(rng: Random, facts: Sequence[Fact], objects: list[str], place: int) -> bool:
    """Where a statement came out true, swap its object with one that leaves both false, and none before worse."""
    if not facts[place].may_hold(objects[place]):
        return True
    for other in rng.sample(range(len(facts)), len(facts)):
        if not (facts[place].may_hold(objects[other]) or facts[other].may_hold(objects[place])):
            objects[place], objects[other] = objects[other], objects[place]
            return True
    return False
