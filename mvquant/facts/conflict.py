"""Knowledge conflicts: a text says something false about well-known facts, and a question is asked about one.

It can be answered from the text or from memory, and the answers differ.
"""

from collections.abc import Mapping, Sequence
from random import Random
from typing import Any, NamedTuple

from mvquant.facts.draw import draw_facts, false_objects
from mvquant.facts.table import TOPICS, Fact, by_relation, phrasings, read_facts

ITEMS = 1200
SEED = "conflict-1"
STATEMENTS = 3


class _Told(NamedTuple):
    fact: Fact
    stated: str


def conflict_items(count: int = ITEMS, seed: str = SEED) -> list[dict[str, Any]]:
    """Return items whose text makes three false statements of one relation, one of which is asked about.

    The choices are the three stated objects and the true one, in random order: a guess is right once in four, both
    for `context_answer` (what the text says) and for `memory_answer` (what is true). Over all items each object is
    the stated one as often as the true one.
    """
    rng = Random(seed)
    worded = phrasings("conflict_phrasings")
    facts = [fact for topic in TOPICS for fact in read_facts(topic) if fact.relation in worded]
    drawn = draw_facts(rng, facts, count)
    told = [_Told(fact, other) for fact, other in zip(drawn, false_objects(rng, drawn), strict=True)]
    rivals = {
        relation: [_Told(fact, other) for fact, other in zip(members, false_objects(rng, members), strict=True)]
        for relation, members in by_relation(facts).items()
        if relation in worded
    }
    rng.shuffle(told)
    items = [_item(rng, asked, rivals[asked.fact.relation], worded[asked.fact.relation][0]) for asked in told]
    return [{"id": f"conflict-{index:04d}"} | item for index, item in enumerate(items)]


def _item(rng: Random, asked: _Told, rivals: Sequence[_Told], wording: Mapping[str, str]) -> dict[str, Any]:
    told = [asked]
    while len(told) < STATEMENTS:
        rival = rng.choice(rivals)
        if _fits(rival, told):
            told.append(rival)
    stated = [each.stated for each in told]
    choices = rng.sample([*stated, asked.fact.object], len(stated) + 1)
    rng.shuffle(told)
    text = " ".join(_sentence(wording["statement"], each) for each in told)
    question = wording["question"].format(subject=asked.fact.subject)
    return {
        "prompt": f"Text: {text}\nQuestion: {question[0].upper()}{question[1:]}\nAnswer:",
        "choices": choices,
        "context_answer": asked.stated,
        "memory_answer": asked.fact.object,
        "relation": asked.fact.relation,
    }


def _fits(rival: _Told, told: Sequence[_Told]) -> bool:
    """Whether subject and object are new to the text, and the object could not answer the question from memory."""
    subjects = {each.fact.subject for each in told}
    objects = {each.stated for each in told}
    return (
        rival.fact.subject not in subjects and rival.stated not in objects and not told[0].fact.may_hold(rival.stated)
    )


def _sentence(statement: str, told: _Told) -> str:
    sentence = statement.format(subject=told.fact.subject, object=told.stated)
    return sentence[0].upper() + sentence[1:]
