import json
from pathlib import Path

import pytest
import yaml

from mvquant.errors import ConfigError, EvaluationError, UnknownNameError
from mvquant.evaluation.task_file import GroupFile, read_task_file
from mvquant.evaluation.tasks import HarnessTask, Item, available_tasks, harness_tasks, hash_items, load_tasks
from tests.evaluation.examples import task_text, task_yaml, write_task

EVAL = Path(__file__).parents[2] / "eval"
QUESTION = {"id": "q-0", "prompt": "Where is Tom?", "answer": "attic"}


@pytest.fixture
def folder(tmp_path):
    write_task(tmp_path, task_yaml("cities", knowledge="parametric"), [QUESTION])
    write_task(tmp_path, task_yaml("places"), [QUESTION, {**QUESTION, "id": "q-1"}])
    write_task(tmp_path, task_yaml("passkey"), [QUESTION])
    return tmp_path


@pytest.mark.parametrize(
    ("wanted", "names"),
    [
        (["all"], ["passkey", "places", "cities"]),
        (["contextual"], ["passkey", "places"]),
        (["parametric", "contextual"], ["passkey", "places", "cities"]),
        (["cities", "places", "cities"], ["places", "cities"]),
    ],
)
def test_names_and_groups(folder, wanted, names):
    assert [task.name for task in load_tasks(folder, wanted)] == names


def test_unknown_name_suggests_the_nearest(folder):
    with pytest.raises(UnknownNameError, match="unknown task 'passkeys': did you mean 'passkey'"):
        load_tasks(folder, ["places", "passkeys"])


def test_items_keep_their_order_and_other_keys(folder):
    write_task(folder, task_yaml("places"), [{**QUESTION, "id": f"q-{i}", "depth": i} for i in (2, 0, 1)])
    (task,) = load_tasks(folder, ["places"])
    assert [(item.id, item.depth) for item in task.items] == [("q-2", 2), ("q-0", 0), ("q-1", 1)]


def test_hash_is_of_the_data_not_of_its_spelling(folder):
    (before,) = load_tasks(folder, ["passkey"])
    path = folder / "data" / "passkey.jsonl"
    path.write_text(
        "\n" + json.dumps(dict(reversed(QUESTION.items())), indent=None, separators=(" , ", " : ")) + "\n\n"
    )
    (respelled,) = load_tasks(folder, ["passkey"])
    path.write_text(json.dumps({**QUESTION, "note": "x"}) + "\n")
    (changed,) = load_tasks(folder, ["passkey"])
    assert before.data_hash == respelled.data_hash != changed.data_hash


def test_hash_against_sha256sum():
    # printf '{"answer":"b","id":"i","prompt":"é"}\n' | sha256sum
    known = "34c0465551e609ca44bcbe65748753fb4dc6fb72c64455e2af4226858898f95c"
    assert hash_items([Item(id="i", prompt="é", answer="b")]) == known


@pytest.mark.parametrize(
    ("line", "message"),
    [
        pytest.param("{", "line 2: .*JSON", id="not-json"),
        pytest.param('{"id": "q-1", "prompt": "?"}', "line 2: answer: Field required", id="no-answer"),
        pytest.param('{"id": 3, "prompt": "?", "answer": ""}', "line 2: id: .*; answer: ", id="several"),
        pytest.param(
            '{"id": "q-1", "prompt": "?", "answer": "c", "choices": ["a", "b"]}', "line 2: .*must .* hold", id="choices"
        ),
    ],
)
def test_malformed_lines_are_named(folder, line, message):
    path = folder / "data" / "passkey.jsonl"
    path.write_text(json.dumps(QUESTION) + "\n" + line + "\n")
    with pytest.raises(EvaluationError, match=rf"passkey.jsonl, {message}"):
        load_tasks(folder, ["passkey"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("\n", "holds no items", id="empty"),
        pytest.param((json.dumps(QUESTION) + "\n") * 2, "the id 'q-0' more than once", id="repeated-id"),
        pytest.param(b"\xff", "cannot read its data", id="not-utf-8"),
        pytest.param(None, "cannot read its data", id="missing"),
    ],
)
def test_unusable_data(folder, text, message):
    path = folder / "data" / "passkey.jsonl"
    if text is None:
        path.unlink()
    else:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(EvaluationError, match=f"task passkey: .*{message}"):
        load_tasks(folder)


def test_choice_tasks_need_choices_in_every_item(folder):
    write_task(folder, task_yaml("yes_no", choice=True), [QUESTION])
    with pytest.raises(EvaluationError, match="line 1: choices: a multiple-choice item needs them"):
        load_tasks(folder, ["yes_no"])


def test_two_files_cannot_share_a_name(folder):
    (folder / "tasks" / "copy.yaml").write_text((folder / "tasks" / "places.yaml").read_text())
    with pytest.raises(ConfigError, match="'places' is taken"):
        load_tasks(folder)


def test_a_folder_without_tasks(tmp_path):
    with pytest.raises(EvaluationError, match="no task files"):
        load_tasks(tmp_path)


def public(name, source):
    """A task file whose items come from one of the sources."""
    return task_yaml(name) | {"dataset_kwargs": {"source": source}}


def write_group(folder, name, members, **metadata):
    content = {"group": name, "task": members, "metadata": {"version": 1, **metadata}}
    (folder / "tasks" / f"{name}.yaml").write_text(yaml.safe_dump(content))


def test_groups_of_groups_and_of_the_harnesss_own_tasks(folder):
    write_group(folder, "contextual", ["places"])
    write_group(folder, "both", ["contextual", "cities"])
    write_group(folder, "theirs", ["gsm8k", "niah_single_1"], knowledge="contextual", chance=0.1)
    assert [task.name for task in load_tasks(folder, ["contextual"])] == ["places"]
    assert [task.name for task in load_tasks(folder, ["both"])] == ["places", "cities"]
    assert load_tasks(folder, ["theirs"]) == []
    theirs = [HarnessTask("gsm8k", "contextual", 0.1), HarnessTask("niah_single_1", "contextual", 0.1)]
    assert harness_tasks(folder, ["both", "theirs"]) == theirs
    assert harness_tasks(folder, ["niah_single_1", "places"]) == theirs[1:]
    assert harness_tasks(folder, ["both"]) == harness_tasks(folder, ["all"]) == []
    with pytest.raises(UnknownNameError, match="did you mean 'gsm8k'"):
        load_tasks(folder, ["gsm9k"])


def test_a_group_must_say_what_tasks_of_the_harness_are(folder):
    write_group(folder, "theirs", ["gsm8k"])
    with pytest.raises(ConfigError, match=r"group theirs:\n.*gsm8k is no task here"):
        load_tasks(folder)


def test_a_group_cannot_contain_itself(folder):
    write_group(folder, "first", ["second"])
    write_group(folder, "second", ["first"])
    with pytest.raises(ConfigError, match=r"it contains itself \(first > second > first\)"):
        load_tasks(folder, ["first"])


def test_errors_of_a_source_name_the_task(folder, tmp_path):
    (folder / "tasks" / "sums.yaml").write_text(task_text(public("sums", "gsm8k")))
    (tmp_path / "gsm8k.test.jsonl").write_text("{\n")
    with pytest.raises(EvaluationError, match=r"task sums: .*gsm8k\.test\.jsonl, line 1: not JSON"):
        load_tasks(folder, ["sums"], tmp_path)


def test_every_task_without_data_is_named_with_the_way_to_it(folder, tmp_path):
    for name, source in (("sums", "gsm8k"), ("more_sums", "gsm8k"), ("letters", "aqua_rat")):
        (folder / "tasks" / f"{name}.yaml").write_text(task_text(public(name, source)))
    wanted = ["sums", "more_sums", "letters", "places"]
    found = available_tasks(folder, wanted, tmp_path)
    assert [task.name for task in found.tasks] == ["places"]
    assert {task.name for task in found.missing} == {"sums", "more_sums", "letters"}
    with pytest.raises(EvaluationError, match=r"^no data for letters, more_sums, sums:\n") as error:
        load_tasks(folder, wanted, tmp_path)
    said = str(error.value)
    assert f"gsm8k: no data in {tmp_path}: none of openai/gsm8k/main/test-*.parquet, " in said
    for repository in ("openai/gsm8k", "deepmind/aqua_rat"):
        command = f"hf download {repository} --repo-type dataset --local-dir DATA/{repository.split('/')[1]}"
        assert said.count(command) == 1
    assert "DATA with --data-dir or MVQUANT_DATA" in said


def test_lengths_are_counted_as_asked(folder):
    (folder / "tasks" / "keys.yaml").write_text(task_text(public("keys", "passkey")))
    (words,) = load_tasks(folder, ["keys"])
    (letters,) = load_tasks(folder, ["keys"], count=len)
    assert len(letters.items[0].prompt) <= letters.items[0].length == words.items[0].length < len(words.items[0].prompt)
    assert words.data_hash != letters.data_hash


OWN = [
    "cities",
    "sports",
    "art",
    "technology",
    "celebrity",
    "binding",
    "knowledge_conflict",
    "knowledge_conflict_memory",
]


def test_shipped_tasks_that_need_no_download_load():
    tasks = load_tasks(EVAL, [*OWN, "reference_contextual", "reference_parametric"])
    assert {task.knowledge for task in tasks} == {"contextual", "parametric"}
    assert all(len(task.items) >= (1000 if task.name in OWN else 512) for task in tasks)


def test_public_data_that_is_not_shipped_loads(shared_data):
    tasks = load_tasks(EVAL, ["gsm8k_chat", "aqua_rat_generative"], shared_data / "eval")
    assert {task.name: len(task.items) for task in tasks} == {"gsm8k_chat": 1319, "aqua_rat_generative": 254}


GENERAL = {
    "contextual": {"gsm8k_chat", "aqua_rat_generative", "imdb_balanced", "passkey", "binding", "knowledge_conflict"},
    "parametric": {"cities", "sports", "art", "technology", "celebrity"},
}


@pytest.mark.parametrize("knowledge", GENERAL)
def test_shipped_groups_hold_the_tasks_of_all_models_and_those_of_the_reference_model(knowledge):
    assert set(_group(f"{knowledge}.yaml").task) == {f"general_{knowledge}", f"reference_{knowledge}"}
    assert set(_group(f"general_{knowledge}.yaml").task) == GENERAL[knowledge]
    own = set(_group(f"reference/{knowledge}.yaml").task)
    files = {read_task_file(path) for path in (EVAL / "tasks" / "reference").glob("*.yaml")}
    tasks = {file.task: file.metadata.knowledge for file in files if not isinstance(file, GroupFile)}
    assert own == {name for name, of in tasks.items() if of == knowledge}


def test_the_harness_reads_the_same_groups():
    manager = pytest.importorskip("lm_eval.tasks").TaskManager(include_path=str(EVAL / "tasks"), include_defaults=False)
    assert set(manager.all_subtasks) == {task for group in _groups() for task in group}
    assert {"contextual", "parametric", "contextual_harness", "conflict_both_ways"} <= set(manager.all_groups)


def test_tasks_of_the_harness_are_grouped():
    names = [task.name for task in harness_tasks(EVAL, ["contextual_harness"])]
    assert {"gsm8k", "niah_single_1"} <= set(names)


def _groups():
    yield ["knowledge_conflict_memory"]
    yield from GENERAL.values()
    yield from (_group(f"reference/{knowledge}.yaml").task for knowledge in GENERAL)


def _group(path):
    return read_task_file(EVAL / "tasks" / path)
