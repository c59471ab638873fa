"""The states of one role as a cache holds them: each column packed once, and read back as the codec leaves it."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from mvquant.arch import model_view
from mvquant.cache_formats import KeyFormat
from mvquant.kvcache.codec import key_codec
from mvquant.kvcache.frame import RotaryFrame, rotary_frame
from mvquant.kvcache.held import HeldStates
from mvquant.kvcache.keeping import Keeping, RowStarts, StateCodec
from mvquant.kvcache.store import Parts
from tests.kvcache.plans import plan_of_view
from tests.tiny_models import tiny_config

VIEW = model_view(tiny_config("llama"))
HEADS, DIMS = VIEW.attentions[0].k.heads, VIEW.attentions[0].k.head_dim
FRAME = rotary_frame(VIEW.config, VIEW.attentions[0].k, None)
FORMATS = {"per token": KeyFormat(scales="token"), "per channel": KeyFormat(scales="channel", chunk=8)}


def codec_of(name: str) -> StateCodec:
    return key_codec(plan_of_view(VIEW, keys=FORMATS[name]), 0, torch.float32)


def random_states(columns: int, rows: int = 2) -> Tensor:
    return torch.randn(rows, HEADS, columns, DIMS, generator=torch.Generator().manual_seed(columns))


def starts_of(padding: Tensor) -> RowStarts:
    return RowStarts(padding, padding)


def held_of(states: Tensor, keeping: Keeping, padding: Tensor, sizes: list[int]) -> HeldStates:
    held = HeldStates(keeping)
    for part in states.split(sizes, dim=2):
        held.append(part, starts_of(padding))
        held.pack()
    return held


def settings() -> list[tuple[str, int, int, RotaryFrame | None]]:
    return [
        (name, window, sinks, frame)
        for name in FORMATS
        for window in (0, 5)
        for sinks in (0, 3)
        for frame in (None, FRAME)
    ]


@pytest.mark.parametrize(("name", "window", "sinks", "frame"), settings())
def test_appending_bit_by_bit_holds_what_appending_at_once_holds(
    name: str, window: int, sinks: int, frame: RotaryFrame | None
):
    keeping = Keeping(codec_of(name), window, sinks, frame)
    states, padding = random_states(45), torch.tensor([0, 10])
    at_once = held_of(states, keeping, padding, [45])
    bit_by_bit = held_of(states, keeping, padding, [1, 1, 7, 1, 20, 1, 14])
    one_by_one = held_of(states, keeping, padding, [1] * 45)
    expected = at_once.read(0)
    for held in (bit_by_bit, one_by_one):
        assert torch.equal(held.read(0), expected)
        assert (held.packed, held.nbytes.packed) == (at_once.packed, at_once.nbytes.packed)
        assert held.nbytes.full_precision == at_once.nbytes.full_precision


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("window", [0, 5])
def test_reading_gives_what_the_codec_leaves_of_old_columns_and_new_ones_as_they_came(name: str, window: int):
    codec, states = codec_of(name), random_states(45)
    held = held_of(states, Keeping(codec, window), torch.zeros(2, dtype=torch.long), [30, 15])
    packed = (45 - window) // codec.chunk * codec.chunk
    assert held.packed == packed
    rounded = codec.decode(codec.encode(states[:, :, :packed]), torch.float32)
    assert torch.equal(held.read(0), torch.cat([rounded, states[:, :, packed:]], dim=2))
    for first in (7, packed - 1, packed, 44):
        assert torch.equal(held.read(first), held.read(0)[:, :, first:])


class CountingCodec:
    """Counts how often each column is encoded; columns carry their number."""

    def __init__(self, codec: StateCodec) -> None:
        self.codec, self.chunk = codec, codec.chunk
        self.encoded: list[int] = []

    def encode(self, states: Tensor) -> Parts:
        self.encoded += states[0, 0, :, 0].long().tolist()
        return self.codec.encode(states)

    def decode(self, parts: Parts, dtype: torch.dtype) -> Tensor:
        return self.codec.decode(parts, dtype)


@pytest.mark.parametrize("name", FORMATS)
def test_the_past_is_never_encoded_again(name: str):
    codec = CountingCodec(codec_of(name))
    states = torch.arange(50.0)[None, None, :, None].expand(1, HEADS, 50, DIMS)
    held = held_of(states, Keeping(codec, window=4), torch.zeros(1, dtype=torch.long), [20] + [1] * 30)
    held.read(0)
    assert codec.encoded == list(range(held.packed))


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("length", [44, 40, 33, 32, 5, 0])
def test_cropping_changes_nothing_about_what_remains(name: str, length: int):
    held = held_of(random_states(45), Keeping(codec_of(name), window=3), torch.zeros(2, dtype=torch.long), [45])
    before, packed = held.read(0), held.packed
    held.crop(length)
    assert held.length == length
    assert torch.equal(held.read(0), before[:, :, :length])
    more = random_states(6)
    held.append(more, starts_of(torch.zeros(2, dtype=torch.long)))
    held.pack()
    assert held.length == length + 6
    assert torch.equal(held.read(held.length - 3), more[:, :, -3:])
    whole = min(length, packed) // held.keeping.codec.chunk * held.keeping.codec.chunk
    assert torch.equal(held.read(0)[:, :, :whole], before[:, :, :whole])


@pytest.mark.parametrize("name", FORMATS)
def test_rows_are_exchanged_whole(name: str):
    keeping = Keeping(codec_of(name), window=3, sinks=2)
    held = held_of(random_states(45), keeping, torch.tensor([0, 6]), [45])
    before = held.read(0)
    rows = torch.tensor([1, 1, 0])
    held.select(rows)
    assert torch.equal(held.read(0), before[rows])


def test_sinks_are_the_first_tokens_of_each_row_not_of_the_batch():
    states, padding = random_states(30), torch.tensor([0, 11])
    held = held_of(states, Keeping(codec_of("per token"), sinks=3), padding, [12, 1, 17])
    exact = (held.read(0) == states).all(dim=-1).all(dim=1)
    assert exact.nonzero().tolist() == [[0, 0], [0, 1], [0, 2], [1, 11], [1, 12], [1, 13]]


def test_what_is_never_read_from_a_chunk_does_not_set_its_range():
    codec, padding = codec_of("per channel"), torch.tensor([0, 11])
    states = random_states(24)
    loud = states.clone()
    loud[1, :, :13] *= 1000  # padding and two sinks, read from elsewhere or not at all
    loud[0, :, :2] *= 1000
    keeping = Keeping(codec, sinks=2)
    quiet_read = held_of(states, keeping, padding, [24]).read(0)
    loud_read = held_of(loud, keeping, padding, [24]).read(0)
    assert torch.equal(quiet_read[0, :, 2:], loud_read[0, :, 2:])
    assert torch.equal(quiet_read[1, :, 13:], loud_read[1, :, 13:])


def test_what_is_never_read_does_not_widen_a_channel_that_is_constant_before_rope():
    """Keys that are all alike before RoPE take no range, so that few bits hold them as they are."""
    columns = 24
    before = random_states(1).expand(-1, -1, columns, -1)
    padding = torch.tensor([0, 11])
    states = FRAME.turn(before, torch.arange(columns) - padding[:, None])
    coarse = key_codec(plan_of_view(VIEW, (2,), keys=FORMATS["per channel"]), 0, torch.float32)
    held = held_of(states, Keeping(coarse, sinks=2, frame=FRAME), padding, [columns]).read(0)
    for row, first in enumerate((padding + 2).tolist()):
        error = (held[row, :, first:] - states[row, :, first:]).norm() / states[row, :, first:].norm()
        assert error < 1e-3


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("window", [0, 20])
def test_dropping_keeps_what_comes_after(name: str, window: int):
    states = random_states(45)
    held = held_of(states, Keeping(codec_of(name), window), torch.zeros(2, dtype=torch.long), [45])
    before, bytes_before = held.read(0), held.nbytes
    held.drop_before(35)
    assert held.first in range(35 - held.keeping.codec.chunk + 1, 36)
    assert torch.equal(held.read(35), before[:, :, 35:])
    assert held.nbytes.packed + held.nbytes.full_precision < bytes_before.packed + bytes_before.full_precision


@pytest.mark.parametrize("wanted", [0, 8, 24, 40])
def test_reading_ahead_gives_what_packing_would(wanted: int):
    states, zero = random_states(45), torch.zeros(2, dtype=torch.long)
    starts = starts_of(zero)
    keeping = Keeping(codec_of("per channel"), window=5)
    packed = held_of(states, keeping, zero, [45])
    waiting = HeldStates(keeping)
    waiting.append(states[:, :, :10], starts)
    waiting.pack()
    waiting.append(states[:, :, 10:], starts)
    assert (waiting.packed, waiting.due) == (0, packed.packed)
    assert torch.equal(waiting.read(wanted, waiting.due), packed.read(wanted))


def pre_rope_oracle(codec: StateCodec, states: Tensor, turn: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    positions = torch.arange(states.shape[2]).expand(len(states), -1)
    before = FRAME.turn_back(states, positions)
    return turn(codec.decode(codec.encode(before), torch.float32), positions)


def test_keys_are_packed_as_they_were_before_rope():
    codec, states = codec_of("per token"), random_states(21)
    held = held_of(states, Keeping(codec, frame=FRAME), torch.zeros(2, dtype=torch.long), [9, 12])
    assert torch.allclose(held.read(0), pre_rope_oracle(codec, states, FRAME.turn), atol=1e-5)
    plain = held_of(states, Keeping(codec), torch.zeros(2, dtype=torch.long), [21])
    assert not torch.allclose(held.read(0), plain.read(0), atol=1e-2)


def test_padding_moves_the_positions_of_a_row():
    codec, states = codec_of("per token"), random_states(20)
    shifted = torch.cat([torch.zeros(2, HEADS, 7, DIMS), states], dim=2)
    plain = held_of(states, Keeping(codec, frame=FRAME), torch.zeros(2, dtype=torch.long), [20])
    padded = held_of(shifted, Keeping(codec, frame=FRAME), torch.tensor([7, 7]), [27])
    assert torch.equal(padded.read(7), plain.read(0))
