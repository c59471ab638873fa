import math

import numpy as np
import pytest
import torch
from scipy.special import rel_entr

from mvquant.evaluation.batches import NonFiniteLogitsError
from mvquant.evaluation.divergence import (
    SequenceScores,
    kl_by_token,
    mean_over_sequences,
    perplexity,
    perplexity_ratio,
    score_sequences,
    sequence_logits,
)
from tests.tiny_models import tiny_model, tiny_tokens


def test_kl_of_two_outcomes_is_the_textbooks():
    p, q = 0.75, 0.5
    reference, logits = (torch.tensor([[math.log(x), math.log(1 - x)]]) for x in (p, q))
    assert kl_by_token(reference, logits).item() == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5))


def test_kl_agrees_with_scipy_and_does_not_mind_a_shift():
    generator = torch.Generator().manual_seed(0)
    reference, logits = torch.randn(300, 50, generator=generator), torch.randn(300, 50, generator=generator)
    p, q = reference.double().softmax(-1).numpy(), logits.double().softmax(-1).numpy()
    found = kl_by_token(reference + 7, logits - 3)
    assert np.allclose(found, rel_entr(p, q).sum(axis=-1), atol=1e-6)


def test_a_token_that_the_reference_excludes_adds_nothing():
    reference = torch.tensor([[0.0, 0.0, -math.inf]])
    assert kl_by_token(reference, torch.tensor([[0.0, 0.0, 0.0]])).item() == pytest.approx(math.log(1.5))


def test_a_model_is_no_distance_from_itself():
    model, ids = tiny_model("llama"), [row[None] for row in tiny_tokens(4, 12)]
    reference = list(sequence_logits(model, ids))
    found = score_sequences(iter(reference), ids, reference)
    assert found.kl == (0.0,) * 4
    assert (found.kl_tail, found.top_1) == (0.0, (1.0,) * 4)


def test_nll_is_transformers_own_loss_and_rows_do_not_matter():
    model, ids = tiny_model("llama"), [row[None] for row in tiny_tokens(5, 12)]
    found = score_sequences(sequence_logits(model, ids), ids)
    theirs = [model(row, labels=row).loss.item() for row in ids]
    assert found.nll == pytest.approx(theirs, abs=1e-5)
    assert found.tokens == 11
    together = score_sequences(sequence_logits(model, ids, rows=2), ids)
    assert together.nll == pytest.approx(found.nll, abs=1e-5)
    assert perplexity(found) == pytest.approx(math.exp(np.mean(theirs)), abs=1e-3)


def test_tail_and_top_1_are_over_tokens():
    ids = [torch.tensor([[0, 1, 0, 1, 0]])] * 2
    same = torch.tensor([[2.0, 0.0]]).repeat(4, 1)
    other = same.clone()
    other[0] = torch.tensor([0.0, 2.0])
    found = score_sequences(iter([other, same]), ids, [same, same])
    assert found.top_1 == (0.75, 1.0)
    single = kl_by_token(same[:1], other[:1]).item()
    assert found.kl == pytest.approx((single / 4, 0.0))
    assert found.kl_tail == pytest.approx(np.quantile([single, *[0.0] * 7], 0.999))


def test_logits_that_are_no_numbers_are_not_scored():
    model = tiny_model("llama")
    with torch.no_grad():
        model.lm_head.weight[:] = float("nan")
    with pytest.raises(NonFiniteLogitsError):
        list(sequence_logits(model, [tiny_tokens(1, 8)]))


def test_the_mean_over_sequences_against_a_published_example():
    # Student 1908 (Biometrika 6, 20): additional sleep of ten patients, mean 0.75, s.d. 1.70; t(9) = 2.262
    sleep = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
    found = mean_over_sequences(sleep)
    assert found.value == pytest.approx(0.75)
    assert found.high - found.value == pytest.approx(2.262 * 1.789 / math.sqrt(10), abs=2e-3)
    assert mean_over_sequences(sleep, low=0.0).low == 0.0
    assert mean_over_sequences([1.0]).high == math.inf


def test_the_perplexity_ratio_is_paired():
    before = SequenceScores(tokens=10, nll=(1.0, 3.0, 5.0))
    after = SequenceScores(tokens=10, nll=(1.1, 3.1, 5.1))
    found = perplexity_ratio(before, after)
    assert (found.value, found.low, found.high) == pytest.approx((math.exp(0.1),) * 3)


def test_the_interval_of_the_ratio_covers_the_truth():
    """Tokens of one sequence move together: an interval over tokens would be far too narrow."""
    rng, hits, simulations = np.random.default_rng(1), 0, 400
    for _ in range(simulations):
        before = rng.normal(3, 0.5, 16)
        after = before + 0.05 + rng.normal(0, 0.04, 16)
        scores = [SequenceScores(tokens=500, nll=tuple(map(float, nll))) for nll in (before, after)]
        found = perplexity_ratio(*scores)
        hits += found.low <= math.exp(0.05) <= found.high
    assert 0.92 <= hits / simulations <= 0.98
