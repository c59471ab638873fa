"""What is measured of K: the same from states and from statistics, and errors as they come out."""

import pytest
import torch

from mvquant.arch import model_view
from mvquant.attention_states import attention_states
from mvquant.kvcache.measure import by_pair, expected_errors, measured_errors, moments_of_states, moments_of_stats
from mvquant.stats import collect_stats
from tests.kvcache.attention import structured_states
from tests.tiny_models import tiny_config, tiny_model, tiny_tokens


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "cohere"])
@pytest.mark.parametrize("stage", ["post-rope", "pre-rope"])
def test_states_and_statistics_of_one_text_agree(family, stage):
    model, view, tokens = tiny_model(family), model_view(tiny_config(family)), tiny_tokens(sequences=1)
    seen = []
    with torch.no_grad(), attention_states(model, view, lambda _, states: seen.append(states)):
        model(tokens)
    states = seen[0]
    q, k = (states.q, states.k) if stage == "post-rope" else (states.q_pre, states.k_pre)
    ours = moments_of_states(q[0].transpose(0, 1), k[0].transpose(0, 1))
    theirs = moments_of_stats(collect_stats(model, view, [tokens]).layers[0], stage)
    for name in ("query_energy", "key_energy", "center", "varying"):
        torch.testing.assert_close(getattr(ours, name), getattr(theirs, name), rtol=1e-4, atol=1e-6)


def test_expected_errors_are_those_of_normal_keys():
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(2048, heads, 8, generator=generator) for heads in (4, 2))
    moments = moments_of_states(q, k)
    expected = expected_errors(moments, (1, 2, 3, 4), 8, "half-split")
    measured = measured_errors(moments, k, (1, 2, 3, 4), 8, "half-split", chunk=256)
    # grids have even steps, normal levels have not: a little worse
    assert bool((measured / expected > 0.95).all())
    assert bool((measured / expected < 1.45).all())


def test_spread_foresees_a_drift():
    q, k = structured_states()
    drift = torch.linspace(0, 40, len(k)).view(-1, 1, 1)
    still, drifting = (moments_of_states(q, each) for each in (k, k + drift))
    assert bool((drifting.spread > still.spread).all())
    assert bool((drifting.spread > drifting.varying.sqrt()).all())


def test_pairs_are_rope_pairs_and_then_the_rest():
    values = torch.arange(8.0).unsqueeze(0)
    assert by_pair(values, 4, "half-split").tolist() == [[2, 4, 9, 13]]
    assert by_pair(values, 4, "interleaved").tolist() == [[1, 5, 9, 13]]
