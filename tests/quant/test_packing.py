"""Packing against compressed-tensors' `pack_to_int32`, and its round trip."""

import pytest
import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32, unpack_from_int32
from hypothesis import given, settings
from hypothesis import strategies as st

from mvquant.quant.packing import pack, packed_words, unpack

BITS = (2, 3, 4, 8)
sizes = st.integers(1, 9), st.integers(1, 140)


def integers_of(bits: int, shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    half = 1 << (bits - 1)
    return torch.randint(-half, half, shape, dtype=torch.int8, generator=generator)


@pytest.mark.parametrize("bits", BITS)
@settings(max_examples=40, deadline=None)
@given(rows=sizes[0], columns=sizes[1], seed=st.integers(0, 1000))
def test_equals_compressed_tensors_and_comes_back(bits: int, rows: int, columns: int, seed: int):
    integers = integers_of(bits, (rows, columns), seed)
    words = pack(integers, bits)
    assert words.shape == (rows, packed_words(columns, bits))
    assert torch.equal(words, pack_to_int32(integers, bits))
    assert torch.equal(unpack(words, bits, columns), integers)
    assert torch.equal(unpack_from_int32(words, bits, integers.shape), integers)


@pytest.mark.parametrize("bits", BITS)
def test_large_awkward_shape(bits: int):
    integers = integers_of(bits, (830, 545))
    assert torch.equal(pack(integers, bits), pack_to_int32(integers, bits))
    assert torch.equal(unpack(pack(integers, bits), bits, 545), integers)


@pytest.mark.parametrize("bits", BITS)
def test_bit_order_is_one_little_endian_stream(bits: int):
    integers = integers_of(bits, (1, 50))[0]
    stream = sum((int(value) + (1 << (bits - 1))) << (index * bits) for index, value in enumerate(integers))
    words = pack(integers[None], bits)[0].tolist()
    assert words == [
        int.from_bytes((stream >> 32 * index & 0xFFFFFFFF).to_bytes(4, "little"), "little", signed=True)
        for index in range(len(words))
    ]


@pytest.mark.parametrize("bits", BITS)
def test_input_may_be_a_transposed_view_and_is_untouched(bits: int):
    integers = integers_of(bits, (37, 5))
    before = integers.clone()
    assert torch.equal(pack(integers.T, bits), pack_to_int32(integers, bits, packed_dim=0).T)
    assert torch.equal(integers, before)


def test_three_bits_put_32_integers_into_3_words():
    assert pack(integers_of(3, (2, 32)), 3).shape == (2, 3)
