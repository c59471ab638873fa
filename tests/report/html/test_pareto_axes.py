import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mvquant.report.html.pareto_axes import BOTTOM, TOP, Axes, axes_over, bit_ticks, kept_ticks, stretched
from mvquant.report.html.svg import Scale


@given(st.floats(-0.5, 1), st.floats(-0.5, 1))
def test_more_kept_is_never_lower(one, other):
    axes = axes_over([2.0, 8.0], [-0.5, 1.0])
    low, high = sorted((one, other))
    assert TOP <= axes.y(high) <= axes.y(low) <= BOTTOM


@given(st.floats(0.005, 0.2))
def test_half_the_loss_is_always_the_same_step(lost):
    step = stretched(1 - lost / 2) - stretched(1 - lost)
    assert step == pytest.approx(math.log10(2))


def test_small_losses_lie_apart_beside_a_broken_model():
    axes = axes_over([2.0, 4.0], [0.1, 0.97, 0.98, 0.99])
    places = [axes.y(kept) for kept in (0.97, 0.98, 0.99)]
    assert min(before - after for before, after in pairwise(places)) > 15


@pytest.mark.parametrize(("low", "high"), [(0.55, 0.62), (0.97, 0.975), (-0.1, 1.0), (0.5, 0.5), (1.0, 1.0)])
def test_ticks_are_inside_and_apart(low, high):
    axes = axes_over([4.0], [low, high])
    ticks = kept_ticks(axes)
    places = [axes.y(tick / 100) for tick in ticks]
    assert len(ticks) >= 2
    assert all(TOP <= place <= BOTTOM for place in places)
    assert all(after - before >= 22 for before, after in pairwise(places))


@pytest.mark.parametrize(("low", "high"), [(2.17, 2.19), (2.0, 16.0), (3.0, 3.01), (1.5, 40.0)])
def test_there_are_some_ticks_of_bits_but_not_many(low, high):
    ticks = bit_ticks(Scale(math.log2(low), math.log2(high)))
    assert 2 <= len(ticks) <= 6
    assert all(low * 0.999 <= tick <= high * 1.001 for tick in ticks)


def test_doublings_are_equally_far_apart():
    axes = Axes(Scale(1.0, 4.0), Scale(0.0, 2.0))
    assert axes.x(4) - axes.x(2) == pytest.approx(axes.x(16) - axes.x(8))
