import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from mvquant.backends.folder.backend import FolderBackend
from mvquant.backends.folder.job import load_tokens
from mvquant.backends.folder.run import write_job
from mvquant.methods import plan_factors
from tests.backends.folder.packages import calibration_tokens, plan_of, save_model
from tests.tiny_models import tiny_tokens

NOTHING = FolderBackend("gptqmodel", frozenset(), command=list, mistakes=lambda _plan, _view: ())


@pytest.fixture
def opened(tmp_path):
    return save_model(tmp_path / "model")


def written(opened, plan, place):
    place.mkdir()
    return write_job(NOTHING, opened.checkpoint, opened.view, plan, calibration_tokens(), place)


def logits(folder):
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.dtype == torch.bfloat16
    with torch.no_grad():
        return model(tiny_tokens()).logits.float()


def a_plan(opened, fold=()):
    plan = plan_of(opened, "scheme: w4a16-g64, method: {name: gptq, backend: gptqmodel}")
    return plan.model_copy(update={"fold": fold})


def test_a_model_that_is_not_folded_is_linked(opened, tmp_path):
    job = written(opened, a_plan(opened), tmp_path / "place")
    assert (job.source / "model.safetensors").is_symlink()
    assert torch.equal(logits(job.source), logits(opened.checkpoint.folder))


def test_a_folded_model_is_written_out_and_computes_the_same(opened, tmp_path):
    pairs = opened.view.attentions[0].k.pairs
    layer = tuple(tuple(2.0 if pair % 3 else 0.5 for pair in range(pairs)) for _head in range(2))
    plan = a_plan(opened, (layer, layer))
    job = written(opened, plan, tmp_path / "place")
    assert not (job.source / "model.safetensors").is_symlink()
    model, folded = (AutoModelForCausalLM.from_pretrained(each) for each in (opened.checkpoint.folder, job.source))
    factors = plan_factors(plan, opened.view)
    assert factors
    for name, parameter in model.named_parameters():
        expected = factors[name].folded(parameter) if name in factors else parameter
        assert torch.equal(folded.get_parameter(name), expected)
    before, after = logits(opened.checkpoint.folder), logits(job.source)
    assert (before - after).norm() < 0.01 * before.norm()


def test_packages_get_our_tokens_and_a_tokenizer_that_loads(opened, tmp_path):
    job = written(opened, a_plan(opened), tmp_path / "place")
    assert all(torch.equal(*each) for each in zip(load_tokens(job.tokens), calibration_tokens(), strict=True))
    assert AutoTokenizer.from_pretrained(job.source).pad_token_id == 0
