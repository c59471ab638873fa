from mvquant.report.html.headline import control_sentences, headline, verdict_sentences
from tests.report.comparisons import around, contrast, results, variant

CLEAR, UNCLEAR = {"reading": 0.2, "recall": 0.01}, {"reading": 0.02, "recall": 0.01}


def test_one_variant_is_the_headline():
    assert headline(results(variant("w3", **CLEAR))) == (
        "w3 loses 19.0 points more reading (answers in the prompt) than recall (answers in the weights) (15.0 to 23.0)."
    )


def test_an_interval_with_zero_is_no_difference():
    said = headline(results(variant("w4", **UNCLEAR)))
    assert said.startswith("w4 loses nothing that these items show (reading (answers in the prompt) 2.0 points, ")


def test_more_recall_than_reading_is_said_the_right_way_round():
    said = headline(results(variant("w3", reading=0.01, recall=0.2)))
    assert said.startswith("w3 loses 19.0 points more recall (answers in the weights) than reading (answers in")


def test_a_gain_is_not_called_a_loss():
    assert headline(results(variant("w3", 0.0, -0.2))) == (
        "w3 gains 20.0 points of recall (answers in the weights) (16.0 to 24.0) without a loss of reading (answers in "
        "the prompt) that these items show."
    )
    said = headline(results(variant("w3", 0.0, -0.2), variant("w4", 0.03, -0.03), variant("w5", 0.0, -0.3)))
    assert said == (
        "Of 3 variants, 2 (w3, w5) gain recall (answers in the weights) without a loss of reading (answers in the "
        "prompt) that these items show; 1 (w4) does better at one of reading and recall than at the other, but neither "
        "changes clearly by itself."
    )


def test_several_variants_are_counted_the_harmless_first():
    said = headline(results(variant("w2", 0.8, 0.7), variant("k2", 0.5), variant("w3", **CLEAR), variant("w4")))
    assert said == (
        "Of 4 variants, 1 (w4) loses nothing that these items show; 2 (k2, w3) lose more reading (answers in the "
        "prompt) than recall (answers in the weights), by up to 50.0 points (46.0 to 54.0); 1 (w2) loses most of both."
    )


def test_many_names_are_cut():
    said = headline(results(*(variant(f"w{number}") for number in range(6))))
    assert said == "Of 6 variants, 6 (w0, w1, w2, w3, ...) lose nothing that these items show."


def test_a_name_with_the_words_in_it_is_left_alone():
    said = headline(results(variant("reading-recall", **CLEAR)))
    assert said.startswith("reading-recall loses 19.0 points more reading (answers in the prompt) than recall")


def test_full_precision_that_guesses_is_the_headline():
    found = results(variant("w3", **CLEAR))
    groups = {
        group: score.model_copy(update={"corrected": around(0.01)}) for group, score in found.variants[0].groups.items()
    }
    weak = found.model_copy(
        update={"variants": (found.variants[0].model_copy(update={"groups": groups}), *found.variants[1:])}
    )
    assert headline(weak) == (
        "Full precision itself is not clearly better than a guess at reading (answers in the prompt) and recall "
        "(answers in the weights) on these items: what is lost of that cannot be told."
    )


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
    dearer = contrast("w3", "whole-qk-all", -0.3, extra_bytes=-5000)
    assert control_sentences(_shown(dearer, contrast("w3", "fast"))) == [
        "Against 2 controls, w3 reads worse than whole-qk-all (at more bytes); 1 cannot be told apart."
    ]


def test_beating_a_control_of_fewer_bytes_is_told_as_that():
    cheaper = contrast("w3", "token", 0.3).model_copy(update={"extra_cached_bits": 0.5})
    shown = results(
        variant("w3"), variant("token", role="control", bits_per_cached_key=2.0), contrasts=(cheaper, cheaper)
    )
    assert control_sentences(shown) == [
        "Against 2 controls, w3 reads better than token (at fewer bytes), token (at fewer bytes)."
    ]


def test_only_significant_controls_count():
    alike = _shown(contrast("w3", "random"), contrast("w3", "fast"))
    assert control_sentences(alike) == [
        "Against 2 other ways to spend its bytes, w3 reads and recalls no differently, as far as these items tell."
    ]
    split = _shown(
        contrast("w3", "random", 0.3), contrast("w3", "groups", -0.3, -0.2), contrast("w3", "fast"), contrast("w3", "k")
    )
    assert control_sentences(split) == [
        (
            "Against 4 other ways to spend its bytes, w3 reads better than random and worse than groups; "
            "it recalls worse than groups; 2 cannot be told apart."
        )
    ]


def test_reading_that_was_gained_and_recall_that_was_lost_do_not_cancel():
    """As many items better as worse: McNemar's test of all of them together sees nothing."""
    both = contrast("w3", "random", 0.3, -0.3, better=300, worse=300, p_holm=1.0)
    assert control_sentences(_shown(both)) == [
        "Against its control, w3 reads better than random; it recalls worse than random."
    ]


def test_an_interval_without_zero_among_many_is_told_and_no_difference():
    chance = contrast("w3", "random", 0.045)
    assert control_sentences(_shown(chance, contrast("w3", "fast"))) == [
        (
            "Against 2 other ways to spend its bytes, w3 reads and recalls no differently, as far as these items tell "
            "(one interval excludes zero, but that may be chance among so many)."
        )
    ]


def test_an_interval_without_zero_beside_clear_differences_is_told_too():
    shown = _shown(contrast("w3", "random", 0.3), contrast("w3", "fast", 0.045), contrast("w3", "k"))
    assert control_sentences(shown) == [
        (
            "Against 3 other ways to spend its bytes, w3 reads better than random; 2 cannot be told apart (one "
            "interval excludes zero, but that may be chance among so many)."
        )
    ]


def test_only_what_was_asked_is_called_alike():
    one = contrast("w3", "random").model_copy(update={"gains": {"parametric": around(0.01)}})
    assert control_sentences(_shown(one)) == [
        "Against its control, w3 recalls no differently, as far as these items tell."
    ]


def _shown(*contrasts):
    """A comparison with these contrasts and their controls."""
    controls = [variant(each.control, role="control", control_of=(each.variant,)) for each in contrasts]
    return results(variant("w3"), *controls, contrasts=contrasts)
