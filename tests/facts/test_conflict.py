from collections import Counter

import pytest

from mvquant.facts import TOPICS, conflict_items, read_facts


@pytest.fixture(scope="module")
def items():
    return conflict_items()


def test_the_text_says_what_the_context_answers_and_not_what_memory_does(items):
    assert len(items) >= 1000
    for item in items:
        text = item["prompt"].split("\n")[0].casefold()
        assert item["context_answer"].casefold() in text
        assert item["context_answer"] != item["memory_answer"]
        assert {item["context_answer"], item["memory_answer"]} < set(item["choices"])
        assert len(set(item["choices"])) == 4


def test_memory_is_right_and_no_other_choice_is(items):
    facts = {(fact.relation, fact.subject): fact for topic in TOPICS for fact in read_facts(topic)}
    for item in items:
        question = item["prompt"].split("\n")[1]
        mine = [
            f for (relation, subject), f in facts.items() if relation == item["relation"] and _named(subject, question)
        ]
        fact = max(mine, key=lambda fact: len(fact.subject))
        assert fact.object == item["memory_answer"]
        assert not any(fact.may_hold(choice) for choice in item["choices"] if choice != fact.object)


def _named(subject, question):
    return subject in question or subject[0].upper() + subject[1:] in question


def test_the_place_of_the_right_choice_says_nothing(items):
    for answer in ("context_answer", "memory_answer"):
        places = Counter(item["choices"].index(item[answer]) for item in items)
        assert all(abs(places[place] - len(items) / 4) < 4 * (len(items) * 3 / 16) ** 0.5 for place in range(4))


def test_objects_are_stated_as_often_as_they_are_true(items):
    assert Counter(item["context_answer"] for item in items) == Counter(item["memory_answer"] for item in items)
