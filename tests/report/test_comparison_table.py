import pytest
from markdown_it import MarkdownIt

from mvquant.comparison import (
    ComparisonResults,
    Contrast,
    Failure,
    GroupScore,
    TaskInfo,
    TaskScore,
    TextScore,
    VariantResult,
)
from mvquant.evaluation.bootstrap import Change, drop_difference
from mvquant.evaluation.compare import TaskDrop
from mvquant.evaluation.paired_tests import mcnemar_p
from mvquant.evaluation.statistics import Estimate, accuracy, chance_corrected, paired_drop
from mvquant.evaluation.text_quality import TextQuality
from mvquant.report import comparison_markdown
from mvquant.report.comparison_table import verdict_lines
from tests.report import comparisons as report_examples

TASKS = {"reference_passkey": "contextual", "reference_city_country": "parametric"}
N = 500
TEXT = TextScore(
    sequences=4,
    tokens=400,
    perplexity=4.2,
    perplexity_ratio=Estimate(value=1.0472, low=1.0321, high=1.0635),
    kl=Estimate(value=1.9, low=1.8, high=2.0),
    kl_tail=11.5972,
    top_1=Estimate(value=0.9123, low=0.9, high=0.92),
    continuations=TextQuality(texts=4, distinct_2=0.4321, mean_tokens=63.5, ended=0, limit=64),
)


def variant(name, lost, role="variant", **fields):
    """A variant that lost so many of 500 items of each task."""
    tasks, groups = {}, {}
    for (task, group), wrong in zip(TASKS.items(), lost, strict=True):
        drop = paired_drop(wrong, 0, N)
        p = mcnemar_p(wrong, 0)
        versus = TaskDrop(
            n=N, lost=wrong, gained=0, drop=drop, corrected=drop, p=p, p_holm=min(1.0, 2 * p), minimum_detectable=0.024
        )
        right = accuracy(N - wrong, N)
        tasks[task] = TaskScore(
            n=N,
            correct=N - wrong,
            accuracy=right,
            corrected=chance_corrected(right, 0.0),
            too_long=0,
            cut_off=3 if wrong > 200 else 0,
            mean_tokens=4.0,
            versus_baseline=None if role == "baseline" else versus,
        )
        groups[group] = GroupScore(
            tasks=(task,), accuracy=right, corrected=right, drop=None if role == "baseline" else drop
        )
    gap = drop_difference([Change(lost[0], 0, N, 0.0)], [Change(lost[1], 0, N, 0.0)])
    return VariantResult(
        name=name,
        role=role,
        summary=name,
        model_hash="0" * 64,
        bytes=2_344_960,
        bits_per_weight=3.29,
        tasks=tasks,
        groups=groups,
        contextual_minus_parametric=None if role == "baseline" else gap,
        **fields,
    )


def results(*variants, contrasts=(), **settings):
    info = {
        name: TaskInfo(knowledge=group, version=1, chance=0.0, answer_by="generation", items=N, data_hash="0" * 64)
        for name, group in TASKS.items()
    }
    recipe = {"model": "reference", "variants": ["w3a16"], **settings}
    return ComparisonResults.model_validate(
        {
            "model": "reference",
            "family": "llama",
            "dtype": "bfloat16",
            "device": "cpu",
            "command": "mvquant compare",
            "settings": recipe,
            "versions": {},
            "tasks": info,
            "variants": (variant("full precision", (0, 0), "baseline"), *variants),
            "contrasts": contrasts,
        }
    )


def test_the_verdict_says_which_side_lost_more_or_that_nobody_knows():
    lines = list(verdict_lines(results(variant("a", (100, 5)), variant("b", (5, 100)), variant("c", (5, 5)))))
    assert lines[0].startswith("a loses 19.0 points more reading than recall (15.")
    assert lines[1].startswith("b loses 19.0 points more recall than reading (15.")
    assert lines[2].startswith(
        "c loses some, reading and recall alike as far as these items tell: the difference is 0.0"
    )


def test_it_reads_at_80_columns():
    contrast = Contrast(
        variant="mv-protect-w3a16",
        control="smaller-groups-w3a16",
        gains={
            "contextual": Estimate(value=-0.11, low=-0.15, high=-0.101),
            "parametric": Estimate(value=0, low=0, high=0),
        },
        better=1,
        worse=2,
        p=1.0,
        p_holm=1.0,
        extra_bytes=0,
    )
    wide = variant("smaller-groups-w3a16", (100, 80), bits_per_cached_key=2.19, bits_per_cached_value=9.1, text=TEXT)
    text = comparison_markdown(results(wide, contrasts=(contrast,)))
    assert max(map(len, text.splitlines()[1:])) <= 80
    assert "bits/k" not in text  # nothing is known of another
    cells = [line.split("|") for line in text.splitlines() if "-11.0" in line][-1]
    assert [cell.strip() for cell in cells[1:-1]] == ["smaller-groups-w3a16", "-11.0 [-15.0, -10.1]*", "0.0 [0.0, 0.0]"]


def test_bits_of_keys_are_told_where_they_differ():
    names = ("smaller-groups-w3a16", "channel-scales-k2.25", "k")
    variants = [
        variant(name, (100, 80), bits_per_cached_key=bits, bits_per_cached_value=(bits + 16) / 2)
        for name, bits in zip(names, (16.0, 2.19, 2.5), strict=True)
    ]
    text = comparison_markdown(results(*variants))
    assert max(map(len, text.splitlines()[1:])) <= 80
    assert "bits/k " in text
    assert "bits/kv" not in text.partition("reading: contextual")[0]  # V is cached as it comes by all
    rounded = variant("v4", (1, 1), bits_per_cached_key=2.19, bits_per_cached_value=3.1)
    assert "bits/kv" in comparison_markdown(results(*variants, rounded)).partition("reading: contextual")[0]


def test_long_names_make_more_tables_and_no_longer_lines():
    text = comparison_markdown(results(variant("smaller-groups-gptq-w3a16-and-more", (100, 80))))
    assert max(map(len, text.splitlines()[1:])) <= 80


def test_controls_that_cost_more_or_less_are_marked():
    same, dear, cheap = (_contrast(name, bits) for name, bits in (("same", 0.0), ("dear", -0.5), ("cheap", 0.5)))
    shown = [variant(name, (1, 1), "control", bits_per_cached_key=2.0) for name in ("same", "dear", "cheap")]
    text = comparison_markdown(results(variant("mine", (1, 1)), *shown, contrasts=(same, dear, cheap)))
    for row in ("| same    |", "| dear +  |", "| cheap - |"):
        assert row in text
    assert "+ takes more than the same bytes" in text


def _contrast(control, extra_bits):
    nothing = Estimate(value=0, low=0, high=0)
    return Contrast(
        variant="mine",
        control=control,
        gains={"contextual": nothing, "parametric": nothing},
        better=0,
        worse=0,
        p=1.0,
        p_holm=1.0,
        extra_bytes=0,
        extra_cached_bits=extra_bits,
    )


def test_a_mark_stands_where_the_difference_is_clear():
    text = comparison_markdown(results(variant("w3a16", (100, 2))))
    row = next(line for line in text.splitlines() if line.startswith("| w3a16") and "*" in line)
    assert row.split() == ["|", "w3a16", "|", "80.0*", "|", "99.6", "|"]


def test_what_failed_and_what_never_ended_is_said():
    failure = Failure(part="reference_passkey", message="task reference_passkey: NaN\nmore")
    broken = VariantResult(name="w2a16", role="variant", summary="", model_hash="0" * 64, failures=(failure,))
    text = " ".join(comparison_markdown(results(variant("w3a16", (300, 0)), broken, limit=500)).split())
    assert "- **w2a16 failed** in reference_passkey: task reference_passkey: NaN - Only" in text
    assert "- Only the first 500 items of each task were asked." in text
    assert "- w3a16: answers that never ended and were cut: 3 of 500 to passkey." in text
    assert "80 % probability, before Holm's adjustment: 2.4 to 2.4 points." in text


def test_a_name_with_a_bar_stays_in_its_cell():
    mine, control = variant("a|b", (100, 5)), variant("c|d", (5, 5), "control")
    one = _contrast("c|d", 0.0).model_copy(update={"variant": "a|b"})
    text = comparison_markdown(results(mine, control, contrasts=(one,)))
    tables = [token for token in MarkdownIt("commonmark").enable("table").parse(text) if token.type == "inline"]
    cells = [token.content for token in tables]
    assert cells.count("a|b") >= 2  # as a row of each table
    assert cells.count("c|d") >= 3


def test_a_mean_over_some_tasks_is_marked():
    found = report_examples.results(report_examples.partly(report_examples.variant("w3", 0.1), "set_find"))
    text = comparison_markdown(found)
    row = next(line for line in text.splitlines() if line.startswith("| w3 ") and "~" in line)
    assert "10.0 [6.0, 14.0]~" in row
    assert "0.0 [-4.0, 4.0] " in row
    assert "10.0 [6.0, 14.0]~" in [line for line in text.splitlines() if line.startswith("| w3 ")][1]
    assert "w3: reading is the mean of 1 of 2 tasks only" in " ".join(text.split())
    assert "~" not in comparison_markdown(report_examples.results(report_examples.variant("w3", 0.1)))


@pytest.mark.parametrize("word", ["nan", "None"])
def test_what_is_not_known_is_a_dash(word):
    broken = VariantResult(name="w2a16", role="variant", summary="", model_hash="0" * 64)
    text = comparison_markdown(results(broken))
    assert word not in text
    assert "| w2a16 " in text
