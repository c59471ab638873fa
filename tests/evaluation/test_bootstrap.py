import numpy as np
import pytest
from scipy.stats import norm

from mvquant.evaluation.bootstrap import Change, drop_difference
from mvquant.evaluation.statistics import paired_drop


def test_the_value_is_the_difference_of_mean_corrected_drops():
    reading = [Change(30, 10, 100, 0.0), Change(10, 0, 100, 0.5)]
    recall = [Change(0, 5, 50, 0.5)]
    assert drop_difference(reading, recall).value == pytest.approx((0.2 + 0.2) / 2 - (-0.1 / 0.5))


def test_the_same_seed_draws_the_same_interval():
    reading, recall = [Change(300, 101, 1009, 0.0), Change(3, 2, 997, 0.1)], [Change(31, 11, 1013, 0.3)]
    assert drop_difference(reading, recall, seed=3) == drop_difference(reading, recall, seed=3)
    assert drop_difference(reading, recall, seed=3) != drop_difference(reading, recall, seed=4)


def test_exchanging_the_groups_mirrors_the_interval():
    reading, recall = [Change(40, 10, 400, 0.0)], [Change(8, 2, 300, 0.5)]
    there, back = drop_difference(reading, recall), drop_difference(recall, reading)
    assert (back.low, back.high) == pytest.approx((-there.high, -there.low), abs=0.004)


def test_the_interval_has_the_width_of_independent_drops():
    """In large samples: variances of the mean drops add up."""
    reading, recall = [Change(300, 100, 4000, 0.0), Change(500, 20, 4000, 0.2)], [Change(90, 30, 3000, 0.5)]
    found = drop_difference(reading, recall, resamples=40_000)

    def variance(change):
        lost, gained = change.lost / change.n, change.gained / change.n
        return (lost + gained - (lost - gained) ** 2) / change.n / (1 - change.chance) ** 2

    error = np.sqrt(sum(map(variance, reading)) / 4 + variance(recall[0]))
    assert (found.high - found.low) / 2 == pytest.approx(norm.ppf(0.975) * error, rel=0.03)


def test_it_agrees_with_drawing_items_one_by_one():
    reading, recall = np.repeat([1, -1, 0], [60, 20, 320]), np.repeat([1, -1, 0], [12, 6, 282])
    rng = np.random.default_rng(5)
    drawn = [rng.choice(reading, 400).mean() - rng.choice(recall, 300).mean() for _ in range(4000)]
    found = drop_difference([Change(60, 20, 400, 0.0)], [Change(12, 6, 300, 0.0)])
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(drawn, [0.025, 0.975])), abs=0.004)


def test_no_change_is_no_proof_of_none():
    found = drop_difference([Change(0, 0, 512, 0.0)], [Change(0, 0, 512, 0.0)])
    assert found.value == 0
    assert found.low < 0 < found.high
    single = paired_drop(0, 0, 512)
    assert found.high > single.high / 2


# (reading, recall): (lost, gained) as shares, by task
TRUTHS = {
    "nothing": ([(0.0, 0.0)] * 3, [(0.0, 0.0)] * 2),
    "rare": ([(0.004, 0.002), (0.0, 0.0)], [(0.002, 0.0)]),
    "reading": ([(0.1, 0.02), (0.05, 0.05)], [(0.01, 0.0)]),
    "both": ([(0.3, 0.05)] * 3, [(0.2, 0.02), (0.4, 0.0)]),
}


def coverage(reading, recall, *, simulations, items):
    rng = np.random.default_rng(6)
    truth = np.mean([a - b for a, b in reading]) - np.mean([a - b for a, b in recall])
    hits = 0
    for number in range(simulations):
        sides = [
            [Change(*map(int, rng.multinomial(items, [a, b, 1 - a - b])[:2]), items, 0.0) for a, b in side]
            for side in (reading, recall)
        ]
        found = drop_difference(*sides, seed=number, resamples=1000)
        hits += found.low <= truth <= found.high
    return hits / simulations


@pytest.mark.parametrize("name", TRUTHS)
def test_the_interval_covers_the_truth(name):
    assert coverage(*TRUTHS[name], simulations=400, items=300) >= 0.92


@pytest.mark.slow
@pytest.mark.parametrize("items", [100, 500, 1500])
@pytest.mark.parametrize("name", TRUTHS)
def test_the_interval_covers_the_truth_in_many_draws(name, items):
    assert coverage(*TRUTHS[name], simulations=4000, items=items) >= 0.94
