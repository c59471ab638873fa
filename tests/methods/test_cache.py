"""The cache of a plan on models in memory; checkpoints are in tests/checkpoint/test_cached.py."""

import pytest
import torch

from mvquant.arch import model_view
from mvquant.errors import PlanError, UsageError
from mvquant.methods import apply_plan, own_plan, planned_cache, require_plan_fit
from mvquant.named_schemes import recipe_for_scheme
from mvquant.plan import Plan
from tests.kvcache.plans import cache_plan
from tests.tiny_models import tiny_config, tiny_model, tiny_tokens


def planned(model, **changes):
    fields = {
        "model": "tiny",
        "family": model.config.model_type,
        "dtype": "float32",
        "recipe": recipe_for_scheme("mv-protect-k2"),
        "modules": (),
        "kept_parameters": 1,
        "cache": cache_plan(model),
    }
    return Plan(**{**fields, **changes})


def logits(model):
    with torch.no_grad():
        return model(tiny_tokens()).logits


def test_a_text_is_scored_with_the_cache_inside_the_block_only():
    model = tiny_model("llama")
    plain = logits(model)
    with planned_cache(apply_plan(model, planned(model)), planned(model)):
        rounded = logits(model)
    assert not torch.equal(rounded, plain)
    assert torch.equal(logits(model), plain)


def test_queries_are_rounded_where_the_plan_says_so():
    model = tiny_model("llama")
    found = []
    for rounds in (False, True):
        with planned_cache(model, planned(model, round_queries=rounds)):
            found.append(logits(model))
    assert not torch.equal(*found)


def test_a_model_that_no_plan_speaks_of_is_left_alone():
    model = tiny_model("llama")
    assert own_plan(model) is None
    with planned_cache(model) as attached:
        assert attached is None


def test_blocks_do_not_nest():
    model = tiny_model("llama")
    again = planned_cache(model, planned(model))
    with planned_cache(model, planned(model)), pytest.raises(UsageError, match="leave one block"), again:
        pass


def test_a_plan_for_another_model_is_refused():
    model = tiny_model("llama")
    with pytest.raises(PlanError, match="another model"):
        require_plan_fit(planned(model), model_view(tiny_config("mistral")))
    with pytest.raises(PlanError, match="another model"), planned_cache(tiny_model("mistral"), planned(model)):
        pass
    fold = (((1.0,) * 3,) * 2,) * 2
    with pytest.raises(PlanError, match=r"scales do not fit .*\(2, 3\), not \(2, 8\)"):
        apply_plan(model, planned(model, fold=fold))
