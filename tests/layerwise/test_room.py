"""What the machine has: the CPU's own memory, shared by processes, and a device's beside it."""

from pathlib import Path

import pytest
import torch

from mvquant.layerwise import available_disk, available_memory, available_room, operations_per_second
from mvquant.layerwise.room import memory_groups

CPU = torch.device("cpu")
MEGABYTE = 10**6
"""Less than any machine has free that runs this."""

VERSIONS = {
    2: ("memory.max", "memory.current", "memory.stat"),
    1: ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
}
STATISTICS = {
    2: "anon 200\nfile 700\nactive_file 100\ninactive_file 600\n",
    1: "cache 5\ninactive_file 5\ntotal_cache 700\ntotal_active_file 100\ntotal_inactive_file 600\n",
}


def write_group(mount: Path, version: int, limit: int | str, usage: int | str, statistics: str | None = None) -> None:
    """Write what the kernel says of a container's memory."""
    for name, text in zip(VERSIONS[version], (limit, usage, statistics), strict=True):
        if text is not None:
            (mount / name).parent.mkdir(exist_ok=True)
            (mount / name).write_text(f"{text}\n")


def room_in(mount: Path) -> int:
    return available_memory(CPU, memory_groups(mount))


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


@pytest.mark.parametrize("version", VERSIONS)
def test_files_that_were_read_once_take_no_room_in_a_container(version, tmp_path):
    write_group(tmp_path, version, 1000, 900, STATISTICS[version])
    assert room_in(tmp_path) == 1000 - (900 - 600)


@pytest.mark.parametrize("version", VERSIONS)
def test_all_that_is_used_counts_where_the_cache_is_not_told(version, tmp_path):
    write_group(tmp_path, version, 1000, 900)
    assert room_in(tmp_path) == 100
    statistics = tmp_path / VERSIONS[version][2]
    statistics.write_text("anon 200\n\n")
    assert room_in(tmp_path) == 100
    statistics.unlink()
    statistics.mkdir()  # cannot be read, whoever tries
    assert room_in(tmp_path) == 100


@pytest.mark.parametrize(("version", "limit"), [(2, "max"), (1, 9223372036854771712)])
def test_a_container_without_a_limit_has_the_room_of_the_machine(version, limit, tmp_path):
    write_group(tmp_path, version, limit, 900, STATISTICS[version])
    assert room_in(tmp_path) > MEGABYTE


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("missing", [0, 1])
def test_half_of_what_tells_a_limit_tells_none(version, missing, tmp_path):
    write_group(tmp_path, version, 1000, 900, STATISTICS[version])
    file = tmp_path / VERSIONS[version][missing]
    file.unlink()
    assert room_in(tmp_path) > MEGABYTE
    file.mkdir()
    assert room_in(tmp_path) > MEGABYTE


def test_the_narrower_of_two_limits_holds(tmp_path):
    write_group(tmp_path, 2, 1000, 900, STATISTICS[2])
    write_group(tmp_path, 1, 800, 700, STATISTICS[1])
    assert room_in(tmp_path) == 800 - (700 - 600)
    write_group(tmp_path, 2, 650, 1200, STATISTICS[2])
    assert room_in(tmp_path) == 650 - (1200 - 600)


def test_files_that_were_read_at_different_times_promise_nothing_absurd(tmp_path):
    write_group(tmp_path, 2, 1000, 500, STATISTICS[2])
    assert room_in(tmp_path) == 1000
    write_group(tmp_path, 2, 1000, 1700, STATISTICS[2])
    assert room_in(tmp_path) == 0


def test_a_device_has_no_limit_of_a_container(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.accelerator, "get_memory_info", lambda _device: (5000, 7000))
    write_group(tmp_path, 2, 1000, 900)
    assert available_memory(torch.device("cuda", 0), memory_groups(tmp_path)) == 5000
