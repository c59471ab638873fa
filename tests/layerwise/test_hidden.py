"""Hidden states in memory and in files are the same to who reads them."""

import pytest
import torch

from mvquant.errors import CheckpointError
from mvquant.layerwise import HiddenStates

SIZE = 4 * 8 * 4
"""Bytes of one sequence's states."""


def made(limit, folder, count=4, **options):
    states = HiddenStates(limit)
    for number in range(count):
        states.write(number, torch.full((1, 8, 4), float(number)), folder, **options)
    return states


@pytest.mark.parametrize("limit", [0, 2 * SIZE, 10 * SIZE])
def test_every_sequence_is_read_back_whatever_the_limit(limit, tmp_path):
    states = made(limit, tmp_path)
    assert [float(states.read(number)[0, 0, 0]) for number in states] == [0.0, 1.0, 2.0, 3.0]
    assert states.held_bytes == min(limit, 4 * SIZE)
    assert len(list(tmp_path.iterdir())) == 4 - min(limit // SIZE, 4)


@pytest.mark.parametrize("limit", [0, 2 * SIZE])
def test_replacing_takes_no_more_room(limit, tmp_path):
    states = made(limit, tmp_path)
    for number in list(states):
        before = states.read(number)
        states.write(number, before + 10, tmp_path)
        assert float(before[0, 0, 0]) == number  # whoever has the old states keeps them
    assert [float(states.read(number)[0, 0, 0]) for number in states] == [10.0, 11.0, 12.0, 13.0]
    assert states.held_bytes == limit


def test_another_run_takes_up_what_was_written(tmp_path):
    made(10 * SIZE, tmp_path, also_file=True)
    states = HiddenStates(SIZE)
    states.take_up([1, 3], tmp_path)
    assert list(states) == [1, 3]
    assert [float(states.read(number)[0, 0, 0]) for number in states] == [1.0, 3.0]
    assert states.held_bytes == SIZE


def test_missing_states_are_named(tmp_path):
    made(0, tmp_path, also_file=True)
    (tmp_path / "000002.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"000002\.safetensors.*without --resume"):
        HiddenStates().take_up(range(4), tmp_path)


def test_a_disk_that_cannot_be_written_to_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CheckpointError, match="cannot be written"):
        made(0, tmp_path / "file")
