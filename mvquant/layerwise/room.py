"""What a machine still has for a process: memory, of the device too, disk, and speed."""

import os
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from mvquant.layerwise.processes import CPU

_PROBE = 512
"""Rows and columns of the product that tells how fast the machine is."""

PROBES = 10


@dataclass(frozen=True)
class MemoryGroup:
    """Where the kernel says how much memory a container may have, and has.

    Attributes:
        limit: file with the bytes that it may have, or `max`.
        usage: file with the bytes that it has, the page cache included.
        statistics: file with a name and bytes in a line.
        cache: name there of the page cache that is taken back first, when memory is needed.
    """

    limit: Path
    usage: Path
    statistics: Path
    cache: str


def memory_groups(mount: Path = Path("/sys/fs/cgroup")) -> tuple[MemoryGroup, MemoryGroup]:
    """Say where both versions of control groups have those files, below the place where they are mounted."""
    old = mount / "memory"
    return (
        MemoryGroup(mount / "memory.max", mount / "memory.current", mount / "memory.stat", "inactive_file"),
        MemoryGroup(
            old / "memory.limit_in_bytes", old / "memory.usage_in_bytes", old / "memory.stat", "total_inactive_file"
        ),
    )


OWN_GROUPS = memory_groups()
"""Those of this process, as a container shows them."""


@dataclass(frozen=True)
class Room:
    """Bytes that a process can still have.

    Attributes:
        memory: of the machine.
        disk: where the work folder is.
        device: memory of the device that runs the layers; None where the CPU does.
    """

    memory: int
    disk: int
    device: int | None = None


def available_room(device: torch.device, folder: Path, processes: int = 1) -> Room:
    """Look at what there is for each of some processes on this machine, every one with its own device if not the CPU.

    Args:
        device: that runs the layers.
        folder: to work in; it need not be there. What an earlier run left in it counts as free.
        processes: that share the machine's memory.
    """
    own = None if device.type == CPU.type else available_memory(device)
    return Room(available_memory(CPU) // processes, available_disk(folder) + _bytes_in(folder), own)


def available_memory(device: torch.device, groups: Iterable[MemoryGroup] = OWN_GROUPS) -> int:
    """Bytes that can still be had: of the device, or of the machine within the limits of its container.

    Args:
        device: whose memory it is.
        groups: where the limits of the container are.
    """
    if device.type != CPU.type:
        free, _ = torch.accelerator.get_memory_info(device)
        return free
    return min([_free_memory(), *_group_room(groups)])


def available_disk(folder: Path) -> int:
    """Bytes free where a folder is or will be."""
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    return shutil.disk_usage(existing).free


def _bytes_in(folder: Path) -> int:
    """Bytes of the files in a folder, of which some may be removed meanwhile."""
    count = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                count += Path(place, name).lstat().st_size
    return count


def operations_per_second(device: torch.device, dtype: torch.dtype) -> float:
    """How fast the machine multiplies matrices, from a product that takes milliseconds."""
    left = torch.ones(_PROBE, _PROBE, device=device, dtype=dtype)
    seconds: list[float] = []
    for _ in range(PROBES):  # the shortest counts: a process that starts meanwhile disturbs some of them
        started = time.perf_counter()
        float((left @ left)[0, 0])  # waits for the device
        seconds.append(time.perf_counter() - started)
    return 2 * _PROBE**3 / min(seconds)


def _free_memory() -> int:
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable")) * 1024


def _group_room(groups: Iterable[MemoryGroup]) -> Iterator[int]:
    """What a container may still take, where it has a limit; page cache counts as free, as it does in MemAvailable."""
    for group in groups:
        limit, usage = _text(group.limit), _text(group.usage)
        if limit.isdecimal() and usage.isdecimal():
            yield max(0, int(limit) - max(0, int(usage) - _cached(group)))


def _cached(group: MemoryGroup) -> int:
    """Page cache that was read once, as weight files are: the kernel takes it back before it refuses memory."""
    lines = (line.split() for line in _text(group.statistics).splitlines())
    return next((int(line[1]) for line in lines if line[:1] == [group.cache]), 0)


def _text(file: Path) -> str:
    """What a file says; nothing where it is not there or may not be read, as in some containers."""
    try:
        return file.read_text(encoding="ascii").strip()
    except OSError:
        return ""
