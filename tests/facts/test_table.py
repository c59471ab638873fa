import csv

import pytest

from mvquant.errors import EvaluationError
from mvquant.facts import TOPICS, Fact, check_facts, read_facts, table
from mvquant.facts.table import by_relation, phrasings

PAIR = (Fact("lies_in", "Paris", "France", ()), Fact("lies_in", "Turin", "Italy", ()))


@pytest.mark.parametrize("topic", TOPICS)
def test_every_table_holds_at_least_500_distinct_facts(topic):
    facts = read_facts(topic)
    assert len({(fact.relation, fact.subject.casefold()) for fact in facts}) == len(facts) >= 500


@pytest.mark.parametrize("topic", TOPICS)
def test_every_relation_can_be_asked_in_several_ways(topic):
    for relation in by_relation(read_facts(topic)):
        wordings = [row["question"] for row in phrasings("phrasings")[relation]]
        assert len(set(wordings)) == len(wordings) >= 2
        for wording in wordings:
            assert wording.count("{subject}") == wording.count("{object}") == 1
            assert not wording.startswith("{")


@pytest.mark.parametrize("topic", TOPICS)
def test_what_may_hold_too_is_an_object_of_the_same_relation(topic):
    for members in by_relation(read_facts(topic)).values():
        objects = {fact.object for fact in members}
        assert objects.issuperset(other for fact in members for other in fact.also)


@pytest.mark.parametrize(
    ("added", "mistake"),
    [
        pytest.param(Fact("lies_in", "paris", "Italy", ()), "'paris' has two rows", id="repeated"),
        pytest.param(Fact("lies_in", "Rome ", "Italy", ()), "white space", id="untidy"),
        pytest.param(Fact("lies_in", "Rome", "", ()), "is empty", id="empty"),
        pytest.param(Fact("lies_in", "Rome", "Italy", ("Italy",)), "also repeats", id="also"),
        pytest.param(Fact("lies_in", "Tunis", "Tunisia", ()), "names its object", id="answer-in-question"),
        pytest.param(Fact("plays", "Ann", "golf", ()), "more than half", id="one-object-rules"),
    ],
)
def test_contradictions_are_found(added, mistake):
    assert list(check_facts(PAIR)) == []
    assert any(mistake in found for found in check_facts((*PAIR, added)))


def test_a_table_that_contradicts_itself_is_not_used(tmp_path, monkeypatch):
    monkeypatch.setattr(table, "FOLDER", tmp_path)
    (tmp_path / "tables").mkdir()
    with (tmp_path / "tables" / "art.csv").open("w", newline="") as file:
        csv.writer(file).writerows(
            [("relation", "subject", "object", "also"), ("r", "a", "b", ""), ("r", "a", "c", "")]
        )
    with pytest.raises(EvaluationError, match=r"art\.csv: r: 'a' has two rows"):
        read_facts.__wrapped__("art")


def test_cities_agree_with_a_public_set_that_is_not_shipped(shared_data):
    with (shared_data / "eval" / "cities.csv").open(encoding="utf-8") as lines:
        theirs = {row["city"]: row["correct_country"] for row in csv.DictReader(lines)}
    ours = {fact.subject: fact.object for fact in read_facts("cities") if fact.relation == "located_in"}
    shared = ours.keys() & theirs.keys()
    assert len(shared) > 150
    assert {city: ours[city] for city in shared} == {city: theirs[city] for city in shared}
