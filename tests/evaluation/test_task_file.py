import sys

import pytest

from mvquant.errors import ConfigError
from mvquant.evaluation.parsers import number
from mvquant.evaluation.task_file import GroupFile, read_task_file
from tests.evaluation.examples import task_text, task_yaml


def read(folder, content):
    path = folder / "task.yaml"
    path.write_text(content if isinstance(content, str) else task_text(content))
    return read_task_file(path)


def test_fields_are_read(tmp_path):
    file = read(tmp_path, task_yaml("passkey", chance=0.25))
    assert file.generation_kwargs.until == ("\n",)
    assert (file.metadata.chance, file.metadata.knowledge) == (0.25, "contextual")
    assert file.target_delimiter == " "


def test_one_stop_string_needs_no_list(tmp_path):
    content = task_yaml("passkey")
    content["generation_kwargs"]["until"] = "\n\n"
    assert read(tmp_path, content).generation_kwargs.until == ("\n\n",)


def test_groups_name_their_members(tmp_path):
    group = read(tmp_path, {"group": "contextual", "task": ["passkey", "binding"], "metadata": {"version": 1}})
    assert isinstance(group, GroupFile)
    assert (group.group, group.task, group.metadata.knowledge) == ("contextual", ("passkey", "binding"), None)


GENERATED = """
task: sums
custom_dataset: !function mvquant.evaluation.sources.harness_dataset
dataset_kwargs:
  source: gsm8k
output_type: generate_until
doc_to_text: "{{prompt}}"
doc_to_target: "{{answer}}"
generation_kwargs: {max_gen_toks: 8, until: ["\\n"]}
filter_list:
  - name: number
    filter:
      - function: custom
        filter_fn: !function mvquant.evaluation.parsers.number_filter
      - function: take_first
metric_list: [{metric: exact_match}]
metadata: {version: 1, chance: 0.0, knowledge: contextual, answer_by: generation}
"""


def test_sources_and_parsers_are_named_as_the_harness_needs_them(tmp_path):
    file = read(tmp_path, GENERATED)
    assert file.dataset_kwargs.source == "gsm8k"
    assert file.parser is number
    assert read(tmp_path, task_yaml("passkey")).parser(" 18 ") == "18"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        pytest.param("number_filter", "guess_filter", "filter_fn must be one of .*number_filter, .*not", id="parser"),
        pytest.param(
            "!function mvquant.evaluation.parsers", "mvquant.evaluation.parsers", "filter_fn must be", id="untagged"
        ),
        pytest.param("sources.harness_dataset", "sources.other", "custom_dataset: must be !fun", id="custom-dataset"),
        pytest.param("  source: gsm8k", "  data_files: {test: x.jsonl}", "data_files: Extra", id="data-files"),
        pytest.param("custom_dataset: ", "dataset_path: json #", "custom_dataset: Field required", id="path"),
        pytest.param("  source: gsm8k", "  {source: gsm8k, file: x}", "exactly one of", id="two-places"),
        pytest.param("- function: take_first", "- {function: take_first, filter_fn: x}", "goes with", id="filter"),
    ],
)
def test_data_and_parsers_that_do_not_fit_are_refused(tmp_path, old, new, message):
    assert old in GENERATED
    with pytest.raises(ConfigError, match=message):
        read(tmp_path, GENERATED.replace(old, new))


def test_a_task_file_imports_and_runs_nothing(tmp_path):
    with pytest.raises(ConfigError, match=r"!function antigravity\.fly"):
        read(tmp_path, GENERATED.replace("mvquant.evaluation.parsers.number_filter", "antigravity.fly"))
    assert "antigravity" not in sys.modules


def test_all_mistakes_are_reported_at_once(tmp_path):
    content = task_yaml("passkey")
    content["metadata"].update(chance=1.0, knowledge="both")
    content["generation_kwargs"]["max_gen_toks"] = 0
    content["num_fewshot"] = 5
    with pytest.raises(ConfigError) as error:
        read(tmp_path, content)
    assert error.value.where == str(tmp_path / "task.yaml")
    fields = sorted(mistake.partition(":")[0] for mistake in error.value.mistakes)
    assert fields == ["generation_kwargs.max_gen_toks", "metadata.chance", "metadata.knowledge", "num_fewshot"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param({"few_shots": 2}, "few_shots: Extra inputs", id="unknown-key"),
        pytest.param({"doc_to_text": "Q: {{prompt}}"}, "doc_to_text: Input should be", id="another-prompt"),
        pytest.param({"output_type": "multiple_choice"}, "needs metadata.answer_by: choice", id="answer-by"),
        pytest.param({"generation_kwargs": None}, "needs generation_kwargs", id="no-stop"),
        pytest.param(
            {"filter_list": [{"name": "x", "filter": [{"function": "regex"}]}]},
            "filter_list.0.filter.0.function",
            id="filter-that-would-be-ignored",
        ),
    ],
)
def test_what_would_not_be_done_is_refused(tmp_path, change, message):
    with pytest.raises(ConfigError, match=message):
        read(tmp_path, task_yaml("passkey") | change)


def test_choice_tasks_need_choices(tmp_path):
    content = task_yaml("yes_no", choice=True)
    del content["doc_to_choice"]
    with pytest.raises(ConfigError, match="needs doc_to_choice: choices"):
        read(tmp_path, content)


@pytest.mark.parametrize("content", ["task: [", "- task", "text"])
def test_not_a_task(tmp_path, content):
    with pytest.raises(ConfigError, match=r"not YAML|not a task"):
        read(tmp_path, content)
