"""What the machine has: the CPU's own memory, shared by processes, and a device's beside it."""

import torch

from mvquant.layerwise import available_disk, available_memory, available_room, operations_per_second

CPU = torch.device("cpu")


def test_the_machine_says_what_it_has(tmp_path):
    assert available_memory(CPU) > 0
    assert available_disk(tmp_path / "not" / "there") > 0
    assert operations_per_second(CPU, torch.float32) > 0


def test_processes_share_the_memory_of_the_machine(tmp_path):
    room = available_room(CPU, tmp_path)
    assert room.device is None
    assert room.memory > 0
    assert available_room(CPU, tmp_path, processes=10**18).memory == 0


def test_a_device_has_memory_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.accelerator, "get_memory_info", lambda _device: (5, 7))
    room = available_room(torch.device("cuda", 0), tmp_path)
    assert room.device == 5
    assert room.memory > 7
