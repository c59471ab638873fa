import itertools
from collections import Counter, defaultdict

import pytest

from mvquant.facts import TOPICS, read_facts, yes_no_items
from mvquant.facts.table import by_relation, phrasings


def statements(topic, items):
    """The subject, object and wording of each item: every question that the tables allow is asked, and looked up."""
    asked = {item["prompt"].removeprefix("Question: ").removesuffix("\nAnswer (yes or no):") for item in items}
    found = {}
    for relation, members in by_relation(read_facts(topic)).items():
        objects = {fact.object for fact in members}
        for row, fact, named in itertools.product(phrasings("phrasings")[relation], members, objects):
            question = row["question"].format(subject=fact.subject, object=named)
            if question in asked:
                assert question not in found
                found[question] = (fact.subject, named, row["question"])
    return [found[item["prompt"].split("\n")[0].removeprefix("Question: ")] for item in items]


@pytest.fixture(scope="module", params=TOPICS)
def read(request):
    """Every item of a topic with its subject, object and wording."""
    items = yes_no_items(request.param)
    return request.param, items, statements(request.param, items)


def test_at_least_a_thousand_items_half_true_at_every_even_limit(read):
    _, items, _ = read
    assert len(items) >= 1000
    assert {(a["answer"], b["answer"]) for a, b in zip(items[::2], items[1::2], strict=True)} == {("yes", "no")}
    assert len({item["id"] for item in items}) == len({item["prompt"] for item in items}) == len(items)


def test_yes_is_true_and_no_is_false(read):
    topic, items, parts = read
    facts = {(fact.relation, fact.subject): fact for fact in read_facts(topic)}
    for item, (subject, named, _) in zip(items, parts, strict=True):
        fact = facts[item["relation"], subject]
        assert (named == fact.object) if item["answer"] == "yes" else not fact.may_hold(named)


@pytest.mark.parametrize("part", [0, 1, 2], ids=["subject", "object", "wording"])
def test_nothing_but_the_fact_tells_the_answer(read, part):
    _, items, found = read
    seen = defaultdict(Counter)
    for item, parts in zip(items, found, strict=True):
        seen[item["relation"], parts[part]][item["answer"]] += 1
    assert all(counts["yes"] == counts["no"] for counts in seen.values())


def test_the_seed_decides_everything():
    assert yes_no_items("art", 50) == yes_no_items("art", 50) != yes_no_items("art", 50, seed="another")
