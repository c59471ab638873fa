"""Massive values: the paper's counts, and running sums against the states in one piece."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from mvquant.heads import pair_dims
from mvquant.massive import (
    HeadMoments,
    default_ratio,
    head_ratios,
    massive_mask,
    merge_moments,
    pair_sums,
    sequence_moments,
)


def llama(shared_data: Path) -> dict[str, torch.Tensor]:
    return load_file(shared_data / "massive-values" / "llama-2-7b-chat.layer10.safetensors")


def states(seed: int, batch: int, seq: int, offset: float = 0.0) -> torch.Tensor:
    """`[batch, head, seq, head_dim]` whose dims differ in scale and mean."""
    generator = torch.Generator().manual_seed(seed)
    scale = torch.logspace(-2, 2, 6)
    return torch.randn(batch, 3, seq, 6, generator=generator) * scale + offset


def one_shot(sequences: list[torch.Tensor]) -> HeadMoments:
    """The definition, on all tokens at once: sequences are `[head, seq, head_dim]`."""
    every = torch.cat(sequences, dim=1).double()
    tokens = every.shape[1]
    within = sum(part.double().var(dim=1, correction=0) * part.shape[1] for part in sequences) / tokens
    return HeadMoments(tokens, every.sum(dim=1), every.square().sum(dim=1), within)


@pytest.mark.parametrize(("role", "entries", "heads"), [("q", 48, 31), ("k", 46, 31), ("v", 0, 0)])
def test_llama_2_has_as_many_massive_values_as_the_paper_found(role: str, entries: int, heads: int, shared_data: Path):
    tensor = llama(shared_data)[role]
    mask = massive_mask(tensor)
    assert (int(mask.sum()), int(mask.any(dim=-1).sum())) == (entries, heads)
    moments = sequence_moments(tensor.transpose(0, 1).unsqueeze(0))
    assert torch.equal(moments.massive(), mask)


@pytest.mark.parametrize("role", ["q", "k"])
def test_llama_2s_massive_values_are_in_the_slower_half_of_the_pairs(role: str, shared_data: Path):
    dims = massive_mask(llama(shared_data)[role]).nonzero()[:, 1]
    assert bool((dims % 64 >= 32).all())


def test_mask_is_strict_and_relative_to_its_own_head():
    tensor = torch.ones(4, 2, 10)
    tensor[:, 0, 3] = 100.0
    tensor[:, 1] *= 1000.0
    assert massive_mask(tensor).nonzero().tolist() == [[0, 3]]
    assert not massive_mask(torch.ones(4, 2, 10), ratio=1.0).any()


def test_a_head_of_zeros_has_no_massive_values():
    assert not massive_mask(torch.zeros(4, 2, 8)).any()
    assert bool((head_ratios(torch.zeros(2, 8)) == 0).all())


def test_half_precision_states_do_not_overflow():
    tensor = torch.ones(8, 1, 64, dtype=torch.float16)
    tensor[:, :, 5] = 60_000.0
    assert massive_mask(tensor).nonzero().tolist() == [[0, 5]]


def test_default_ratio_is_the_papers_from_128_dims_on_and_can_be_reached_below():
    assert [default_ratio(128), default_ratio(256)] == [5.0, 5.0]
    for head_dim in (8, 16, 32, 64):
        assert 1.0 < default_ratio(head_dim) < head_dim**0.5


@settings(deadline=None, max_examples=40)
@given(
    parts=st.lists(st.tuples(st.integers(1, 3), st.integers(1, 9)), min_size=1, max_size=4),
    offset=st.sampled_from([0.0, 1.0, -300.0]),
    seed=st.integers(0, 2**16),
)
def test_streaming_equals_one_shot(parts: list[tuple[int, int]], offset: float, seed: int):
    tensors = [states(seed + index, batch, seq, offset) for index, (batch, seq) in enumerate(parts)]
    streamed = sequence_moments(tensors[0])
    for tensor in tensors[1:]:
        streamed = merge_moments(streamed, sequence_moments(tensor))
    expected = one_shot([sequence for tensor in tensors for sequence in tensor])
    assert streamed.tokens == expected.tokens
    torch.testing.assert_close(streamed.total, expected.total, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(streamed.squares, expected.squares, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(streamed.within_variance, expected.within_variance, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(streamed.variance(), expected.variance(), rtol=1e-4, atol=1e-6)


@settings(deadline=None, max_examples=25)
@given(seeds=st.tuples(*[st.integers(0, 2**16)] * 3), seqs=st.tuples(*[st.integers(1, 7)] * 3))
def test_merging_does_not_depend_on_the_order(seeds: tuple[int, ...], seqs: tuple[int, ...]):
    a, b, c = (sequence_moments(states(seed, 1, seq)) for seed, seq in zip(seeds, seqs, strict=True))
    left, right = merge_moments(merge_moments(a, b), c), merge_moments(a, merge_moments(c, b))
    assert left.tokens == right.tokens
    for name in ("total", "squares", "within_variance"):
        torch.testing.assert_close(getattr(left, name), getattr(right, name), rtol=1e-12, atol=1e-12)


def test_a_shift_of_all_keys_of_a_sequence_changes_no_within_variance():
    tensor = states(1, 2, 32)
    shifted = tensor + torch.tensor([0.0, 512.0]).view(2, 1, 1, 1)
    before, after = sequence_moments(tensor), sequence_moments(shifted)
    torch.testing.assert_close(after.within_variance, before.within_variance, rtol=1e-2, atol=1e-4)
    assert bool((after.variance() > 1000 * before.within_variance[:, :3].max()).all())


def test_variance_survives_a_mean_a_thousand_times_larger():
    tensor = torch.randn(1, 2, 4096, 8, generator=torch.Generator().manual_seed(0)) + 1000.0
    expected = tensor[0].double().var(dim=1, correction=0)
    torch.testing.assert_close(sequence_moments(tensor).within_variance, expected, rtol=1e-5, atol=0.0)


@pytest.mark.parametrize("layout", ["half-split", "interleaved"])
@pytest.mark.parametrize("rotary_dim", [0, 4, 8])
def test_pair_energy_adds_both_dims_of_a_pair(layout: str, rotary_dim: int):
    moments = sequence_moments(torch.randn(1, 2, 5, 8, generator=torch.Generator().manual_seed(0)))
    energy = moments.pair_energy(rotary_dim, layout)
    assert energy.shape == (2, rotary_dim // 2)
    for pair in range(rotary_dim // 2):
        first, second = pair_dims(pair, rotary_dim, layout)
        expected = moments.mean_square()[:, first] + moments.mean_square()[:, second]
        assert torch.equal(energy[:, pair], expected)
    assert torch.equal(pair_sums(moments.mean_square(), rotary_dim, layout), energy)


def test_moments_are_what_they_say():
    tensor = states(3, 1, 20)
    moments = sequence_moments(tensor)
    tokens = tensor[0].double()
    torch.testing.assert_close(moments.norms(), tokens.norm(dim=1), rtol=1e-6, atol=0.0)
    torch.testing.assert_close(moments.mean(), tokens.mean(dim=1))
    torch.testing.assert_close(moments.mean_square(), tokens.square().mean(dim=1), rtol=1e-6, atol=0.0)
    torch.testing.assert_close(moments.ratios(), head_ratios(tokens.norm(dim=1)), rtol=1e-6, atol=0.0)
