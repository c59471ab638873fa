from collections import Counter
from pathlib import Path

import pytest
from datasets import ClassLabel, Dataset, Features, Value

from mvquant.errors import EvaluationError, UnknownNameError
from mvquant.evaluation import sources
from mvquant.evaluation.hub_data import VARIABLE
from mvquant.evaluation.items import hash_items
from mvquant.evaluation.sources import harness_dataset, source_items
from tests.evaluation.test_hub_data import write_lines

CARD = Path(__file__).parents[2] / "eval" / "data" / "knowledge_conflict" / "README.md"
QUESTION = {"question": "How many?", "answer": "3 x 6 = 18.\n#### 1,018"}
AQUA = {"question": "What?", "options": ["A)1", "B) 2", "C)3", "D)4", "E)None"], "correct": "B", "rationale": "."}


def items_of(source, folder):
    return [item for _, item in source_items(source, folder)]


def test_gsm8k_becomes_a_question_and_plain_digits(tmp_path):
    write_lines(tmp_path / "gsm8k.test.jsonl", [QUESTION])
    (item,) = items_of("gsm8k", tmp_path)
    assert item.answer == "1018"
    assert "How many?" in item.prompt
    assert "18" not in item.prompt


@pytest.mark.parametrize("answer", ["18", "#### none"])
def test_gsm8k_without_a_marked_number(tmp_path, answer):
    write_lines(tmp_path / "gsm8k.test.jsonl", [QUESTION, {**QUESTION, "answer": answer}])
    with pytest.raises(EvaluationError, match=r"gsm8k\.test\.jsonl, line 2: answer: a number after ####"):
        items_of("gsm8k", tmp_path)


def test_aqua_rat_has_its_options_in_the_prompt_and_not_its_rationale(tmp_path):
    write_lines(tmp_path / "aqua_rat.test.jsonl", [AQUA | {"rationale": "because"}])
    (item,) = items_of("aqua_rat", tmp_path)
    assert "\n(A) 1\n(B) 2\n(C) 3\n(D) 4\n(E) None\n" in item.prompt
    assert item.answer == "B"
    assert "because" not in item.prompt


@pytest.mark.parametrize("change", [{"options": ["A)1"]}, {"correct": "F"}, {"correct": "AB"}, {"correct": ""}])
def test_aqua_rat_with_other_options(tmp_path, change):
    write_lines(tmp_path / "aqua_rat.test.jsonl", [AQUA | change])
    with pytest.raises(EvaluationError, match=r"aqua_rat\.test\.jsonl, line 1: options A\) to E\)"):
        items_of("aqua_rat", tmp_path)


def reviews(folder, negative, positive, text="{}"):
    """Files as the Hub has them, whose `test` is ordered by label; `unsupervised` has none."""
    rows = [{"text": text.format(f"no {i}<br /><br />bad"), "label": 0} for i in range(negative)]
    rows += [{"text": text.format(f"yes {i}"), "label": 1} for i in range(positive)]
    names = Features({"text": Value("string"), "label": ClassLabel(names=["neg", "pos"])})
    for split, some in (("test", rows), ("train", rows[:2]), ("unsupervised", [{"text": "?", "label": -1}])):
        path = folder / f"stanfordnlp/imdb/plain_text/{split}-00000-of-00001.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        Dataset.from_list(some, features=names).to_parquet(path)


def test_imdb_is_balanced_though_its_file_is_ordered_by_label(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "IMDB_PER_LABEL", 5)
    reviews(tmp_path, 30, 20)
    items = items_of("imdb", tmp_path)
    assert [item.answer for item in items] == ["negative", "positive"] * 5
    assert all(("yes" in item.prompt) == (item.answer == "positive") for item in items)
    assert all(item.choices == ("negative", "positive") and "<br" not in item.prompt for item in items)
    assert [item.id for item in items] == [item.id for item in items_of("imdb", tmp_path)]
    assert len({item.id for item in items}) == 10


def test_imdb_takes_as_many_of_each_as_there_are_of_the_rarer(tmp_path):
    reviews(tmp_path, 3, 7)
    assert Counter(item.answer for item in items_of("imdb", tmp_path)) == {"negative": 3, "positive": 3}


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("Not positive at all, I am negative about that. {}", id="labels-in-the-text"),
        pytest.param("{}\n\nIs this review positive or negative?\nAnswer: positive", id="a-second-question"),
        pytest.param("{{}} {{text}} {} %s {{{{0}}}}", id="braces"),
        pytest.param("caf\u00e9\u2028{}\u0085end", id="other-line-ends"),
    ],
)
def test_what_a_review_says_moves_neither_label_nor_question(tmp_path, text):
    reviews(tmp_path, 2, 2, text)
    for item in items_of("imdb", tmp_path):
        number = item.prompt.count("yes ") - item.prompt.count("no ")
        assert item.answer == ("positive" if number > 0 else "negative")
        said = item.prompt.removeprefix("Review: ").removesuffix("\n\nIs this review positive or negative?\nAnswer:")
        assert said.replace("\n\n", "<br /><br />") in {
            text.format(word).replace("\n\n", "<br /><br />").strip()
            for word in ("no 0<br /><br />bad", "no 1<br /><br />bad", "yes 0", "yes 1")
        }


@pytest.mark.parametrize("counts", [(4, 0), (0, 4)])
def test_imdb_of_one_label_is_refused(tmp_path, counts):
    reviews(tmp_path, *counts)
    with pytest.raises(EvaluationError, match="reviews of both labels are needed"):
        items_of("imdb", tmp_path)


def test_imdb_unlabelled(tmp_path):
    write_lines(tmp_path / "imdb.test.jsonl", [{"text": "so so", "label": -1}])
    with pytest.raises(EvaluationError, match=r"imdb\.test\.jsonl, line 1: label: 0 .* or 1 .* not -1"):
        items_of("imdb", tmp_path)


def test_public_sets_in_the_files_that_are_not_shipped(shared_data):
    gsm8k, aqua = items_of("gsm8k", shared_data / "eval"), items_of("aqua_rat", shared_data / "eval")
    assert (len(gsm8k), len(aqua)) == (1319, 254)
    assert (gsm8k[0].answer, aqua[0].answer) == ("18", "A")
    assert set(Counter(item.answer for item in aqua)) == set("ABCDE")


def test_conflicts_are_scored_both_ways_on_the_same_prompts():
    context, memory = items_of("knowledge_conflict", None), items_of("knowledge_conflict_memory", None)
    card = CARD.read_text(encoding="utf-8")
    assert all(hash_items(items) in card for items in (context, memory))
    assert [item.prompt for item in context] == [item.prompt for item in memory]
    assert all(item.answer == item.context_answer for item in context)
    assert all(item.answer == item.memory_answer for item in memory)


def test_unknown_source():
    with pytest.raises(UnknownNameError, match=r"unknown source of items 'gsm9k': did you mean 'gsm8k'"):
        source_items("gsm9k", None)


def test_the_harness_gets_the_same_items(tmp_path, monkeypatch):
    write_lines(tmp_path / "gsm8k.test.jsonl", [QUESTION, QUESTION])
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    settings = {"version": 1, "chance": 0.0, "knowledge": "contextual", "pretrained": "some/model"}
    rows = list(harness_dataset(source="gsm8k", **settings)["test"])
    assert rows == [item.model_dump(exclude_unset=True) for item in items_of("gsm8k", tmp_path)]


def test_the_harness_gets_shipped_files():
    rows = harness_dataset(file="data/art/items.jsonl")["test"]
    assert len(rows) == 1600
    assert set(rows[0]) == {"id", "prompt", "answer", "choices", "relation"}
