"""One layer of the cache, against transformers' own layers."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from mvquant.arch import model_view
from mvquant.cache_formats import KeyFormat
from mvquant.cache_recipe import Prefill
from mvquant.errors import PlanError, UsageError
from mvquant.kvcache.codec import key_codec, value_codec
from mvquant.kvcache.frame import rotary_frame
from mvquant.kvcache.keeping import AsTheyCome, Keeping, RowStarts
from mvquant.kvcache.layers import LayerKeeping, QuantizedKVLayer
from tests.kvcache.plans import plan_of_view
from tests.tiny_models import tiny_config

VIEW = model_view(tiny_config("llama"))
HEADS, DIMS = VIEW.attentions[0].k.heads, VIEW.attentions[0].k.head_dim
CHUNK = 8
PLAN = plan_of_view(VIEW, keys=KeyFormat(scales="channel", chunk=CHUNK))


def rounding_layer(
    window: int = 0, sliding_window: int | None = None, prefill: Prefill = "rounded"
) -> QuantizedKVLayer:
    keys = Keeping(key_codec(PLAN, 0, torch.float32), window)
    values = Keeping(value_codec(PLAN, 0, torch.float32), window)
    return QuantizedKVLayer(LayerKeeping(0, keys, values, HEADS, DIMS, sliding_window), prefill)


COSTED = {
    "per token": KeyFormat(scales="token"),
    "per channel": KeyFormat(scales="channel", chunk=CHUNK),
    "static before RoPE": KeyFormat(scales="static", stage="pre-rope"),
}


def costed_layer(keys: KeyFormat) -> QuantizedKVLayer:
    plan = plan_of_view(VIEW, keys=keys)
    frame = rotary_frame(VIEW.config, VIEW.attentions[0].k, None) if keys.stage == "pre-rope" else None
    held = Keeping(key_codec(plan, 0, torch.float32), window=4, frame=frame)
    layer = QuantizedKVLayer(
        LayerKeeping(0, held, Keeping(value_codec(plan, 0, torch.float32), window=4), HEADS, DIMS), "rounded"
    )
    zero = torch.zeros(2, dtype=torch.long)
    layer.starts = RowStarts(zero, zero)
    return layer


def exact_layer(sliding_window: int | None = None) -> QuantizedKVLayer:
    keeping = Keeping(AsTheyCome())
    return QuantizedKVLayer(LayerKeeping(0, keeping, keeping, HEADS, DIMS, sliding_window), "rounded")


def random_states(columns: int, rows: int = 2, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(rows, HEADS, columns, DIMS, generator=generator) for _ in range(2))  # pyright: ignore


def split(states: tuple[Tensor, Tensor], sizes: list[int]) -> list[tuple[Tensor, Tensor]]:
    return list(zip(*(tensor.split(sizes, dim=2) for tensor in states), strict=True))


@pytest.mark.parametrize("sliding_window", [None, 4, 10])
@pytest.mark.parametrize("sizes", [[1] * 25, [25], [3, 1, 1, 12, 1, 7], [12, 1, 1, 1]])
def test_without_rounding_it_returns_what_transformers_layers_return(sliding_window: int | None, sizes: list[int]):
    ours = exact_layer(sliding_window)
    theirs = DynamicLayer() if sliding_window is None else DynamicSlidingWindowLayer(sliding_window)
    assert (ours.is_sliding, ours.get_max_length()) == (theirs.is_sliding, theirs.get_max_length())
    for keys, values in split(random_states(sum(sizes)), sizes):
        assert ours.get_mask_sizes(keys.shape[2]) == theirs.get_mask_sizes(keys.shape[2])
        for ours_states, theirs_states in zip(ours.update(keys, values), theirs.update(keys, values), strict=True):
            assert torch.equal(ours_states, theirs_states)
        assert ours.get_seq_length() == theirs.get_seq_length()


def test_a_sliding_layer_holds_no_more_than_its_window_and_a_chunk():
    layer = rounding_layer(sliding_window=20)
    bytes_held = []
    for keys, values in split(random_states(400), [1] * 400):
        layer.update(keys, values)
        bytes_held.append(layer.nbytes.packed + layer.nbytes.full_precision)
        assert layer.keys_held.length - layer.keys_held.first < 20 + CHUNK
    assert max(bytes_held[30:]) <= max(bytes_held[:60])
    assert layer.nbytes.reserved <= layer.nbytes.packed * 2


class ValuesMade(TorchDispatchMode):
    """Counts the values that torch writes, in what every operation returns; views write none."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view:
            self.count += sum(each.numel() for each in tree_leaves(result) if isinstance(each, Tensor))
        return result


def values_made(layer: QuantizedKVLayer, columns: int, adding_alone: bool) -> float:
    """Values written per token while a chunk of tokens comes one by one, `columns` being held already."""
    layer.update(*random_states(columns))
    counting = ValuesMade()
    for keys, values in split(random_states(CHUNK, seed=1), [1] * CHUNK):
        with counting:
            if adding_alone:
                starts = layer._row_starts(keys)
                for held, states in ((layer.keys_held, keys), (layer.values_held, values)):
                    held.append(states, starts)
                    held.pack()
            else:
                layer.update(keys, values)
    return counting.count / CHUNK


@pytest.mark.parametrize("keys", COSTED.values(), ids=COSTED)
def test_the_cost_of_a_token_grows_linearly_with_the_context(keys: KeyFormat):
    once, twice, four_times = (values_made(costed_layer(keys), size * 512, False) for size in (1, 2, 4))
    assert four_times - twice == pytest.approx(2 * (twice - once), rel=0.02)
    assert four_times < 60 * 2 * 2 * HEADS * DIMS * 2048  # so many times the K and V that are read


@pytest.mark.parametrize("keys", COSTED.values(), ids=COSTED)
def test_adding_a_token_costs_the_same_in_any_context(keys: KeyFormat):
    short, long = (values_made(costed_layer(keys), columns, True) for columns in (512, 4096))
    assert long == short


@pytest.mark.parametrize("window", [0, 5])
def test_rounded_and_exact_prefill_hold_the_same_and_differ_in_what_the_prompt_reads(window: int):
    states = random_states(30)
    rounded, exact = rounding_layer(window), rounding_layer(window, prefill="exact")
    read_rounded, read_exact = rounded.update(*states)[0], exact.update(*states)[0]
    assert torch.equal(read_exact, states[0])
    packed = (30 - window) // CHUNK * CHUNK
    assert torch.equal(read_rounded[:, :, packed:], states[0][:, :, packed:])
    assert not torch.equal(read_rounded[:, :, :packed], states[0][:, :, :packed])
    more = random_states(1, seed=1)
    after_rounded, after_exact = rounded.update(*more)[0], exact.update(*more)[0]
    assert torch.equal(after_exact[:, :, :-1], read_rounded)
    assert torch.equal(after_rounded[:, :, :packed], read_rounded[:, :, :packed])


@pytest.mark.parametrize("sliding_window", [None, 12])
def test_a_rollback_leaves_no_trace_while_the_past_is_recorded(sliding_window: int | None):
    plain, recorded = rounding_layer(2, sliding_window), rounding_layer(2, sliding_window)
    recorded.activate_past_recording()
    kept = split(random_states(40), [20, 3, 5, 1, 11])
    for number, states in enumerate(kept):
        read_plain = plain.update(*states)
        rejected = random_states(4, seed=number + 1)
        both = [torch.cat(pair, dim=2) for pair in zip(states, rejected, strict=True)]
        recorded.update(*both)
        recorded.crop(-4)
        assert recorded.get_seq_length() == plain.get_seq_length()
        assert recorded.nbytes.packed == plain.nbytes.packed
        assert recorded.nbytes.full_precision == plain.nbytes.full_precision
        more = random_states(1, seed=99)
        for layer in (plain, recorded):
            layer.activate_past_recording()
        after = [layer.update(*more) for layer in (plain, recorded)]
        assert torch.equal(after[0][0], after[1][0])
        assert torch.equal(after[0][1], after[1][1])
        plain.crop(-1)
        recorded.crop(-1)
        plain.record_past = False
        assert read_plain[0].shape[2] >= states[0].shape[2]


def test_rows_can_be_repeated_and_selected_by_a_mask():
    layer = rounding_layer(window=3)
    layer.update(*random_states(20))
    more = random_states(1, rows=4, seed=1)
    layer.batch_repeat_interleave(2)
    keys, _ = layer.update(*more)
    assert torch.equal(keys[0, :, :-1], keys[1, :, :-1])
    layer.batch_select_indices(torch.tensor([False, True, False, True]))
    again, _ = layer.update(*random_states(1, seed=2))
    assert torch.equal(again[:, :, :20], keys[[1, 3]][:, :, :20])


def test_reset_forgets_everything():
    layer = rounding_layer()
    layer.update(*random_states(20))
    layer.reset()
    assert (layer.get_seq_length(), layer.nbytes.total) == (0, 0)
    assert layer.update(*random_states(3, rows=5))[0].shape == (5, HEADS, 3, DIMS)


def test_states_of_another_model_are_refused():
    with pytest.raises(PlanError, match=r"layer 0: keys have 3 heads of 16 dims, the plan is for 2 heads of 16"):
        rounding_layer().update(torch.zeros(1, 3, 1, DIMS), torch.zeros(1, 3, 1, DIMS))


def test_another_batch_is_refused():
    layer = rounding_layer()
    layer.update(*random_states(3))
    with pytest.raises(UsageError, match=r"holds a batch of 2 rows and was given 3: begin every batch with a new"):
        layer.update(*random_states(1, rows=3))


def test_keys_before_rope_want_to_know_the_padding_of_a_batch():
    keys = Keeping(key_codec(PLAN, 0, torch.float32), frame=rotary_frame(VIEW.config, VIEW.attentions[0].k, None))
    layer = QuantizedKVLayer(LayerKeeping(0, keys, Keeping(AsTheyCome()), HEADS, DIMS), "rounded")
    with pytest.raises(UsageError, match=r"call cache\.note_padding\(attention_mask\) first"):
        layer.update(*random_states(3))
    layer.update(*random_states(3, rows=1))


def test_cropping_asks_for_a_negative_number_and_for_columns_that_are_there():
    layer = rounding_layer(sliding_window=10)
    layer.update(*random_states(40))
    with pytest.raises(UsageError, match=r"crop\(3\): say how many tokens to remove as a negative number"):
        layer.crop(3)
    with pytest.raises(UsageError, match=r"sliding window of 10 has dropped: call activate_past_recording\(\)"):
        layer.crop(-20)
    with pytest.raises(UsageError, match="not offloaded"):
        layer.offload()
