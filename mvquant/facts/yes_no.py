"""Yes/no questions: every fact asked once as it is and once with a false object, in the same words."""

from random import Random
from typing import Any

from mvquant.facts.draw import draw_facts, false_objects
from mvquant.facts.table import Fact, Topic, phrasings, read_facts

FACTS_PER_TOPIC = 800
SEED = "yes-no-1"
CHOICES = ["yes", "no"]

PROMPT = "Question: {question}\nAnswer (yes or no):"


def yes_no_items(topic: Topic, facts: int = FACTS_PER_TOPIC, seed: str = SEED) -> list[dict[str, Any]]:
    """Return two items per fact, true and false by turns, so that any even number of them is balanced.

    Subject, object, relation and wording alone say nothing about the answer: each occurs as often with yes as
    with no.

    Raises:
        EvaluationError: the topic has fewer facts.

    >>> yes_no_items("art", facts=40)[0]["answer"]
    'yes'
    """
    rng = Random(f"{seed}:{topic}")
    drawn = draw_facts(rng, read_facts(topic), facts)
    others = false_objects(rng, drawn)
    wordings = [rng.choice(phrasings("phrasings")[fact.relation])["question"] for fact in drawn]
    asked = list(zip(drawn, wordings, strict=True))
    true = [_item(fact, wording, fact.object, "yes") for fact, wording in asked]
    false = [_item(fact, wording, other, "no") for (fact, wording), other in zip(asked, others, strict=True)]
    rng.shuffle(true)
    rng.shuffle(false)
    items = [item for pair in zip(true, false, strict=True) for item in pair]
    return [{"id": f"{topic}-{index:04d}"} | item for index, item in enumerate(items)]


def _item(fact: Fact, wording: str, named: str, answer: str) -> dict[str, Any]:
    question = wording.format(subject=fact.subject, object=named)
    return {"prompt": PROMPT.format(question=question), "answer": answer, "choices": CHOICES, "relation": fact.relation}
