"""What an adapter says of its package."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mvquant.arch import ModelView
from mvquant.method_settings import BackendName, MethodName
from mvquant.plan import Plan


def _as_it_is(_source: Path) -> None:
    """Leave a source folder alone."""


@dataclass(frozen=True)
class FolderBackend:
    """A package that takes a whole model folder.

    Attributes:
        name: as recipes have it.
        families: model types that it was tried with; others are refused.
        command: from the files of jobs (one, but in tests) to the child process that does them.
        mistakes: yields what of a plan the package cannot do, each with the way out.
        environment: variables for the child beside the usual ones.
        one_scheme: methods with which it rounds all modules in one scheme. Those that a plan gives more bits are
            rounded to nearest, of the weights as it saw them.
        devices: types of those that it can run layers on; the model itself lies in the machine's memory.
        prepare: changes the source folder to the package's liking.
        weight_bytes: of a weight as the child process holds it before it is packed; None: those of the model's dtype.
        saved_copies: of the quantized model that lie in the work folder at once.
    """

    name: BackendName
    families: frozenset[str]
    command: Callable[..., list[str]]
    mistakes: Callable[[Plan, ModelView], Iterable[str]]
    environment: Mapping[str, str] = field(default_factory=dict)
    one_scheme: frozenset[MethodName] = frozenset()
    devices: frozenset[str] = frozenset({"cpu"})
    prepare: Callable[[Path], None] = _as_it_is
    weight_bytes: int | None = None
    saved_copies: int = 1
