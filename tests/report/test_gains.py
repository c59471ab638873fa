import numpy as np
import pytest

from mvquant.evaluation.paired_tests import holm, interval_p
from mvquant.evaluation.statistics import mean, paired_drop
from mvquant.report.gains import judged_gains
from tests.report.comparisons import contrast, results, variant


def shown(*contrasts):
    return judged_gains(results(variant("w3"), contrasts=contrasts))


def test_every_gain_is_tested_and_adjusted_for_all():
    pair = (contrast("w3", "a", 0.05, 0.0), contrast("w3", "b", -0.055, 0.06))
    found = shown(*pair)
    p_values = holm([interval_p(gain) for each in pair for gain in each.gains.values()])
    assert [p for each in found for p in each.p.values()] == p_values
    assert [each.contrast.control for each in found] == ["a", "b"]


def test_a_clear_difference_has_the_sign_of_its_gain():
    (found,) = shown(contrast("w3", "a", 0.3, -0.3))
    assert (found.clear("contextual"), found.clear("parametric"), found.differs) == ("better", "worse", True)


def test_among_many_an_interval_without_zero_is_no_difference():
    alone, *_ = shown(contrast("w3", "a", 0.045, 0.3))
    assert alone.clear("contextual") == "better"
    among, *_ = shown(contrast("w3", "a", 0.045, 0.3), *(contrast("w3", "b") for _ in range(5)))
    assert (among.clear("contextual"), among.in_doubt) == ("", 1)


def test_a_group_that_was_not_asked_has_no_difference():
    one = contrast("w3", "a").model_copy(update={"gains": {}})
    (found,) = shown(one)
    assert (found.p, found.differs, found.clear("contextual")) == ({}, False, "")


@pytest.mark.parametrize(("discordant", "tasks"), [(0.02, 3), (0.1, 2), (0.3, 1)])
def test_false_alarms_are_as_rare_as_said(discordant, tasks):
    """Twenty gains of models that do not differ: some false alarm in at most 5 of 100 comparisons."""
    rng, alarms = np.random.default_rng(3), 0
    for _ in range(300):
        flips = rng.multinomial(500, [discordant / 2, discordant / 2, 1 - discordant], size=(20, tasks))
        gains = [mean([paired_drop(int(lost), int(won), 500) for lost, won, _ in each]) for each in flips]
        alarms += min(holm([interval_p(gain) for gain in gains])) < 0.05
    assert alarms / 300 <= 0.085
