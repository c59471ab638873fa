import pytest

from mvquant.errors import EvaluationError
from mvquant.evaluation import load_tasks
from mvquant.evaluation.chat import as_chat
from tests.evaluation.examples import BOS, task_yaml, tiny_tokenizer, write_task

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}[{{ message['role'] }}]{{ message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
ITEM = {"id": "q-0", "prompt": "Is it so?", "answer": "yes", "choices": ["yes", "no"], "note": "kept"}


@pytest.fixture
def tasks(tmp_path):
    write_task(tmp_path, task_yaml("checks", choice=True), [ITEM])
    return load_tasks(tmp_path)


def test_a_prompt_becomes_a_message_with_one_beginning(tasks):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TEMPLATE
    (task,) = as_chat(tasks, tokenizer)
    (item,) = task.items
    assert item.prompt == "[user]Is it so?[assistant]"
    assert tokenizer(item.prompt)["input_ids"].count(BOS) == 1
    assert item.model_dump(exclude={"prompt"}) == tasks[0].items[0].model_dump(exclude={"prompt"})
    assert (task.file.target_delimiter, tasks[0].file.target_delimiter) == ("", " ")
    assert task.data_hash != tasks[0].data_hash


def test_a_tokenizer_that_begins_nothing_by_itself_keeps_what_the_template_begins_with(tasks):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TEMPLATE
    tokenizer.backend_tokenizer.post_processor = None
    ((item,),) = (task.items for task in as_chat(tasks, tokenizer))
    assert item.prompt == "<s>[user]Is it so?[assistant]"


def test_no_template(tasks):
    with pytest.raises(EvaluationError, match="has no chat template: leave out --chat-template"):
        as_chat(tasks, tiny_tokenizer())
