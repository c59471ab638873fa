"""Our own tasks through the harness: the same items, the same rows."""

import pytest

from mvquant import pipeline
from mvquant.errors import EvaluationError, UsageError
from mvquant.evaluation import evaluate, load_tasks
from mvquant.evaluation.chat import as_chat
from mvquant.evaluation.engines import prepare_own, run_own
from mvquant.evaluation.text_length import count_tokens
from mvquant.named_schemes import recipe_for_scheme
from mvquant.resources import resource_folder
from tests.evaluation.examples import tiny_tokenizer
from tests.evaluation.test_chat import TEMPLATE
from tests.evaluation.test_sources import reviews
from tests.tiny_models import tiny_model

pytestmark = pytest.mark.filterwarnings("ignore")

NAMES = ["binding", "cities", "imdb_balanced", "passkey"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model of 700 positions with its tokenizer, and reviews."""
    path = tmp_path_factory.mktemp("model")
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TEMPLATE
    tiny_model("llama", vocab_size=len(tokenizer), max_position_embeddings=700).save_pretrained(path)
    tokenizer.save_pretrained(path)
    reviews(path / "data", 3, 3)
    return path


@pytest.mark.backend
def test_an_engine_gives_the_rows_of_our_own_runner(folder):
    pytest.importorskip("lm_eval")
    model, tokenizer = pipeline.load_model(folder)
    tasks = load_tasks(resource_folder("eval"), NAMES, folder / "data", count_tokens(lambda: tokenizer))
    prepared = prepare_own(tasks, resource_folder("eval"), folder, folder / "data")
    ours = evaluate(model, tokenizer, tasks, limit=4).tasks
    theirs = run_own(folder, tasks, prepared, engine="hf", limit=4, batch_size=4, device="cpu")
    assert [result.task for result in theirs] == [task.name for task in tasks]
    for result in theirs:
        mine = ours[result.task]
        assert [row[:4] for row in result.rows] == [row[:4] for row in mine.rows]
        same = ("n", "too_long", "data_hash", "version", "seed", "chance", "accuracy", "knowledge", "answer_by")
        assert [getattr(result, name) for name in same] == [getattr(mine, name) for name in same]
    assert ours["passkey"].too_long == ("passkey-0001", "passkey-0002", "passkey-0003")


@pytest.mark.backend
def test_prompts_in_a_template_are_another_test_than_plain_ones(folder):
    pytest.importorskip("lm_eval")
    model, tokenizer = pipeline.load_model(folder)
    tasks = load_tasks(resource_folder("eval"), ["binding", "cities"])
    prepared = prepare_own(tasks, resource_folder("eval"), folder)
    ours = evaluate(model, tokenizer, as_chat(tasks, tokenizer), limit=4).tasks
    theirs = run_own(folder, tasks, prepared, engine="hf", limit=4, device="cpu", chat_template=True)
    for result, task in zip(theirs, tasks, strict=True):
        assert result.data_hash == ours[task.name].data_hash != task.data_hash
        assert [row[:4] for row in result.rows] == [row[:4] for row in ours[task.name].rows]
        assert (result.prompts, result.item_hashes) == (None, None)


@pytest.mark.backend
def test_an_engine_is_named_in_the_result_and_refused_where_nothing_fits(folder, tmp_path):
    pytest.importorskip("lm_eval")
    tasks = pipeline.find_tasks(["binding", "cities"])
    result = pipeline.evaluate_in_engine(str(folder), tasks, "dummy", limit=2, chat_template=False)
    assert result.device == "dummy"
    assert result.versions["lm_eval"] != "not installed"
    assert {row.prediction for row in result.tasks["binding"].rows} == {"lol"}
    with pytest.raises(UsageError, match="no engine 'vlm'"):
        pipeline.evaluate_in_engine(str(folder), tasks, "vlm")
    tokenizer = tiny_tokenizer()
    tiny_model("llama", vocab_size=len(tokenizer), max_position_embeddings=32).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(EvaluationError, match="task binding: none of 2 items fits the model's 32 positions"):
        pipeline.evaluate_in_engine(str(tmp_path), tasks, "dummy", limit=2)


def test_our_own_format_is_not_given_to_an_engine(folder, tmp_path):
    opened = pipeline.open_model(str(folder))
    plan = pipeline.plan_model(str(folder), recipe_for_scheme("w4a16-g32"), opened)
    pipeline.quantize(opened, plan, tmp_path / "out")
    with pytest.raises(UsageError, match="is in mvquant's own format, which vllm cannot load"):
        pipeline.evaluate_in_engine(str(tmp_path / "out"), [], "vllm")
