"""The tables of facts, and the checks that every one of them passes."""

import csv
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from mvquant.errors import EvaluationError

FOLDER = Path(__file__).parent

Topic = Literal["cities", "sports", "art", "technology", "celebrity"]
TOPICS: tuple[Topic, ...] = get_args(Topic)


class Fact(NamedTuple):
    """One row: `Fact("painted_by", "the Mona Lisa", "Leonardo da Vinci", ())`.

    `also` holds further objects of which the relation is true, or near enough that nobody should be asked.
    """

    relation: str
    subject: str
    object: str
    also: tuple[str, ...]

    def may_hold(self, other: str) -> bool:
        """Whether the subject with another object would be true, or arguable.

        >>> Fact("performed_song", "My Way", "Frank Sinatra", ("Elvis Presley",)).may_hold("Elvis Presley")
        True
        """
        return other == self.object or other in self.also


@cache
def read_facts(topic: Topic) -> tuple[Fact, ...]:
    """Read the facts of a topic, checked, in the order of its table.

    >>> read_facts("art")[0]
    Fact(relation='painted_by', subject='the Mona Lisa', object='Leonardo da Vinci', also=())

    Raises:
        EvaluationError: the table contradicts itself.
    """
    path = FOLDER / "tables" / f"{topic}.csv"
    with path.open(encoding="utf-8", newline="") as table:
        rows = csv.DictReader(table)
        facts = tuple(
            Fact(row["relation"], row["subject"], row["object"], tuple(filter(None, row["also"].split("|"))))
            for row in rows
        )
    mistakes = list(check_facts(facts))
    if mistakes:
        message = f"{path}: {'; '.join(mistakes)}"
        raise EvaluationError(message)
    return facts


def check_facts(facts: Sequence[Fact]) -> Iterator[str]:
    """Yield every mistake: a subject with two rows, an untidy field, an object that the subject names, or an excess."""
    named = Counter((fact.relation, fact.subject.casefold()) for fact in facts)
    yield from (f"{relation}: {subject!r} has two rows" for (relation, subject), count in named.items() if count > 1)
    for fact in facts:
        fields = (fact.relation, fact.subject, fact.object, *fact.also)
        if any(not field or field != field.strip() for field in fields):
            yield f"{fact}: a field is empty or has white space around it"
        if fact.object in fact.also:
            yield f"{fact}: also repeats the object"
        if _stems(fact.subject) & _stems(fact.object):
            yield f"{fact}: the subject names its object"
    for relation, members in by_relation(facts).items():
        most, times = Counter(fact.object for fact in members).most_common(1)[0]
        if 2 * times > len(members):
            yield f"{relation}: {most!r} is the object of more than half of its facts"


def _stems(text: str) -> set[str]:
    """The beginnings of its words: Tunis and Tunisia share one, and no memory is needed to bring them together."""
    return {word[:5] for word in re.findall(r"\w{4,}", text.casefold())}


def by_relation(facts: Iterable[Fact]) -> dict[str, list[Fact]]:
    """Group facts by relation, in the order in which relations appear."""
    groups: dict[str, list[Fact]] = {}
    for fact in facts:
        groups.setdefault(fact.relation, []).append(fact)
    return groups


@cache
def phrasings(table: Literal["phrasings", "conflict_phrasings"]) -> dict[str, tuple[dict[str, str], ...]]:
    """Read the wordings of each relation: the fields of its rows, with {subject} and {object} to be filled in."""
    groups: dict[str, list[dict[str, str]]] = {}
    with (FOLDER / f"{table}.csv").open(encoding="utf-8", newline="") as lines:
        for row in csv.DictReader(lines):
            groups.setdefault(row["relation"], []).append(row)
    return {relation: tuple(rows) for relation, rows in groups.items()}
