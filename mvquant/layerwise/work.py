"""The work folder: what an interrupted quantization needs to go on, at the layer where it stopped.

fingerprint.json                 what the work was made of
plan.json                        the plan that it follows
lock                             held by the process that is at it
layer-00003.safetensors          quantized tensors and changed parameters of a finished layer, its records as metadata
inputs-00004/000017.safetensors  what the next layer gets of sequence 17
package/                         instead of both: what a package for whole models works in, and what it made

Files of layers are written beside and renamed, after the next layer's inputs are complete: a layer whose file is there
is done. So a run that is killed at any moment can be gone on with; one of a package for whole models once that has
done its part.
"""

import fcntl
import json
import shutil
from collections.abc import Collection, Generator, Iterable, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mvquant.backends.folder.run import is_done
from mvquant.backends.layer import ModuleRecord
from mvquant.errors import CheckpointError, UsageError
from mvquant.layerwise.fingerprint import Fingerprint
from mvquant.layerwise.processes import ALONE, SharedWork

FINGERPRINT = "fingerprint.json"
LOCK = "lock"
_META = "mvquant"


class WorkFolder:
    """An open work folder.

    Attributes:
        path: of the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def package(self) -> Path:
        """Return the folder for a package that takes the whole model."""
        return self.path / "package"

    @property
    def package_is_done(self) -> bool:
        """Whether a package for whole models has done its part."""
        return is_done(self.package)

    @property
    def what_is_done(self) -> str | None:
        """What there is to go on from, in words; None if nothing."""
        if self.package_is_done:
            return "all layers done, and not written"
        return f"{self.finished} layers done" if self.finished else None

    @property
    def finished(self) -> int:
        """How many layers are done, from the first on."""
        count = 0
        while self.layer_file(count).is_file():
            count += 1
        return count

    @property
    def plan_file(self) -> Path:
        """Return where the plan is."""
        return self.path / "plan.json"

    def layer_file(self, index: int) -> Path:
        """Return where a finished layer is."""
        return self.path / f"layer-{index:05d}.safetensors"

    def inputs(self, index: int) -> Path:
        """Return the folder of what a layer gets."""
        return self.path / f"inputs-{index:05d}"

    def finish_layer(
        self,
        index: int,
        states: Mapping[str, Mapping[str, Tensor]],
        parameters: Mapping[str, Tensor],
        records: Iterable[ModuleRecord],
    ) -> None:
        """Write down a layer, whose outputs are written already.

        Args:
            index: of the layer.
            states: quantized tensors by module and local name.
            parameters: other parameters that changed, by name.
            records: for the log.

        Raises:
            CheckpointError: the disk is full, or cannot be written to.
        """
        tensors = {f"{module}.{part}": tensor for module, state in states.items() for part, tensor in state.items()}
        tensors |= parameters
        meta = {
            "modules": {module: list(state) for module, state in states.items()},
            "changed": list(parameters),
            "records": [record.model_dump(mode="json", exclude_none=True) for record in records],
        }
        partial = self.layer_file(index).with_suffix(".partial")
        try:
            on_cpu = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
            save_file(on_cpu, partial, metadata={_META: json.dumps(meta)})
            partial.replace(self.layer_file(index))
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{self.path}: layer {index} cannot be written ({error})") from None

    def forget_inputs(self, *, but: int | None = None) -> None:
        """Remove what layers got; but for one of them."""
        for folder in self.path.glob("inputs-*"):
            if but is None or folder != self.inputs(but):
                shutil.rmtree(folder, ignore_errors=True)

    def results(self, layers: int) -> "StoredResults":
        """Return what became of the layers.

        Raises:
            CheckpointError: a file that cannot be read.
        """
        return StoredResults([self.layer_file(index) for index in range(layers)])

    def remove(self) -> None:
        """Remove the folder and all in it."""
        shutil.rmtree(self.path, ignore_errors=True)

    def remove_if_useless(self) -> None:
        """Remove what was begun and cannot be gone on with, unless somebody is at it, or it is nothing of ours."""
        if (self.path / LOCK).is_file() and not self.what_is_done:
            with suppress(UsageError), _locked(self.path):
                self.remove()


class StoredResults:
    """`mvquant.methods.WeightResults` that are read from files when they are asked for.

    Attributes:
        records: of all modules, for the log.
    """

    def __init__(self, files: Iterable[Path]) -> None:
        self.records: list[ModuleRecord] = []
        self._parts: dict[str, tuple[Path, list[str]]] = {}
        self._changed: dict[str, Path] = {}
        for file in files:
            meta = _meta(file)
            self._parts |= {module: (file, parts) for module, parts in meta["modules"].items()}
            self._changed |= dict.fromkeys(meta["changed"], file)
            self.records += [ModuleRecord.model_validate(record) for record in meta["records"]]

    @property
    def changed(self) -> Collection[str]:
        """Full names of parameters that are not quantized and have new values."""
        return self._changed.keys()

    def parameter(self, name: str) -> Tensor:
        """Return the new value of one of `changed`.

        Raises:
            CheckpointError: its file cannot be read.
        """
        return _tensors(self._changed[name], [name])[name]

    def state(self, module: str) -> dict[str, Tensor]:
        """Return a quantized module's tensors by local name.

        Raises:
            CheckpointError: their file cannot be read.
        """
        file, parts = self._parts[module]
        tensors = _tensors(file, [f"{module}.{part}" for part in parts])
        return {part: tensors[f"{module}.{part}"] for part in parts}


def require_no_earlier(path: Path) -> None:
    """Refuse to begin where an interrupted run has left work.

    Raises:
        UsageError: with the way to go on, and the way to start again.
    """
    if done := WorkFolder(path).what_is_done:
        raise UsageError(
            f"{path} holds an interrupted quantization ({done}): go on with --resume, "
            "or remove that folder to start again"
        )


@contextmanager
def opened_work(
    path: Path, fingerprint: Fingerprint, *, resume: bool = False, processes: SharedWork = ALONE
) -> Generator[WorkFolder]:
    """Make a work folder, or take up that of an interrupted run.

    If the block is left by an error, the folder stays, unless there is nothing in it to go on from. Such a folder, left
    by a run that was killed, is begun anew.

    Args:
        path: of the folder.
        fingerprint: of the work that is to be done.
        resume: go on where an earlier run stopped; where there was none, begin.
        processes: that share the folder; the first of them makes it.

    Raises:
        UsageError: an earlier run's work, which is not to be taken up, is not of the same fingerprint, or still going.
        CheckpointError: the folder cannot be written to.
    """
    work = WorkFolder(path)
    if processes.rank > 0:
        processes.wait()
        yield work
        return
    _make(path)
    with _locked(path):
        if work.what_is_done:
            _check(work, fingerprint, resume=resume)
        else:
            _begin(path, fingerprint)
        processes.wait()
        try:
            yield work
        except BaseException:
            if not work.what_is_done:
                work.remove()
            raise


def _make(path: Path) -> None:
    try:
        if path.exists() and any(path.iterdir()) and not (path / LOCK).exists():
            raise UsageError(f"{path} is in the way and was not made by mvquant: move it, or choose another OUT")
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be written to ({error.strerror})") from None


def _begin(path: Path, fingerprint: Fingerprint) -> None:
    """Remove what a run left that had come to nothing, and say what this one makes."""
    for old in path.iterdir():
        if old.is_dir():
            shutil.rmtree(old)
        elif old.name != LOCK:
            old.unlink()
    (path / FINGERPRINT).write_text(fingerprint.model_dump_json(indent=1) + "\n", encoding="utf-8")


def _check(work: WorkFolder, fingerprint: Fingerprint, *, resume: bool) -> None:
    if not resume:
        require_no_earlier(work.path)
    try:
        earlier = Fingerprint.model_validate_json((work.path / FINGERPRINT).read_text(encoding="utf-8"))
    except (OSError, ValidationError, UnicodeDecodeError):
        raise UsageError(
            f"{work.path / FINGERPRINT} is missing or damaged: remove {work.path} to start again"
        ) from None
    if different := earlier.differences(fingerprint):
        raise UsageError(
            f"{work.path} cannot be resumed, what it was made of has changed: {', '.join(different)}. Put that back, "
            "or remove the folder to start again"
        )


@contextmanager
def _locked(path: Path) -> Generator[None]:
    """Keep a second run out; the system lets go of the lock when the process ends, however it ends."""
    with (path / LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UsageError(f"{path}: another run is at work here") from None
        yield


def _meta(file: Path) -> dict[str, Any]:
    try:
        with safe_open(file, framework="pt") as handle:
            return json.loads(handle.metadata()[_META])
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise CheckpointError(f"{file} cannot be read ({error}): remove {file.parent} and start again") from None


def _tensors(file: Path, names: Iterable[str]) -> dict[str, Tensor]:
    try:
        with safe_open(file, framework="pt") as handle:
            return {name: handle.get_tensor(name).clone() for name in names}
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file} cannot be read ({error}): remove {file.parent} and start again") from None
