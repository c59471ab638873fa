from mvquant.comparison import comparison_recipe
from mvquant.report.comparison_remarks import remarks
from tests.report.comparisons import partly, results, task_score, variant


def cut(score, count):
    return score.model_copy(update={"cut_off": count})


def test_answers_without_end_are_told_once_for_each_variant_and_together_for_controls():
    tasks = {"set_find": cut(task_score(), 7), "set_choose": task_score(), "set_know": cut(task_score(), 2)}
    controls = [variant(name, role="control", tasks=tasks) for name in ("c1", "c2")]
    lines = list(remarks(results(variant("w2", tasks=tasks), *controls)))
    assert "w2: answers that never ended and were cut: 7 of 100 to find, 2 of 100 to know." in lines
    assert "Controls: 18 answers never ended and were cut." in lines
    assert len([line for line in lines if "never ended" in line]) == 2


def test_the_noise_floor_is_what_full_precision_changes_by_itself():
    again = variant("full precision again", role="again", tasks={"set_find": task_score(2, 1)})
    said = (
        "Noise floor: full precision, asked again in other batches, answers 3 of 100 items right where it was wrong, "
        "or the other way round."
    )
    assert said in remarks(results(variant("w3"), again))


def test_a_mean_over_some_tasks_is_told():
    lines = list(remarks(results(partly(variant("w3"), "set_find"), variant("w4"))))
    assert "w3: reading is the mean of 1 of 2 tasks only; it is not comparable with that of the others." in lines
    assert not [line for line in lines if line.startswith("w4")]


def test_the_detectable_drop_is_that_of_one_test():
    line = (
        "Smallest drop of one task that these items show with 80 % probability, before Holm's adjustment: 7.7 to 7.7 "
    )
    assert f"{line}points." in remarks(results())


def test_what_was_not_asked_and_how_is_told():
    settings = comparison_recipe(
        {"model": "tiny", "variants": [{"name": "w3", "scheme": "w3a16"}], "chat_template": True, "limit": 5}, "test"
    )
    lines = list(remarks(results(settings=settings, without_data={"gsm8k": "not in here"})))
    assert "Only the first 5 items of each task were asked." in lines
    assert "Prompts were put into the chat template of the tokenizer." in lines
    assert "Not asked, because their data is not there: gsm8k." in lines


def test_items_that_fit_no_model_are_told_once():
    base = results(variant("w3"))
    tasks = {name: score.model_copy(update={"too_long": 4}) for name, score in base.variants[0].tasks.items()}
    first = base.variants[0].model_copy(update={"tasks": tasks})
    lines = list(remarks(base.model_copy(update={"variants": (first, base.variants[1])})))
    assert lines.count("4 items of find are longer than the model reads: not counted.") == 1


def test_different_calibration_text_is_told():
    one, same, other = (
        variant(name).model_copy(update={"calibration_hash": text})
        for name, text in (("a", "1"), ("b", "1"), ("c", "2"))
    )
    line = "Calibrated on different text, so that not only their methods differ: a, b / c."
    assert line in remarks(results(one, same, other))
    assert line not in remarks(results(one, same))
