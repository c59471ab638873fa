import json

import pytest

from mvquant.comparison import Answer
from mvquant.report.html.flips import BUDGET, packed_flips, shortened
from mvquant.report.html.material import Material
from tests.report.comparisons import HOSTILE, flip, hostile_flip, results


def unpacked(flips):
    return json.loads(flips.data)


def test_no_flips_is_nothing():
    assert packed_flips(Material(results())) is None


def test_an_item_keeps_everything_and_equal_answers_once():
    item = flip(7, choices=("attic", "barn"))
    packed = packed_flips(Material(results(), flips=(item,)))
    (row,) = unpacked(packed)["items"]
    assert row == [
        "set_find",
        "item-7",
        "Where is Tom?",
        "attic",
        ["attic", "barn"],
        [["attic", True, None], ["barn", False, None]],
        [0, 1, 1],
    ]
    assert (packed.shown, packed.left_out) == (1, 0)


def test_a_variant_without_an_answer_has_none():
    item = flip(names=("full precision", "random-w3"))
    assert unpacked(packed_flips(Material(results(), flips=(item,))))["items"][0][-1] == [0, -1, 1]


def test_names_come_with_roles_and_tasks_with_their_labels():
    head = unpacked(packed_flips(Material(results(), flips=(flip(),))))["head"]
    assert head["variants"] == [["full precision", "baseline"], ["w3", "variant"], ["random-w3", "control"]]
    assert head["tasks"] == [["set_find", "find"], ["set_choose", "choose"], ["set_know", "know"]]


def test_no_text_can_end_the_script_or_open_a_comment():
    packed = packed_flips(Material(results(), flips=(hostile_flip(), flip(prompt="\u2028 <!-- <script> ]]> &amp;"))))
    assert not set("<>&\u2028\u2029") & set(packed.data)
    assert unpacked(packed)["items"][0][2] == HOSTILE
    assert unpacked(packed)["items"][1][2] == "\u2028 <!-- <script> ]]> &amp;"


@pytest.mark.parametrize("budget", [2_000, 20_000, 200_000])
def test_the_budget_holds_whatever_the_prompts(budget):
    prompt = "".join(chr(0x4E00 + place % 5000) for place in range(9000))
    items = tuple(flip(number, prompt=prompt) for number in range(40))
    packed = packed_flips(Material(results(), flips=items), budget)
    assert len(json.dumps(unpacked(packed)["items"], ensure_ascii=False, separators=(",", ":")).encode()) <= budget
    assert packed.shown + packed.left_out == 40
    assert packed.shown == len(unpacked(packed)["items"]) > 0


def test_long_prompts_lose_their_middle_before_any_item_is_left_out():
    items = tuple(flip(number, prompt="x" * 20_000) for number in range(300))
    packed = packed_flips(Material(results(), flips=items))
    assert packed.left_out == 0
    assert packed.longest < 8000
    assert len(packed.data.encode()) < BUDGET + 1000


def test_shortening_keeps_both_ends_and_counts_what_is_gone():
    text = "a" * 50 + "b" * 900 + "c" * 50
    short = shortened(text, 100)
    assert short == "a" * 50 + " … [900 characters left out] … " + "c" * 50
    assert shortened(short, len(short)) == short


def test_long_answers_are_shortened_too():
    item = flip(answers={"full precision": Answer(prediction="x", correct=True, text="y" * 9000)})
    row = unpacked(packed_flips(Material(results(), flips=(item,))))["items"][0]
    assert "[1,000 characters left out]" in row[5][0][2]
