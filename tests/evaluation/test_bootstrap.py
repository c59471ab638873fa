import dataclasses

import numpy as np
import pytest
from scipy.stats import norm

from mvquant.evaluation.bootstrap import Change, drop_difference
from mvquant.evaluation.statistics import LEVEL, paired_drop


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


def limits_of_independent_draws(reading, recall, seed, resamples=10_000):
    """One multinomial draw for each task, in order, from one stream: the committed figures depend on it."""
    generator = np.random.default_rng(seed)
    means = []
    for side in (reading, recall):
        drops = []
        for change in side:
            cells = np.array([change.lost + 0.5, change.gained + 0.5, change.n - change.lost - change.gained + 1])
            draws = generator.multinomial(change.n, cells / (change.n + 2), size=resamples)
            drops.append((draws[:, 0] - draws[:, 1]) / change.n / (1 - change.chance))
        means.append(np.mean(drops, axis=0))
    return tuple(np.quantile(means[0] - means[1], [(1 - LEVEL) / 2, (1 + LEVEL) / 2]))


def change(outcomes, chance=0.0):
    """A task with these outcomes, by item: 1 lost, -1 gained."""
    values = list(outcomes.values())
    return Change(values.count(1), values.count(-1), len(values), chance, items=outcomes)


def named(task, values):
    return {f"{task}-{index}": int(value) for index, value in enumerate(values)}


def test_tasks_without_shared_items_are_drawn_one_by_one_from_one_stream():
    rng = np.random.default_rng(1)
    sides = [
        [change(named(name, rng.choice([1, -1, 0], 300, p=[0.1, 0.05, 0.85])), 0.2) for name in names]
        for names in (("passkey", "binding"), ("cities",))
    ]
    without = [[dataclasses.replace(each, items={}) for each in side] for side in sides]
    found = drop_difference(*sides, seed=4)
    assert found == drop_difference(*without, seed=4)
    assert (found.low, found.high) == limits_of_independent_draws(*sides, seed=4)


def half_width(found):
    return (found.high - found.low) / 2


@pytest.mark.parametrize("sign", [1, -1], ids=["alike", "opposite"])
def test_what_one_item_does_to_both_groups_is_in_the_width(sign):
    """In large samples: the variance of the difference on each item."""
    reading = np.repeat([1, -1, 0], [600, 200, 3200])
    recall = np.where(np.arange(4000) % 4 > 0, sign * reading, 0)
    first, second = change(named("conflict", reading), 0.25), change(named("conflict", recall), 0.5)
    each = reading / 0.75 - recall / 0.5
    expected = norm.ppf(0.975) * np.sqrt(each.var() / 4000)
    found = drop_difference([first], [second], resamples=40_000)
    assert half_width(found) == pytest.approx(expected, rel=0.03)
    assert found.value == pytest.approx(each.mean())
    alone = drop_difference([dataclasses.replace(first, items={})], [second], resamples=40_000)
    assert (half_width(found) > 1.1 * half_width(alone)) if sign < 0 else (half_width(found) < 0.9 * half_width(alone))


def test_items_that_only_one_task_holds_are_drawn_apart():
    reading = dict(list(named("conflict", np.tile([1, 0, 0, -1, 0], 800)).items())[:3000])
    recall = dict(list(named("conflict", np.tile([-1, 0, 1, 1, 0], 800)).items())[1000:])
    other = change(named("cities", np.tile([1, 0, 0, 0], 500)))
    shared = np.array([reading[key] / 3000 - recall[key] / 3000 / 2 for key in reading.keys() & recall.keys()])
    alone = [[value for key, value in mine.items() if key not in its] for mine, its in
             ((reading, recall), (recall, reading))]  # fmt: skip
    variance = len(shared) * shared.var() + 1000 * np.var(alone[0]) / 3000**2
    variance += 1000 * np.var(alone[1]) / 3000**2 / 4 + 0.25 * 0.75 / 2000 / 4
    found = drop_difference([change(reading)], [change(recall), other], resamples=40_000)
    assert half_width(found) == pytest.approx(norm.ppf(0.975) * np.sqrt(variance), rel=0.03)


def test_shared_items_that_did_not_change_are_no_proof_either():
    still = change(named("conflict", np.zeros(512)))
    found = drop_difference([still], [still])
    assert found.value == 0
    apart = drop_difference([Change(0, 0, 512, 0.0)], [Change(0, 0, 512, 0.0)])
    assert (found.low, found.high) == pytest.approx((apart.low, apart.high), abs=0.002)


@pytest.mark.parametrize("sign", [1, -1], ids=["alike", "opposite"])
def test_the_interval_of_shared_items_covers_the_truth(sign):
    rng, hits = np.random.default_rng(8), 0
    for number in range(400):
        reading = rng.choice([1, -1, 0], 300, p=[0.15, 0.05, 0.8])
        recall = np.where(rng.random(300) < 0.8, sign * reading, 0)
        sides = ([change(named("conflict", values))] for values in (reading, recall))
        found = drop_difference(*sides, seed=number, resamples=1000)
        hits += found.low <= 0.1 - sign * 0.08 <= found.high
    assert hits / 400 >= 0.92


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
