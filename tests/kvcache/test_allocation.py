"""Allocation: never above the budget, and as good as trying everything."""

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mvquant.errors import PlanError
from mvquant.kvcache.allocation import even_ranking, least_error_bits, ranked_bits

energies = st.lists(st.floats(0.01, 100), min_size=2, max_size=4)


def convex(energy: list[float], widths: list[int]) -> list[list[float]]:
    return [[each * 4.0**-width for width in widths] for each in energy]


@settings(max_examples=50, deadline=None)
@given(energy=energies, budget=st.integers(4, 16))
def test_no_choice_within_the_budget_has_less_error(energy: list[float], budget: int):
    widths = [1, 2, 3, 4]
    errors = convex(energy, widths)
    chosen = least_error_bits(errors, widths, float(budget))
    assert sum(chosen) <= budget
    found = sum(errors[item][widths.index(width)] for item, width in enumerate(chosen))
    every = product(range(4), repeat=len(energy))
    best = min(
        sum(errors[item][level] for item, level in enumerate(levels))
        for levels in every
        if sum(widths[level] for level in levels) <= budget
    )
    assert found == pytest.approx(best)


def test_a_step_that_gains_little_alone_is_taken_with_the_next():
    errors = [[10.0, 9.9, 0.0], [10.0, 6.0, 5.9]]
    assert least_error_bits(errors, [1, 2, 3], 4.0) == [3, 1]


def test_errors_that_grow_with_bits_are_never_bought():
    assert least_error_bits([[1.0, 2.0, 3.0]], [1, 2, 3], 3.0) == [1]


def test_a_budget_below_one_bit_is_refused():
    with pytest.raises(PlanError, match=r"below what 1 bit\(s\) per pair need"):
        least_error_bits([[1.0, 0.5], [1.0, 0.5]], [1, 2], 1.5)


@given(st.permutations(range(16)), st.floats(1, 8), st.floats(0.05, 0.5))
def test_rankings_spend_whole_bits_within_the_budget(ranking: list[int], average: float, protected: float):
    bits = ranked_bits(ranking, average, protected, most=8)
    assert average * 16 - 1 < sum(bits) <= average * 16 + 1e-9
    wished = [bits[pair] for pair in ranking]
    assert wished == sorted(wished, reverse=True)
    assert max(bits) <= 8


def test_an_eighth_at_two_more_bits_averages_a_quarter():
    bits = ranked_bits(list(range(64)), 2.25, 0.125, most=8)
    assert bits == [4] * 8 + [2] * 56


@pytest.mark.parametrize("average", [2, 2.0625, 3, 7.0])
def test_where_nothing_is_left_the_last_pay_for_the_first(average: float):
    bits = ranked_bits(list(range(64)), float(average), 0.125, most=8)
    base, left = int(average), round((average % 1) * 64)
    assert bits == [base + 1] * 8 + [base] * (48 + left) + [base - 1] * (8 - left)
    assert sum(bits) == average * 64


@pytest.mark.parametrize("average", [1.0, 8.0])
def test_the_smallest_and_the_largest_width_leave_nothing_to_give(average: float):
    assert set(ranked_bits(list(range(64)), average, 0.125, most=8)) == {int(average)}


@given(st.integers(16, 127).filter(lambda bits: bits % 16 < 15), st.floats(0.01, 1))
def test_one_more_bit_takes_none_away_within_a_whole_average(budget: int, protected: float):
    bits, more = (ranked_bits(list(range(16)), total / 16, protected, most=8) for total in (budget, budget + 1))
    assert all(one <= other for one, other in zip(bits, more, strict=True))


def test_an_even_ranking_prefers_no_part_of_the_head():
    bits = ranked_bits(even_ranking(64, 2.5), 2.5, 1.0, most=8)
    assert bits == [3, 2] * 32
