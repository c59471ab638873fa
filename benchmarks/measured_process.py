"""A program in a process of its own, and what it took. Linux only: it reads /proc and the kernel's own maximum."""

import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Linux counts the memory of the process that starts a child into the child's own maximum: nothing heavy is
# imported up here.

MIB = 1 << 20
POLL_SECONDS = 0.02


@dataclass(frozen=True)
class Run:
    """What one run took."""

    seconds: float
    """Wall clock from start to exit."""
    cpu_seconds: float
    """User and system time of all threads."""
    peak_mib: float
    """Largest resident set of one process, its children among them, as the kernel saw it; with mapped files."""
    peak_anonymous_mib: float
    """Largest sample of what the process and its children hold together, without mapped files; what they share counts
    once."""
    disk_bytes: int
    """Size of the folder written."""
    other_cpu_seconds: float
    """What the rest of the machine computed meanwhile; much of it makes `seconds` too long."""


def measured_run(name: str, command: Sequence[str | Path], out: Path, environment: Mapping[str, str]) -> Run:
    """Run a command that writes the folder `out`, from the folder that `out` is in; exit with its log if it fails."""
    os.sync()  # else a run pays for what the one before it wrote
    log = out.with_suffix(".log")
    with log.open("w") as stream:
        busy, started = _busy_seconds(), time.perf_counter()
        # some packages write logs where they are started
        process = subprocess.Popen(
            command, env=_importing_here(environment), cwd=out.parent, stdout=stream, stderr=subprocess.STDOUT
        )
        resident = anonymous = 0
        while True:
            pids = list(_family(process.pid))
            now = sum(_kib(f"/proc/{pid}/status", "RssAnon:") for pid in pids) * 1024
            if now > resident:
                resident, anonymous = now, max(anonymous, now if len(pids) == 1 else _shared_once(pids))
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if pid:
                break
            time.sleep(POLL_SECONDS)
        seconds, busy = time.perf_counter() - started, _busy_seconds() - busy
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{name} failed:\n{log.read_text()}")
    cpu_seconds = usage.ru_utime + usage.ru_stime
    return Run(
        seconds=round(seconds, 2),
        cpu_seconds=round(cpu_seconds, 2),
        peak_mib=round(usage.ru_maxrss * 1024 / MIB, 1),
        peak_anonymous_mib=round(anonymous / MIB, 1),
        disk_bytes=sum(path.stat().st_size for path in out.rglob("*") if path.is_file()),
        other_cpu_seconds=round(busy - cpu_seconds, 2),
    )


def machine() -> dict[str, Any]:
    """Say which machine this is."""
    fields = [line.partition(":") for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()]
    models = [value.strip() for key, _, value in fields if key.strip() == "model name"]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": next(iter(models), platform.processor()),
        "cores": os.cpu_count(),
        "memory_gib": round(memory / (1 << 30), 1),
        "system": platform.platform(),
    }


def _importing_here(environment: Mapping[str, str]) -> dict[str, str]:
    """Let `python -m benchmarks...` work from any folder."""
    return {**environment, "PYTHONPATH": str(Path(__file__).parent.parent)}


def _family(pid: int) -> Iterator[int]:
    """Yield a process, its children, theirs, ..."""
    yield pid
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):  # the thread has just ended
            for child in children.read_text(encoding="utf-8").split():
                yield from _family(int(child))


def _shared_once(pids: Sequence[int]) -> int:
    """Memory of processes without mapped files, in bytes, with pages that they share, as after a fork, counted once.

    Reading it holds up those processes, so that it is not to be done all the time.
    """
    return sum(_kib(f"/proc/{pid}/smaps_rollup", "Pss_Anon:") for pid in pids) * 1024


def _kib(file: str, field: str) -> int:
    try:
        lines = Path(file).read_text(encoding="utf-8").splitlines()
    except OSError:  # it has just ended
        return 0
    # a process that nobody has waited for yet has no such line
    return sum(int(line.split()[1]) for line in lines if line.startswith(field))


def _busy_seconds() -> float:
    """Seconds that all cores together were not idle since the machine started."""
    with Path("/proc/stat").open(encoding="utf-8") as stream:
        user, nice, system, _idle, _wait, *interrupts = map(int, stream.readline().split()[1:9])
    return (user + nice + system + sum(interrupts)) / os.sysconf("SC_CLK_TCK")
