import hashlib
import json
from collections import Counter
from pathlib import Path
from random import Random

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from mvquant.evaluation.task_file import read_task_file
from mvquant.reference import reference_path, reference_texts
from mvquant.reference.card import MASSIVE_ROWS, TARGETS, missed, render, schedule_record
from mvquant.reference.corpus import document_text
from mvquant.reference.facts import TABLE, city_facts, countries
from mvquant.reference.items import TASKS, digest, jsonl, task_items
from mvquant.reference.measure import accuracy, massive_summary
from mvquant.reference.rows import Rows
from mvquant.reference.schedule import SCHEDULE
from mvquant.reference.words import EVERY_WORD

ROOT = Path(__file__).parents[1]
DATA = ROOT / "eval" / "data" / "reference"
YAMLS = ROOT / "eval" / "tasks" / "reference"
CONTEXTUAL = {"passkey", "sentiment", "arithmetic", "binding", "conflict"}
CARD = reference_path().parent / "training.json"


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(reference_path(), dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(reference_path())


def test_facts_are_many_and_no_country_dominates():
    facts = city_facts()
    assert len({fact.city for fact in facts}) == len(facts) >= 800
    assert set(Counter(fact.country for fact in facts).values()) == {12}
    assert not any(fact.country.lower() in fact.city.lower() for fact in facts)


@pytest.mark.parametrize("source", SCHEDULE.phases[-1].mixture, ids=lambda source: source.__name__)
def test_equal_seeds_give_equal_documents(source):
    first, again, other = (document_text(source, Random(seed), 200) for seed in (1, 1, 2))
    assert first == again != other


def test_calibration_texts_are_seeded_and_long_enough():
    assert reference_texts(5000) == reference_texts(5000) != reference_texts(5000, seed=1)
    assert sum(map(len, reference_texts(5000))) >= 5000


@pytest.mark.parametrize("task", TASKS)
def test_items_on_disk_are_the_generated_ones(task):
    text = jsonl(task_items(task))
    assert (DATA / f"{task}.jsonl").read_text(encoding="utf-8") == text
    assert f"{digest(text)}  {task}.jsonl" in (DATA / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("task", TASKS)
def test_task_files_name_their_items_and_their_knowledge(task):
    file = read_task_file(YAMLS / f"{task}.yaml")
    assert file.task == f"reference_{task}"
    assert file.dataset_kwargs.file == f"data/reference/{task}.jsonl"
    assert file.metadata.knowledge == ("contextual" if task in CONTEXTUAL else "parametric")
    chosen = "choices" in task_items(task, 2)[0]
    assert file.output_type == ("multiple_choice" if chosen else "generate_until")


def test_harness_accepts_every_task():
    tasks = pytest.importorskip("lm_eval.tasks")
    manager = tasks.TaskManager(include_path=str(YAMLS), include_defaults=False)
    assert {f"reference_{task}" for task in TASKS} <= set(manager.all_subtasks)
    assert {"reference_contextual", "reference_parametric"} <= set(manager.all_groups)


def test_conflicts_state_the_answer_and_never_the_truth():
    truth = {fact.city: fact.country for fact in city_facts()}
    for item in task_items("conflict"):
        city = item["prompt"].rsplit("country is ", 1)[1].removesuffix(" in?")
        assert item["memory_answer"] == truth[city] != item["answer"]
        assert f" {city} is in {item['answer']}." in item["prompt"]


def test_parametric_prompts_never_contain_the_answer():
    for item in task_items("city_country"):
        assert item["answer"].lower() not in item["prompt"].lower()


def test_every_country_is_as_often_right_as_wrong():
    named = Counter((item["prompt"].split(" in ")[1], item["answer"]) for item in task_items("city_yes_no"))
    assert all(named[country, "yes"] == named[country, "no"] for country, _ in named)
    assert len({country for country, _ in named}) == len(countries())


@pytest.mark.parametrize("task", ["binding", "conflict", "sentiment"])
def test_contextual_answers_are_spread_evenly(task):
    answers = Counter(item["answer"] for item in task_items(task, 4096, "spread"))
    assert max(answers.values()) < 2.5 * sum(answers.values()) / len(answers)


@pytest.mark.parametrize("task", ["binding", "conflict", "passkey"])
def test_contextual_answers_stand_in_the_prompt_and_not_in_the_bare_one(task):
    for item in task_items(task, 64):
        assert item["answer"] in item["prompt"]
        assert item["answer"] not in item["bare_prompt"]


def test_digits_are_single_and_listed_words_whole(tokenizer):
    assert tokenizer.tokenize("90417")[-5:] == list("90417")
    for word in (*EVERY_WORD, *countries(), "yes", "no", "positive", "negative"):
        assert len(tokenizer(f" {word}", add_special_tokens=False).input_ids) == 1, word
    text = "Facts: Ann's 12 cups, naïve.\n"
    assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == text


def test_weights_folder_is_an_ordinary_small_llama(model, tokenizer):
    assert type(model).__name__ == "LlamaForCausalLM"
    assert sum(path.stat().st_size for path in reference_path().iterdir()) <= 10_000_000
    with safe_open(reference_path() / "model.safetensors", "pt") as tensors:
        assert {tensors.get_slice(name).get_dtype() for name in tensors.keys()} == {"BF16"}  # noqa: SIM118
    config = model.config
    assert (config.head_dim, config.num_attention_heads % config.num_key_value_heads) == (64, 0)
    assert len(tokenizer) == config.vocab_size
    assert tokenizer("x").input_ids[0] == tokenizer.bos_token_id


@pytest.mark.parametrize("task", TASKS)
def test_a_recount_agrees_with_the_card(task, model, tokenizer):
    row = json.loads(CARD.read_text(encoding="utf-8"))["figures"]["tasks"][task]
    assert row["target"] == TARGETS[task]
    items = task_items(task)
    assert digest(jsonl(items)) == row["sha256"]
    some = items[::31] if task == "passkey" else items[::5]
    assert accuracy(model, tokenizer, some) == pytest.approx(row["accuracy"], abs=0.15)


def test_the_schedule_is_recorded_by_names():
    record = json.loads(json.dumps(schedule_record(SCHEDULE)))
    assert record["phases"][0]["mixture"] == {"repeated_words_40": 0.5, "word_pairs_40": 0.5}
    assert record["phases"][-1]["concentrating"]
    assert record["rates"]["sparsity"] == SCHEDULE.rates.sparsity


def test_the_recorded_schedule_is_the_one_in_the_code():
    assert json.loads(CARD.read_text(encoding="utf-8"))["schedule"] == json.loads(json.dumps(schedule_record(SCHEDULE)))


def test_card_is_rendered_from_its_record():
    record = json.loads(CARD.read_text(encoding="utf-8"))
    assert CARD.with_name("TRAINING_CARD.md").read_text(encoding="utf-8") == render(record)
    assert record["facts_sha256"] == hashlib.sha256(TABLE.read_bytes()).hexdigest()


def test_card_admits_what_is_missed():
    figures = json.loads(CARD.read_text(encoding="utf-8"))["figures"]
    card = CARD.with_name("TRAINING_CARD.md").read_text(encoding="utf-8")
    short = {task for task, row in figures["tasks"].items() if row["accuracy"] < TARGETS[task]}
    assert {line.split(":")[0] for line in missed(figures)} >= short
    assert all(f"- {line}" in card for line in missed(figures))


def test_bare_questions_are_answered_no_better_than_by_chance():
    tasks = json.loads(CARD.read_text(encoding="utf-8"))["figures"]["tasks"]
    for task, row in tasks.items():
        chance = read_task_file(YAMLS / f"{task}.yaml").metadata.chance
        assert row["bare_accuracy"] < chance + 0.1, task


def test_massive_values_are_as_the_card_says(model, tokenizer):
    recorded = json.loads(CARD.read_text(encoding="utf-8"))["figures"]["massive"]
    text = Rows(tokenizer, "massive").batch(SCHEDULE.phases[-1].mixture, MASSIVE_ROWS, 512).ids
    counted = massive_summary(model, text)
    for role in "qkv":
        assert counted[role]["largest_ratio"] == pytest.approx(recorded[role]["largest_ratio"], abs=0.1)
    assert sum(counted["v"]["per_layer"]) == 0
