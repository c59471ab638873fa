"""Data of the harness's own tasks: what is missing is named before a model is loaded."""

import random

import pytest

from mvquant.errors import EvaluationError
from mvquant.evaluation.harness import run_in_harness
from mvquant.evaluation.harness_data import prepare
from mvquant.evaluation.tasks import HarnessTask
from tests.evaluation.examples import task_text, task_yaml, tiny_tokenizer
from tests.evaluation.test_hub_data import write_broken_parquet
from tests.tiny_models import tiny_model

GSM8K, NIAH, ESSAYS = (HarnessTask(name, "contextual") for name in ("gsm8k", "niah_single_1", "niah_single_2"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the tokenizer lies by which RULER's tasks measure."""
    path = tmp_path_factory.mktemp("tokenizer")
    tiny_tokenizer().save_pretrained(path)
    return path


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_a_tokenizer_that_brings_code_is_refused(tmp_path, name):
    pytest.importorskip("lm_eval")
    (tmp_path / name).write_text('{"auto_map": {"AutoTokenizer": ["mine.Tokenizer", null]}}')
    with pytest.raises(EvaluationError, match=rf"{name} names code \(auto_map\)"):
        prepare([GSM8K], str(tmp_path))


@pytest.mark.backend
@pytest.mark.filterwarnings("ignore")
class TestWithTheHarness:
    def test_a_set_that_cannot_be_had_is_named_with_the_way_to_it(self, folder):
        prepared = prepare([GSM8K], str(folder))
        assert prepared.tasks == ()
        (missing,) = prepared.missing
        assert "openai/gsm8k" in missing.why
        assert "HF_HOME" in missing.way_out
        model = (tiny_model("llama"), tiny_tokenizer())
        with pytest.raises(EvaluationError, match=r"^no data for gsm8k:\n"):
            run_in_harness(model, [GSM8K])

    def test_a_set_that_is_broken_is_named_too(self, tmp_path):
        broken = tmp_path / "broken.parquet"
        write_broken_parquet(broken)
        kwargs = {"data_files": {"test": str(broken)}, "cache_dir": str(tmp_path / "cache")}
        file = task_yaml("sums") | {"dataset_path": "parquet", "dataset_kwargs": kwargs}
        del file["custom_dataset"]
        (tmp_path / "sums.yaml").write_text(task_text(file))
        prepared = prepare([HarnessTask("sums", "contextual")], folder=tmp_path, defaults=False)
        assert prepared.tasks == ()
        assert [each.name for each in prepared.missing] == ["sums"]
        assert "Couldn't deserialize" in prepared.missing[0].why

    def test_groups_and_unknown_tasks_are_refused(self):
        with pytest.raises(EvaluationError, match="ruler is a group of lm-evaluation-harness"):
            prepare([HarnessTask("ruler", "contextual")])
        with pytest.raises(EvaluationError, match="no task 'niah_single_9'"):
            prepare([HarnessTask("niah_single_9", "contextual")])

    def test_rulers_needles_need_its_packages_or_are_made_to_the_tokenizer(self, folder, monkeypatch):
        try:
            import nltk
            import wonderwords  # noqa: F401
        except ImportError:
            (missing,) = prepare([NIAH], str(folder)).missing
            assert "wonderwords" in missing.why
            assert missing.way_out == "pip install 'lm_eval[ruler]'"
            return
        monkeypatch.setattr(nltk, "download", lambda _: False)  # a splitter that these texts do not need
        random.seed(1)
        first, second = (prepare([NIAH], str(folder)) for _ in range(2))
        texts, again = (list(each.built["niah_single_1"].eval_docs) for each in (first, second))
        assert texts == again
        length = max(len(tiny_tokenizer()(text["input"])["input_ids"]) for text in texts)
        step = 25 * 90  # in bytes: the harness adds 25 sentences at a time, and leaves 128 tokens for the answer
        assert length <= 4096 - 128 < length + step
        assert prepare([ESSAYS], str(folder)).missing[0].name == "niah_single_2"
