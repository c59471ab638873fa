"""Hidden states between two layers: in memory up to a limit, beyond it in files."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mvquant.errors import CheckpointError

DEFAULT_LIMIT = 4 << 30
"""Bytes of hidden states held in memory."""

_STATES = "states"


class HiddenStates:
    """What a layer gets of every calibration sequence of this process, by the sequence's number.

    Attributes:
        limit: bytes that may be held in memory; what is beyond them is in files.
    """

    def __init__(self, limit: int = DEFAULT_LIMIT) -> None:
        self.limit = limit
        self._held: dict[int, Tensor] = {}
        self._files: dict[int, Path] = {}
        self._bytes = 0

    @property
    def held_bytes(self) -> int:
        """Bytes in memory."""
        return self._bytes

    def __iter__(self) -> Iterator[int]:
        """Yield the numbers of the sequences, in rising order."""
        return iter(sorted({*self._held, *self._files}))

    def read(self, number: int) -> Float[Tensor, "_ _ hidden"]:
        """Return the states of a sequence.

        Raises:
            CheckpointError: a file that cannot be read.
        """
        held = self._held.get(number)
        return held if held is not None else _read(self._files[number])

    def write(self, number: int, states: Float[Tensor, "_ _ hidden"], folder: Path, *, also_file: bool = False) -> None:
        """Replace the states of a sequence.

        Args:
            number: of the sequence.
            states: its states.
            folder: where they go if there is no room in memory.
            also_file: write the file in any case, for a later run.

        Raises:
            CheckpointError: the file cannot be written.
        """
        values = states.detach().cpu()
        fits = self._hold(number, values)
        self._files.pop(number, None)
        if also_file or not fits:
            path = _path(folder, number)
            _write(path, values)
            self._files[number] = path

    def take_up(self, numbers: Iterable[int], folder: Path) -> None:
        """Read the states that an earlier run left.

        Raises:
            CheckpointError: some are missing or cannot be read.
        """
        for number in numbers:
            path = _path(folder, number)
            self._hold(number, _read(path))
            self._files[number] = path

    def _hold(self, number: int, values: Tensor) -> bool:
        old = self._held.pop(number, None)
        self._bytes -= 0 if old is None else old.nbytes
        if self._bytes + values.nbytes > self.limit:
            return False
        self._held[number] = values
        self._bytes += values.nbytes
        return True


def _path(folder: Path, number: int) -> Path:
    return folder / f"{number:06d}.safetensors"


def _read(path: Path) -> Tensor:
    try:
        return load_file(path)[_STATES]
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: hidden states cannot be read ({error}): start again without --resume") from None


def _write(path: Path, values: Tensor) -> None:
    """Write beside, then rename: whoever reads the old file goes on reading it."""
    partial = path.with_suffix(".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({_STATES: values.contiguous()}, partial)
        partial.replace(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: hidden states cannot be written ({error})") from None
