from mvquant.comparison import comparison_recipe
from mvquant.report.comparison_remarks import remarks
from tests.report.comparisons import results, task_score, variant


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
    assert "Noise floor: full precision, asked again in other batches, changes 3 of 100 answers." in remarks(
        results(variant("w3"), again)
    )


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
