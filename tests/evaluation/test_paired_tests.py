import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, norm

from mvquant.evaluation.paired_tests import holm, interval_p, mcnemar_p, minimum_detectable_drop
from mvquant.evaluation.statistics import Estimate, paired_drop


def test_mcnemar_against_a_published_example():
    # Fagerland, Lydersen & Laake, BMC Med. Res. Methodol. 13 (2013) 91, table 1: 1 and 7 discordant pairs, p = 0.070
    assert mcnemar_p(1, 7) == pytest.approx(0.070, abs=5e-4)


@given(lost=st.integers(0, 60), gained=st.integers(0, 60))
def test_mcnemar_is_a_fair_coin(lost, gained):
    flips = lost + gained
    outcomes = [math.comb(flips, heads) for heads in range(flips + 1)]
    as_rare = sum(ways for ways in outcomes if ways <= outcomes[lost])
    assert mcnemar_p(lost, gained) == pytest.approx(min(1, as_rare / 2**flips))
    assert mcnemar_p(gained, lost) == mcnemar_p(lost, gained)


@given(lost=st.integers(0, 300), gained=st.integers(0, 300))
def test_an_interval_s_p_is_small_exactly_where_it_excludes_zero(lost, gained):
    drop, back = paired_drop(lost, gained, 1000), paired_drop(gained, lost, 1000)
    assert (interval_p(drop) < 0.05) == (not drop.includes_zero)
    assert interval_p(back) == pytest.approx(interval_p(drop))


@pytest.mark.parametrize("z", [0.5, 1.0, 3.0, 4.0])
def test_an_interval_s_p_is_that_of_a_normal_deviate(z):
    reach = norm.ppf(0.975)
    assert interval_p(Estimate(value=-z, low=-z - 9, high=reach - z)) == pytest.approx(2 * norm.sf(z))


@pytest.mark.parametrize(("lost", "gained"), [(60, 90), (200, 260), (300, 400)])
def test_an_interval_s_p_is_mcnemar_s_mid_p_in_large_samples(lost, gained):
    mid_p = mcnemar_p(lost, gained) - binom.pmf(lost, lost + gained, 0.5)
    assert interval_p(paired_drop(lost, gained, 5000)) == pytest.approx(mid_p, rel=0.05)


def test_no_difference_has_the_p_of_none():
    assert interval_p(Estimate(value=0.0, low=0.0, high=0.0)) == 1.0
    assert interval_p(Estimate(value=0.1, low=0.1, high=0.1)) == 0.0


def test_holm_against_a_published_example():
    # the worked example in Wikipedia's "Holm-Bonferroni method": of four tests at 5 %, two are rejected
    adjusted = holm([0.01, 0.04, 0.03, 0.005])
    assert adjusted == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert [p < 0.05 for p in adjusted] == [True, False, False, True]


def test_both_are_statsmodels_own():
    contingency = pytest.importorskip("statsmodels.stats.contingency_tables")
    multitest = pytest.importorskip("statsmodels.stats.multitest")
    rng = np.random.default_rng(0)
    for lost, gained in rng.integers(0, 40, (20, 2)):
        theirs = contingency.mcnemar([[0, lost], [gained, 0]], exact=True).pvalue
        assert mcnemar_p(int(lost), int(gained)) == pytest.approx(min(1, theirs))
    p_values = rng.random(12) ** 3
    assert holm(list(map(float, p_values))) == pytest.approx(multitest.multipletests(p_values, method="holm")[1])


@given(st.lists(st.floats(0, 1), max_size=8))
def test_holm_is_between_nothing_and_bonferroni(p_values):
    for before, after in zip(p_values, holm(p_values), strict=True):
        assert before <= after + 1e-12
        assert after <= min(1.0, before * len(p_values)) + 1e-12


@pytest.mark.parametrize(("n", "discordant"), [(200, 0.1), (1319, 0.1), (512, 0.02), (50, 0.5)])
def test_the_detectable_drop_solves_connors_sample_size(n, discordant):
    drop = minimum_detectable_drop(n, discordant)
    share = max(discordant, drop)
    size = ((norm.ppf(0.975) * math.sqrt(share) + norm.ppf(0.8) * math.sqrt(share - drop**2)) / drop) ** 2
    assert size == pytest.approx(n)


def test_more_items_show_smaller_drops_and_a_single_one_shows_none():
    drops = [minimum_detectable_drop(n, 0.1) for n in (100, 400, 1600)]
    assert drops == sorted(drops, reverse=True)
    assert drops[1] / drops[2] == pytest.approx(2, abs=0.05)
    assert minimum_detectable_drop(1, 0.1) == 1.0
    assert minimum_detectable_drop(200, 0.0) > 0


@pytest.mark.parametrize(("n", "discordant"), [(500, 0.1), (1319, 0.3)])
def test_a_detectable_drop_is_found_in_four_of_five_cases(n, discordant):
    """Power of McNemar's test in its asymptotic form, which Connor's formula is for."""
    drop = minimum_detectable_drop(n, discordant)
    lost = (discordant + drop) / 2
    draws = np.random.default_rng(0).multinomial(n, [lost, discordant - lost, 1 - discordant], size=20_000)
    found = np.abs(draws[:, 0] - draws[:, 1]) / np.sqrt(np.maximum(draws[:, 0] + draws[:, 1], 1)) > norm.ppf(0.975)
    assert found.mean() == pytest.approx(0.8, abs=0.02)


def test_without_a_difference_mcnemar_alarms_at_most_at_its_level():
    chances = binom.pmf(np.arange(41), 40, 0.5)
    alarm = sum(chance for lost, chance in enumerate(chances) if mcnemar_p(lost, 40 - lost) <= 0.05)
    assert 0.01 < alarm <= 0.05
