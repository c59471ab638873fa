"""What a machine still has for a process: memory, of the device too, disk, and speed."""

import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from mvquant.layerwise.processes import CPU

_PROBE = 512
"""Rows and columns of the product that tells how fast the machine is."""

_CGROUP = (
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"), Path("/sys/fs/cgroup/memory/memory.usage_in_bytes")),
)


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
        folder: to work in; it need not be there.
        processes: that share the machine's memory.
    """
    own = None if device.type == CPU.type else available_memory(device)
    return Room(available_memory(CPU) // processes, available_disk(folder), own)


def available_memory(device: torch.device) -> int:
    """Bytes that can still be had: of the device, or of the machine within the limits of its container."""
    if device.type != CPU.type:
        free, _ = torch.accelerator.get_memory_info(device)
        return free
    return min([_free_memory(), *_cgroup_room()])


def available_disk(folder: Path) -> int:
    """Bytes free where a folder is or will be."""
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    return shutil.disk_usage(existing).free


def operations_per_second(device: torch.device, dtype: torch.dtype) -> float:
    """How fast the machine multiplies matrices, from a product that takes milliseconds."""
    left = torch.ones(_PROBE, _PROBE, device=device, dtype=dtype)
    seconds: list[float] = []
    for _ in range(3):
        started = time.perf_counter()
        float((left @ left)[0, 0])  # waits for the device
        seconds.append(time.perf_counter() - started)
    return 2 * _PROBE**3 / min(seconds)


def _free_memory() -> int:
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable")) * 1024


def _cgroup_room() -> list[int]:
    """What a container may still take, where it has a limit."""
    found: list[int] = []
    for limit, usage in _CGROUP:
        if limit.is_file() and (text := limit.read_text(encoding="ascii").strip()) != "max":
            found.append(int(text) - int(usage.read_text(encoding="ascii")))
    return found
