"""Parts of the child process that need no auto-gptq."""

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from mvquant.backends.auto_gptq.worker import LARGEST_DAMPING, damped, require_same_logits, storable
from tests.tiny_models import CONTEXT, tiny_model, tiny_tokens


def probe(model):
    tokens = tiny_tokens(1, CONTEXT)
    with torch.inference_mode():
        logits = model(tokens).logits
    return {"tokens": tokens, "logits": logits.clone()}


def rope(base):
    return {"rope_parameters": {"rope_type": "default", "rope_theta": base}}


def test_a_model_that_computes_the_same_is_accepted():
    require_same_logits(tiny_model("llama", **rope(500000.0)), probe(tiny_model("llama", **rope(500000.0))))


def test_another_rope_base_is_noticed_in_the_logits():
    with pytest.raises(SystemExit, match="gives other logits in auto-gptq's environment"):
        require_same_logits(tiny_model("llama", **rope(10000.0)), probe(tiny_model("llama", **rope(500000.0))))


def test_nan_is_not_the_same():
    model = tiny_model("llama")
    expected = probe(model)
    expected["logits"][0, 0, 0] = float("nan")
    with pytest.raises(SystemExit, match="other logits"):
        require_same_logits(model, expected)


@given(
    scale=st.floats(1e-9, 100.0, allow_subnormal=False),
    zero=st.integers(0, 15),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
)
@example(scale=8.41015625, zero=1, dtype=torch.bfloat16)  # off by more than half a step when rounded twice
def test_scales_and_zero_points_can_be_stored(scale, zero, dtype):
    found, moved = storable(torch.tensor([[scale]]), torch.tensor([[float(zero)]]), 15, dtype)
    assert torch.equal(found, found.to(torch.float16).float())
    assert torch.equal(found, found.to(dtype).float())
    assert found.item() > 0
    assert 1 <= moved.item() <= 15
    if scale > 1e-3:
        assert found.item() == pytest.approx(scale * (15 / 14 if zero == 0 else 1), rel=2**-8)


def test_moving_a_zero_point_of_zero_keeps_the_largest_weight_in_range():
    scale, zero = storable(torch.tensor([[0.1]]), torch.tensor([[0.0]]), 15, torch.float32)
    assert ((15 - zero) * scale).item() == pytest.approx(15 * 0.1, rel=2**-10)


class Needs:
    """A matrix whose Hessian can be inverted from some damping on."""

    def __init__(self, damping):
        self.H, self.enough = torch.eye(2), damping

    def run(self, *, percdamp):
        assert torch.equal(self.H, torch.eye(2))
        del self.H
        if percdamp < self.enough:
            raise torch.linalg.LinAlgError("not positive definite")
        return "made"


@pytest.mark.parametrize(("enough", "found"), [(0.05, 0.1), (0.01, 0.01)])
def test_damping_is_raised_until_the_hessian_can_be_inverted(enough, found):
    matrix = Needs(enough)
    assert damped(matrix, matrix.run, 0.01) == ("made", found)


def test_damping_is_not_raised_for_ever():
    matrix = Needs(2 * LARGEST_DAMPING)
    with pytest.raises(torch.linalg.LinAlgError):
        damped(matrix, matrix.run, 0.01)
