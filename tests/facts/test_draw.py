from collections import Counter
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mvquant.errors import EvaluationError
from mvquant.facts import Fact
from mvquant.facts.draw import draw_facts, false_objects

OBJECTS = "abcde"


@given(st.integers(0, 2**32), st.integers(1, 12))
def test_false_objects_are_the_true_ones_exchanged(seed, times):
    facts = [
        Fact("r", f"{name}{i}", name, (OBJECTS[0],) if name == "b" else ()) for i in range(times) for name in OBJECTS
    ]
    others = false_objects(Random(seed), facts)
    assert Counter(others) == Counter(fact.object for fact in facts)
    assert not any(fact.may_hold(other) for fact, other in zip(facts, others, strict=True))


def test_relations_do_not_mix():
    facts = [Fact(relation, f"s{i}", f"{relation}{i}", ()) for relation in "xy" for i in range(5)]
    others = false_objects(Random(0), facts)
    assert all(other[0] == fact.relation for fact, other in zip(facts, others, strict=True))


def test_no_exchange_is_an_error_and_not_a_true_statement():
    facts = [Fact("r", "s0", "a", ("b",)), Fact("r", "s1", "b", ())]
    with pytest.raises(EvaluationError, match="r: its 2 facts cannot exchange their objects"):
        false_objects(Random(0), facts)


def test_small_relations_are_drawn_whole_and_large_ones_alike():
    facts = [
        Fact(relation, f"s{i}", "o", ()) for relation, size in (("x", 3), ("y", 50), ("z", 50)) for i in range(size)
    ]
    drawn = draw_facts(Random(0), facts, 43)
    assert Counter(fact.relation for fact in drawn) == {"x": 3, "y": 20, "z": 20}
    assert len(set(drawn)) == 43


def test_more_facts_than_there_are():
    with pytest.raises(EvaluationError, match="2 facts are asked for, and there are 1"):
        draw_facts(Random(0), [Fact("r", "s", "o", ())], 2)
