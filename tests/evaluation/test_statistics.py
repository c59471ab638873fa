import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import bootstrap, multinomial, norm

from mvquant.evaluation.statistics import Estimate, accuracy, chance_corrected, mean, paired_drop

Z = norm.ppf(0.975)


def wilson_by_hand(correct, n):
    """Roots of (p - x)^2 = z^2 x (1 - x) / n."""
    p = correct / n
    return sorted(np.roots([1 + Z**2 / n, -(2 * p + Z**2 / n), p**2]))


@pytest.mark.parametrize(("correct", "n"), [(0, 20), (1, 20), (500, 512), (512, 512), (3, 7)])
def test_accuracy_interval_is_the_root_of_the_score_test(correct, n):
    found = accuracy(correct, n)
    assert found.value == correct / n
    assert (found.low, found.high) == pytest.approx(wilson_by_hand(correct, n), abs=1e-7)


def test_accuracy_against_a_published_example():
    # Newcombe, Stat. Med. 17 (1998) 857, table I: 81/263, 15/148, 0/20, 1/29
    published = {
        (81, 263): (0.2553, 0.3662),
        (15, 148): (0.0624, 0.1605),
        (0, 20): (0, 0.1611),
        (1, 29): (0.0061, 0.1718),
    }
    for (correct, n), limits in published.items():
        found = accuracy(correct, n)
        assert (found.low, found.high) == pytest.approx(limits, abs=5e-5)


def test_guessing_is_zero_and_perfection_one():
    guess, perfect = Estimate(value=0.25, low=0.2, high=0.3), Estimate(value=1, low=0.99, high=1)
    assert chance_corrected(guess, 0.25).value == pytest.approx(0)
    assert chance_corrected(guess, 0.25).low < 0
    assert chance_corrected(perfect, 0.25).value == pytest.approx(1)


def test_mean_of_one_task_is_the_task():
    found = accuracy(31, 40)
    assert mean([found]).model_dump() == pytest.approx(found.model_dump())


def test_difference_of_two_is_newcombes():
    # Newcombe, Stat. Med. 17 (1998) 873, table II, method 10: 56/70 - 48/80 = 0.2 (0.0524, 0.3339)
    first, second = accuracy(56, 70), accuracy(48, 80)
    minus = Estimate(value=-second.value, low=-second.high, high=-second.low)
    found = mean([first, minus]).scaled(2.0)
    assert (found.value, found.low, found.high) == pytest.approx((0.2, 0.0524, 0.3339), abs=5e-5)


@given(lost=st.integers(0, 30), gained=st.integers(0, 30), same=st.integers(0, 400))
def test_drop_lies_inside_its_interval(lost, gained, same):
    n = lost + gained + same
    if n == 0:
        return
    drop = paired_drop(lost, gained, n)
    assert -1 <= drop.low <= drop.value + 1e-12
    assert drop.value - 1e-12 <= drop.high <= 1
    mirrored = paired_drop(gained, lost, n)
    assert (mirrored.low, mirrored.high) == pytest.approx((-drop.high, -drop.low))


def test_drop_is_walds_with_half_an_item_more_in_each_cell():
    lost, gained, n = 31, 9, 200
    changes = np.repeat([1.0, 0.0, -1.0], [2 * lost + 1, 2 * (n - lost - gained) + 2, 2 * gained + 1])
    reach = Z * changes.std() / math.sqrt(n + 2)
    drop = paired_drop(lost, gained, n)
    assert (drop.low, drop.high) == pytest.approx((changes.mean() - reach, changes.mean() + reach))


def test_drop_agrees_with_the_bootstrap_over_items():
    lost, gained, n = 150, 60, 2000
    changes = np.repeat([1, 0, -1], [lost, n - lost - gained, gained])
    resampled = bootstrap((changes,), np.mean, method="percentile", rng=np.random.default_rng(0), batch=500)
    drop = paired_drop(lost, gained, n)
    assert (drop.low, drop.high) == pytest.approx(tuple(resampled.confidence_interval), abs=0.001)


def test_no_change_is_no_proof_of_none():
    drop = paired_drop(0, 0, 512)
    assert drop.value == 0
    assert drop.high == -drop.low == pytest.approx(Z / 514)
    assert drop.includes_zero


def coverage(truth, estimates):
    return np.mean([estimate.low <= truth <= estimate.high for estimate in estimates])


@pytest.mark.parametrize(
    ("lost", "gained"), [(0.0, 0.0), (0.002, 0.002), (0.02, 0.005), (0.2, 0.02)], ids=["none", "rare", "some", "many"]
)
def test_drop_covers_the_truth(lost, gained):
    draws = multinomial.rvs(300, [lost, gained, 1 - lost - gained], size=2000, random_state=1)
    found = coverage(lost - gained, [paired_drop(int(a), int(b), 300) for a, b, _ in draws])
    assert found >= 0.93


@pytest.mark.parametrize("accuracies", [(0.99, 0.9, 0.7), (1.0, 1.0, 0.95), (0.5, 0.5, 0.5)])
def test_group_mean_covers_the_truth(accuracies):
    rng = np.random.default_rng(2)
    draws = rng.binomial(200, accuracies, size=(1000, 3))
    known = {correct: accuracy(int(correct), 200) for correct in np.unique(draws)}
    found = [mean([known[correct] for correct in draw]) for draw in draws]
    assert coverage(np.mean(accuracies), found) >= 0.93
