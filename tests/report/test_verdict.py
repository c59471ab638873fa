import io

import pytest
from rich.console import Console

from mvquant.errors import EvaluationError
from mvquant.report import verdict_table
from mvquant.report.verdict import judge, sentence, task_labels
from tests.evaluation.examples import make_result

CHANCES = {"reference_passkey": 0.0, "reference_recall_yes_no": 0.5}


def result(model, reading, recall, **changes):
    accuracies = dict(zip(CHANCES, (reading, recall), strict=True))
    return make_result(model, accuracies, **{"items": 400, "chances": CHANCES, **changes})


BASE = result("reference", 0.95, 0.9)


def shown(results, baseline=None, width=80):
    console = Console(file=io.StringIO(), width=width)
    console.print(verdict_table(results, baseline))
    return console.file.getvalue()


def words(results):
    return [sentence(verdict) for verdict in judge(results) if verdict.comparison]


def test_the_sentence_gives_points_and_intervals():
    (line,) = words([BASE, result("out/w3a16", 0.75, 0.9)])
    assert line == (
        "w3a16: reading lost 20.0 points (16.0 to 23.8), recall lost 0.0 points (-1.0 to 1.0; no clear change)"
    )


def test_a_small_drop_is_not_called_a_loss_without_doubt():
    (line,) = words([BASE, result("w4a16", 0.9475, 0.9)])
    assert line.startswith("w4a16: reading lost 0.2 points (-0.4 to 0.9; no clear change), ")


def test_a_gain_is_called_a_gain():
    (line,) = words([BASE, result("w4a16", 1.0, 0.9)])
    assert line.startswith("w4a16: reading gained 5.0 points (2.8 to 7.2), ")


def test_the_table_fits_80_columns():
    names = ["out/w8a16", "out/w4a16", "out/w3a16", "out/w2a16", "out/mv-protect-w2a16"]
    variants = [result(name, 0.4 - i / 20, 0.8, bits_per_weight=4.125) for i, name in enumerate(names)]
    text = shown([BASE, *variants])
    assert max(map(len, text.splitlines())) <= 80
    row = next(line for line in text.splitlines() if line.startswith("mv-protect-w2a16 "))
    assert row.split() == [
        "mv-protect-w2a16",
        "4.12",
        "20.0",
        "75.0",
        "[70.3,",
        "78.9]",
        "60.0",
        "20.0",
        "[14.0,",
        "25.8]",
    ]


def test_one_result_shows_every_task_with_its_interval():
    text = shown([BASE])
    assert "passkey" in text
    assert "95.0 [92.4, 96.7]" in text


def test_two_results_show_the_drop_of_every_task():
    text = shown([BASE, result("w3a16", 0.75, 0.9)])
    (row,) = [line.split() for line in text.splitlines() if line.startswith("passkey")]
    assert row == ["passkey", "400", "0.0", "95.0", "75.0", "[70.5,", "79.0]", "20.0", "[16.0,", "23.8]"]


def test_a_single_result_has_no_columns_for_losses():
    header = shown([BASE]).splitlines()[0]
    assert "reading" in header
    assert "lost" not in header


def test_the_baseline_can_be_any_result():
    other = result("w3a16", 0.75, 0.9)
    assert words([other, BASE])[0].startswith("reference: reading gained 20.0")
    assert "w3a16: reading lost 20.0" in shown([other, BASE], baseline=BASE)


def test_a_missing_group_is_a_dash():
    reading_only = make_result("w3a16", {"reference_passkey": 0.5}, items=400)
    text = shown([BASE, reading_only, BASE])
    (row,) = [line.split() for line in text.splitlines() if line.startswith("w3a16  ") and "[" in line]
    assert row[-2:] == ["-", "-"]


def test_what_was_left_out_is_said():
    passkey = BASE.tasks["reference_passkey"].model_copy(update={"too_long": ("a", "b")})
    partial = BASE.model_copy(update={"tasks": {**BASE.tasks, "reference_passkey": passkey}, "limit": 400})
    text = " ".join(shown([partial]).split())
    assert "Only the first 400 items of each task were asked." in text
    assert "reference: 2 items of reference_passkey are longer than the model reads: not counted." in text


def test_a_partial_comparison_is_said():
    half = make_result("half", {"reference_passkey": 0.5}, items=400, limit=400)
    text = " ".join(shown([half, BASE]).split())
    assert "Only the first 400 items of each task were asked of half." in text
    assert "reference: losses are over the items that it shares with the baseline only." in text
    assert "shares" not in " ".join(shown([BASE, result("w4a16", 0.9, 0.9)]).split())


def test_other_data_is_refused():
    passkey = BASE.tasks["reference_passkey"].model_copy(update={"data_hash": "1" * 64})
    other = BASE.model_copy(update={"tasks": {"reference_passkey": passkey}})
    with pytest.raises(EvaluationError, match="data_hash differs"):
        verdict_table([BASE, other])


def test_labels_drop_the_word_that_all_tasks_share():
    assert list(task_labels(judge([BASE])).values()) == ["passkey", "recall_yes_no"]
    mixed = make_result("m", {"gsm8k": 0.5, "reference_passkey": 0.5})
    assert list(task_labels(judge([mixed])).values()) == ["gsm8k", "reference_passkey"]


def test_a_task_without_data_has_a_line_that_says_so():
    (line,) = [
        line
        for line in shown([BASE.model_copy(update={"without_data": {"gsm8k_chat": "no network"}})]).splitlines()
        if line.startswith("gsm8k_chat")
    ]
    assert line.split() == ["gsm8k_chat", "-", "-", "no", "data"]


def test_answers_that_were_cut_are_told():
    task = BASE.tasks["reference_passkey"]
    rows = tuple(row._replace(tokens=8, ended=index > 2) for index, row in enumerate(task.rows))
    cut = BASE.model_copy(update={"tasks": {**BASE.tasks, task.task: task.model_copy(update={"rows": rows})}})
    assert "reference: 3 answers of reference_passkey did not end by themselves and were cut." in shown(
        [cut], width=100
    )
    assert "were cut" not in shown([BASE])
