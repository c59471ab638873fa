import pytest

from mvquant.report.findings import finding, guessed, headline_parts, spending, verdict
from tests.report.comparisons import around, contrast, partly, results, variant


@pytest.mark.parametrize(
    ("reading", "recall", "word"),
    [
        (0.01, 0.0, "nothing"),
        (-0.2, -0.2, "nothing"),
        (0.1, 0.09, "alike"),
        (0.2, 0.01, "reading"),
        (0.01, 0.2, "recall"),
        (0.8, 0.6, "most"),
        (0.8, 0.1, "reading"),
        (0.0, -0.2, "recall gained"),
        (-0.2, 0.0, "reading gained"),
        (-0.1, -0.3, "recall gained"),
        (0.03, -0.03, "apart"),
        (-0.03, 0.03, "apart"),
        (0.06, -0.06, "reading"),
        (-0.06, 0.06, "recall"),
    ],
)
def test_a_word_for_what_was_lost(reading, recall, word):
    found = results(variant("w3", reading, recall))
    assert finding(found.variants[1], found.variants[0]) == word


def test_a_broken_model_is_called_broken_though_it_lost_more_reading():
    found = results(variant("w2", 0.8, 0.6))
    assert verdict(found.variants[1], found.variants[0]) == (
        "loses most of both (reading 80.0 points, recall 60.0 points)"
    )


@pytest.mark.parametrize(
    ("reading", "recall", "said"),
    [
        (0.0, -0.2, "gains 20.0 points of recall (16.0 to 24.0) without a loss of reading that these items show"),
        (-0.2, 0.0, "gains 20.0 points of reading (16.0 to 24.0) without a loss of recall that these items show"),
        (
            0.03,
            -0.03,
            (
                "does 6.0 points better at recall than at reading (2.0 to 10.0), but neither changes clearly by itself "
                "(reading 3.0 points, recall -3.0 points lost)"
            ),
        ),
        (
            -0.03,
            0.03,
            (
                "does 6.0 points better at reading than at recall (2.0 to 10.0), but neither changes clearly by itself "
                "(reading -3.0 points, recall 3.0 points lost)"
            ),
        ),
    ],
)
def test_a_gain_of_one_is_no_loss_of_the_other(reading, recall, said):
    found = results(variant("w3", reading, recall))
    assert verdict(found.variants[1], found.variants[0]) == said


def _with_scores(model, **corrected):
    tasks = {
        task: score.model_copy(update={"corrected": around(corrected.get(task, 0.9))})
        for task, score in model.tasks.items()
    }
    return model.model_copy(update={"tasks": tasks})


def test_what_is_kept_is_a_share_of_the_same_tasks():
    """Full precision gets 30 % of the only reading task that was answered: to lose 12 points of it is not to break."""
    found = results(partly(variant("w2", 0.12, 0.5), "set_find"))
    baseline = _with_scores(found.variants[0], set_choose=0.3)
    assert finding(found.variants[1], baseline) == "recall"
    assert finding(partly(variant("w2", 0.16, 0.5), "set_find"), baseline) == "most"
    assert finding(variant("w2", 0.16, 0.5), baseline) == "recall"  # of all tasks that is little


def test_what_full_precision_guesses_on_the_answered_tasks_cannot_be_lost():
    found = results(partly(variant("w2", 0.3, 0.0), "set_find"))
    baseline = _with_scores(found.variants[0], set_choose=0.02)
    assert finding(found.variants[1], baseline) == "unknown"
    assert finding(variant("w2", 0.3, 0.0), baseline) == "reading"


def test_an_interval_with_zero_is_never_a_difference():
    found = results(variant("w3", 0.1, 0.09))
    said = verdict(found.variants[1], found.variants[0])
    assert said == (
        "loses some, reading and recall alike as far as these items tell: the difference is 1.0 points (-3.0 to 5.0)"
    )


def test_nobody_knows_without_both_kinds_of_tasks():
    found = results(variant("w3", contextual_minus_parametric=None))
    assert finding(found.variants[1], found.variants[0]) == "unknown"
    assert verdict(found.variants[1], found.variants[0]) == ""


def test_what_full_precision_guesses_cannot_be_lost():
    found = results(variant("w3", 0.2, 0.0))
    groups = dict(found.variants[0].groups)
    groups["contextual"] = groups["contextual"].model_copy(update={"corrected": around(0.02)})
    baseline = found.variants[0].model_copy(update={"groups": groups})
    assert guessed(baseline) == ["reading"]
    assert verdict(found.variants[1], baseline) == ""


def test_the_harmless_come_first_and_controls_do_not_count():
    shown = (variant("w2", 0.8, 0.7), variant("up", 0.0, -0.2), variant("w4"), variant("k2", 0.3))
    found = results(*shown, variant("random", 0.5, role="control"))
    parts = [([each.name for each in chosen], word) for chosen, word in headline_parts(found)]
    assert parts == [(["w4"], "nothing"), (["up"], "recall gained"), (["k2"], "reading"), (["w2"], "most")]


@pytest.mark.parametrize(
    ("extra_bytes", "extra_bits", "word"),
    [
        (0, 0.0, ""),
        (1536, 0.0, ""),
        (200_000, 0.0, "fewer"),
        (-1, 0.0, "more"),
        (0, 0.3, "fewer"),
        (0, -0.3, "more"),
        (0, -0.001, ""),
        (None, None, ""),
    ],
)
def test_a_control_that_does_not_cost_the_same_is_told(extra_bytes, extra_bits, word):
    one = contrast("k2", "c", extra_bytes=extra_bytes).model_copy(update={"extra_cached_bits": extra_bits})
    found = results(variant("k2"), variant("c", role="control", bits_per_cached_key=2.2), contrasts=(one,))
    assert spending(one, found) == word
