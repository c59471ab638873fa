"""What a quantization needs, said in a line, and refused where it cannot be had."""

from collections.abc import Iterator
from dataclasses import dataclass

from mvquant.errors import UsageError
from mvquant.layerwise.room import Room

COLUMN_SECONDS = 1e-3
"""What GPTQ takes for a column however few rows it has: a loop of small operations."""


@dataclass(frozen=True)
class Needs:
    """What a quantization takes beyond what the process has already.

    Attributes:
        layer: bytes of what is run at once (one decoder layer, or all), what the method makes of it and works with; on
            the device, where there is one.
        states: bytes of hidden states between layers, which lie in the machine's memory.
        disk: bytes at the peak: in the work folder, and of the output that is written while it is still there.
        operations: multiplications and additions in all.
        columns: that are worked on one after the other.
        package: that holds the whole model, if one does.
        kept: bytes of what the method keeps of all sequences while it works on a layer, in the machine's memory.
    """

    layer: int
    states: int
    disk: int
    operations: float
    columns: int = 0
    package: str | None = None
    kept: int = 0

    @property
    def memory(self) -> int:
        """Bytes at the peak, where all of them lie in the machine's memory."""
        return self.layer + self.beside

    @property
    def beside(self) -> int:
        """Bytes that lie in the machine's memory wherever the layers are run."""
        return self.states + self.kept

    @property
    def beside_parts(self) -> str:
        """What those are, with sizes."""
        kept = f", inputs that the method keeps {_size(self.kept)}" if self.kept else ""
        return f"hidden states {_size(self.states)}{kept}"

    def seconds(self, operations_per_second: float) -> float:
        """Roughly how long it takes."""
        return self.operations / operations_per_second + self.columns * COLUMN_SECONDS

    def line(self, room: Room, operations_per_second: float) -> str:
        """Say it in one line.

        >>> needs = Needs(2 * 10**9, 10**9, 4 * 10**9, 6e12)
        >>> needs.line(Room(memory=8 * 10**9, disk=10**12), 1e11).partition("; ")[0]
        'needs 3.0 GB of memory (weights and work 2.0 GB, hidden states 1.0 GB), of 8.0 GB free'
        >>> needs.line(Room(memory=8 * 10**9, disk=10**12), 1e11).partition("; ")[2]
        '4.0 GB of disk; about 60 s'
        """
        return (
            f"needs {self._memory_line(room)}; {_size(self.disk)} of disk; about "
            f"{_duration(self.seconds(operations_per_second))}"
        )

    def _memory_line(self, room: Room) -> str:
        memory = f"{_size(self.memory)} of memory"
        if self.package is not None:
            return f"{memory} ({self.package} holds the whole model), of {_size(room.memory)} free"
        if room.device is None:
            return f"{memory} (weights and work {_size(self.layer)}, {self.beside_parts}), of {_size(room.memory)} free"
        return (
            f"{_size(self.layer)} of the device's memory, of {_size(room.device)} free; {_size(self.beside)} of memory "
            f"for {_beside(self)}, of {_size(room.memory)} free"
        )


def require_room(needs: Needs, room: Room) -> None:
    """Refuse what cannot fit.

    Raises:
        UsageError: with the numbers, and what makes it smaller.
    """
    for what, taken, free, way_out in _demands(needs, room):
        if taken > free:
            raise UsageError(f"this takes {_size(taken)} of {what} and {_size(free)} are free: {way_out}")


def _demands(needs: Needs, room: Room) -> Iterator[tuple[str, int, int, str]]:
    """What is needed: a name, bytes, bytes free, and the way out if they do not suffice."""
    shorter = "calibrate on fewer or shorter sequences"
    weights = "weights and what the method works with"
    if needs.package is not None:
        by_layers = "use a backend that works layer by layer (llmcompressor, for gptq and awq)"
        what = f"memory at the peak ({needs.package} holds the whole model)"
        yield what, needs.memory, room.memory, f"{by_layers}, or {shorter}"
        yield "disk for the output and its work folder", needs.disk, room.disk, f"choose another place, or {by_layers}"
        return
    taken = needs.memory if room.device is None else needs.beside
    fewer_states = f"keep fewer hidden states in memory (--states-memory), or {shorter}"
    memory_way_out = fewer_states if taken - needs.states <= room.memory else shorter
    if room.device is None:
        parts = f"{weights} {_size(needs.layer)}, {needs.beside_parts}"
        yield f"memory at the peak ({parts})", taken, room.memory, memory_way_out
    else:
        device = f"the device's memory at the peak ({weights})"
        sequences = shorter if needs.kept else "calibrate on shorter sequences"
        yield device, needs.layer, room.device, f"{sequences}, or on the CPU (--device cpu)"
        yield f"memory for {_beside(needs)}", taken, room.memory, memory_way_out
    yield "disk for the output and its work folder", needs.disk, room.disk, f"choose another place, or {shorter}"


def _beside(needs: Needs) -> str:
    """What lies in memory beside the device's."""
    return f"what is kept there ({needs.beside_parts})" if needs.kept else "hidden states"


def _size(count: int) -> str:
    """Return bytes as a person reads them.

    >>> _size(3_000_000), _size(3_000_000_000)
    ('3 MB', '3.0 GB')
    """
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def _duration(seconds: float) -> str:
    """Return a time as a person reads it.

    >>> _duration(0.2), _duration(100.0), _duration(3000.0), _duration(36000.0)
    ('1 s', '100 s', '50 minutes', '10 hours')
    """
    if seconds < 120:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.0f} hours"
