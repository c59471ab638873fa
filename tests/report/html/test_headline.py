import pytest

from mvquant.report.html.headline import control_sentences, headline, verdict_sentences
from tests.report.comparisons import contrast, results, variant

CLEAR, UNCLEAR = {"reading": 0.2, "recall": 0.01}, {"reading": 0.02, "recall": 0.01}


def test_one_variant_is_the_headline():
    assert headline(results(variant("w3", **CLEAR))) == (
        "w3 loses 19.0 points more reading than recall (15.0 to 23.0)."
    )


def test_an_interval_with_zero_is_no_difference():
    said = headline(results(variant("w4", **UNCLEAR)))
    assert said.startswith("w4 may lose reading and recall alike: the difference is 1.0 points (")


def test_more_recall_than_reading_is_said_the_right_way_round():
    said = headline(results(variant("w3", reading=0.01, recall=0.2)))
    assert said == "w3 loses 19.0 points more recall than reading (15.0 to 23.0)."


def test_several_variants_are_counted_and_the_widest_named():
    said = headline(results(variant("w2", 0.5), variant("w3", **CLEAR), variant("w4", **UNCLEAR)))
    assert said == (
        "2 of 3 variants lose more reading than recall. "
        "The widest gap: w2 loses 50.0 points more reading than recall (46.0 to 54.0)."
    )


@pytest.mark.parametrize(("count", "word"), [(2, "Neither variant"), (3, "None of 3 variants")])
def test_no_clear_gap_is_said_so(count, word):
    said = headline(results(*(variant(f"w{number}", **UNCLEAR) for number in range(count))))
    assert said.startswith(f"{word} clearly loses more reading than recall, or the reverse. The widest gap: w0, 1.0")


def test_controls_do_not_make_the_headline():
    said = headline(results(variant("w3", **UNCLEAR), variant("random", 0.5, role="control")))
    assert "random" not in said


def test_without_both_kinds_of_tasks_there_is_no_verdict():
    assert "no verdict" in headline(results(variant("w3", groups={}, contextual_minus_parametric=None)))


def test_losses_say_whether_they_are_clear():
    (sentence,) = verdict_sentences(results(variant("w3", reading=0.2, recall=-0.01)))
    assert sentence.losses == (
        "reading lost 20.0 points (16.0 to 24.0); recall gained 1.0 points (\N{MINUS SIGN}3.0 to 5.0, no clear change)"
    )


def test_a_control_that_takes_more_bytes_is_not_called_another_way_to_spend_them():
    dearer = contrast("w3", "whole-qk-all", better=1, worse=40, p_holm=0.001, extra_bytes=-5000)
    assert control_sentences(results(contrasts=(dearer, contrast("w3", "fast")))) == [
        "Against 2 controls, w3 answers worse than whole-qk-all (at more bytes); 1 cannot be told apart."
    ]


def test_only_significant_controls_count():
    alike = results(contrasts=(contrast("w3", "random"), contrast("w3", "fast")))
    assert control_sentences(alike) == [
        "Against 2 other ways to spend its bytes, w3 answers no differently, as far as these items tell."
    ]
    split = results(
        contrasts=(
            contrast("w3", "random", better=30, worse=2, p_holm=0.001),
            contrast("w3", "groups", better=1, worse=40, p_holm=0.001),
            contrast("w3", "fast"),
        )
    )
    assert control_sentences(split) == [
        (
            "Against 3 other ways to spend its bytes, w3 answers better than random and worse than groups; "
            "1 cannot be told apart."
        )
    ]
