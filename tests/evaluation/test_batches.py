import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mvquant.evaluation.batches import (
    NonFiniteLogitsError,
    batches_by_length,
    encode,
    last_logits,
    left_pad,
)
from tests.evaluation.examples import BOS, tiny_tokenizer
from tests.tiny_models import tiny_model

CPU = torch.device("cpu")


@given(lengths=st.lists(st.integers(1, 40), max_size=30), size=st.integers(1, 7))
def test_batches_hold_every_index_once_longest_first(lengths, size):
    batches = list(batches_by_length(lengths, size))
    flat = [index for batch in batches for index in batch]
    assert sorted(flat) == list(range(len(lengths)))
    assert [lengths[index] for index in flat] == sorted(lengths, reverse=True)
    assert all(len(batch) == size for batch in batches[:-1])


def test_padding_is_masked_and_positions_start_at_the_text():
    batch = left_pad([[5, 6, 7], [8]], CPU)
    assert batch.mask.tolist() == [[True, True, True], [False, False, True]]
    assert batch.positions.tolist() == [[0, 1, 2], [0, 0, 0]]
    longer = batch.extended(torch.tensor([9, 9]))
    assert longer.ids.tolist() == [[5, 6, 7, 9], [0, 0, 8, 9]]
    assert longer.positions.tolist() == [[0, 1, 2, 3], [0, 0, 0, 1]]


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gpt_neox", "opt", "gpt2"])
def test_padded_rows_have_the_logits_that_they_have_alone(family):
    model = tiny_model(family)
    rows = [[3, 4, 5, 6, 7, 8, 9, 10] * 3, [11, 12], [13, 14, 15, 16, 17]]
    with torch.inference_mode():
        together, _ = last_logits(model, left_pad(rows, CPU), 2)
        for row, logits in zip(rows, together, strict=True):
            alone = model(torch.tensor([row])).logits[0, -2:]
            torch.testing.assert_close(logits, alone, rtol=1e-4, atol=1e-5)


def test_a_cache_changes_nothing():
    model = tiny_model("llama")
    batch = left_pad([[3, 4, 5, 6], [7, 8]], CPU)
    longer = batch.extended(torch.tensor([9, 10]))
    with torch.inference_mode():
        _, cache = last_logits(model, batch, 1, use_cache=True)
        cached, _ = last_logits(model, longer, 1, cache, use_cache=True)
        whole, _ = last_logits(model, longer, 1)
    torch.testing.assert_close(cached, whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_no_numbers_are_refused(value):
    model = tiny_model("llama")
    with torch.inference_mode():
        model.lm_head.weight[7, 0], model.lm_head.weight[8, 0] = value, -value
        with pytest.raises(NonFiniteLogitsError):
            last_logits(model, left_pad([[3, 4]], CPU), 1)


def test_texts_begin_as_the_tokenizer_begins_them():
    first, second = encode(tiny_tokenizer(), ["a", "aa"])
    assert (first[0], first * 2) == (BOS, [BOS, first[1]] * 2)
    assert second == [*first, first[1]]
    assert encode(tiny_tokenizer(), []) == []
