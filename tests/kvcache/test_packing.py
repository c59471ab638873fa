"""Packing: every width comes back, and no byte is wasted."""

from collections import Counter

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mvquant.cache_formats import packed_bytes
from mvquant.kvcache.packing import pack, pieces_of, unpack

widths_of_channels = st.lists(st.integers(1, 8), min_size=1, max_size=12)


@settings(max_examples=60, deadline=None)
@given(widths=widths_of_channels, tokens=st.sampled_from([1, 3, 8, 32]), seed=st.integers(0, 1000))
def test_integers_come_back_and_bytes_are_the_plans(widths: list[int], tokens: int, seed: int):
    widths = sorted(widths, reverse=True)
    generator = torch.Generator().manual_seed(seed)
    tops = torch.tensor([1 << width for width in widths])
    integers = (torch.rand(2, 1, 3, tokens, len(widths), generator=generator) * tops).to(torch.uint8)
    packed = pack(integers, pieces_of(widths))
    assert packed.shape == (2, 1, 3, packed_bytes(Counter(widths), tokens))
    assert unpack(packed, pieces_of(widths), tokens, len(widths)).equal(integers)


@given(widths=widths_of_channels)
def test_chunks_of_eight_tokens_waste_nothing(widths: list[int]):
    assert packed_bytes(Counter(widths), chunk=8) == sum(widths)


@given(widths=widths_of_channels)
def test_single_tokens_waste_less_than_three_bytes(widths: list[int]):
    assert sum(widths) <= 8 * packed_bytes(Counter(widths), chunk=1) < sum(widths) + 24


def test_the_bits_of_a_byte_are_those_of_its_integers():
    packed = pack(torch.tensor([[3, 0, 2, 1]], dtype=torch.uint8), pieces_of([2, 2, 2, 2]))
    assert packed.tolist() == [0b01_10_00_11]
