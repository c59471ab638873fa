import pytest

from mvquant.comparison import Questions, check_tokenizers
from mvquant.comparison.questions import asked
from mvquant.errors import UsageError
from mvquant.evaluation import load_tasks
from tests.comparison.examples import make_world
from tests.evaluation.examples import tiny_tokenizer


def test_different_tokenizers_are_refused():
    same, other = tiny_tokenizer(), tiny_tokenizer(merges=[("q", "u")])
    check_tokenizers(same, {"w4a16": tiny_tokenizer()}, ())
    with pytest.raises(UsageError, match=r"variant w4a16 reads 'The quick brown fox\.' as other tokens"):
        check_tokenizers(same, {"w4a16": other}, ())


def test_every_other_tokenizer_is_named_by_the_prompts_that_are_asked(tmp_path):
    tasks = load_tasks(make_world(tmp_path).folder / "eval")
    others = {"a": tiny_tokenizer(), "b": tiny_tokenizer(merges=[("t", "t")]), "c": tiny_tokenizer(merges=[("w", "e")])}
    with pytest.raises(UsageError) as error:
        check_tokenizers(tiny_tokenizer(), others, tasks)
    assert "variant b reads 'Tom: attic. Tom?'" in str(error.value)
    assert "variant c reads 'Tom: tower. Tom?'" in str(error.value)
    assert "variant a" not in str(error.value)


def test_contextual_tasks_come_first(tmp_path):
    tasks = load_tasks(make_world(tmp_path).folder / "eval")
    assert Questions(tasks=tuple(tasks[::-1])).names == ["places", "checks"]


def test_another_way_to_ask_is_another_question(tmp_path):
    task = load_tasks(make_world(tmp_path).folder / "eval")[0]
    kwargs = task.file.generation_kwargs.model_copy(update={"max_gen_toks": 3})
    shorter = task.file.model_copy(update={"generation_kwargs": kwargs})
    assert asked(type(task)(shorter, task.items, task.data_hash)) != asked(task)
