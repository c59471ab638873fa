import math

import pytest

from mvquant.arch import model_view
from mvquant.errors import PlanError, UnsupportedModelError
from mvquant.kvcache.fit import model_frequencies, require_cache_fit, require_steady_rope
from tests.kvcache.plans import plan_of_view
from tests.tiny_models import ROPE_FAMILY_NAMES, tiny_config


def with_frequencies(view):
    plan = plan_of_view(view)
    return plan.model_copy(update={"keys": plan.keys.model_copy(update={"inv_freq": model_frequencies(view)})})


@pytest.mark.parametrize("family", ROPE_FAMILY_NAMES)
def test_a_plan_fits_the_model_that_it_was_made_for(family):
    view = model_view(tiny_config(family))
    require_cache_fit(with_frequencies(view), view)
    require_steady_rope(view)


def test_frequencies_are_those_of_rope():
    found = model_frequencies(model_view(tiny_config("llama")))
    assert found == pytest.approx([10000.0 ** (-2 * pair / 16) for pair in range(8)], rel=1e-5)
    assert model_frequencies(model_view(tiny_config("gemma3_text"))) == ()


@pytest.mark.parametrize("theta", [500.0, 1e6])
def test_another_rope_is_refused(theta):
    plan = with_frequencies(model_view(tiny_config("llama")))
    other = model_view(tiny_config("llama", rope_parameters={"rope_type": "default", "rope_theta": theta}))
    slowest = theta ** (-14 / 16)
    with pytest.raises(PlanError, match=rf"those of the model by {slowest:.3g} to 1"):
        require_cache_fit(plan, other)
    assert math.isclose(slowest, model_frequencies(other)[-1], rel_tol=1e-5)


def test_a_model_without_rope_is_refused():
    plan = with_frequencies(model_view(tiny_config("llama")))
    with pytest.raises(UnsupportedModelError, match="'gpt2' has no RoPE"):
        require_cache_fit(plan, model_view(tiny_config("gpt2")))
