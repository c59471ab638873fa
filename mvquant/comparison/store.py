"""A folder with one file for each (variant, part) that is done, so that an interrupted comparison goes on.

pieces/<variant>/<part>.json    {"fingerprint": ..., "content": ...}
logits/<number>.safetensors     the baseline's logits on running text, until the run ends, however it ends
"""

import json
import os
import re
import shutil
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from pydantic import BaseModel, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mvquant.comparison.fingerprint import Fingerprint
from mvquant.errors import EvaluationError, UsageError
from mvquant.evaluation.whole_file import write_whole

PIECES = "pieces"
LOGITS = "logits"

_HALF_WRITTEN = re.compile(r"\..+\.(json|jsonl|md|html|safetensors)\.\d+")
"""Names that `write_whole` gives to files until they are complete."""

Content = TypeVar("Content", bound=BaseModel)


@dataclass(frozen=True)
class Store:
    """The pieces of one comparison.

    Attributes:
        folder: where they lie.
        note: told, in a sentence, of every piece that is there but stale.
    """

    folder: Path
    note: Callable[[str], None]

    def open(self) -> None:
        """Make the folder, or take up one that holds a comparison.

        Raises:
            UsageError: it holds something else, or cannot be made.
        """
        found = {path.name for path in self.folder.iterdir()} if self.folder.is_dir() else set[str]()
        if self.folder.is_file() or (found and PIECES not in found):
            raise UsageError(f"{self.folder} holds something else than a comparison: choose another folder")
        try:
            (self.folder / PIECES).mkdir(parents=True, exist_ok=True)
            self._clear_leftovers()
        except OSError as error:
            raise UsageError(f"{self.folder}: cannot write there ({error.strerror})") from None

    def _clear_leftovers(self) -> None:
        """Remove what a killed run left: files that were not complete, and logits of who knows which model."""
        for path in self.folder.rglob(".*"):
            if _HALF_WRITTEN.fullmatch(path.name) and path.is_file():
                path.unlink()
        self.drop_logits()

    def load(self, variant: str, part: str, wanted: Fingerprint, kind: type[Content]) -> Content | None:
        """Return a finished piece; None where there is none that was made of exactly the same."""
        path = self._path(variant, part)
        if not path.is_file():
            return None
        try:
            piece = json.loads(path.read_text(encoding="utf-8"))
            made = Fingerprint.model_validate(piece["fingerprint"])
            content = kind.model_validate_json(json.dumps(piece["content"]))
        except (OSError, ValueError, KeyError, TypeError, ValidationError):
            self.note(f"{variant}, {part}: {path} is damaged or of another version; done again")
            return None
        if differences := made.differences(wanted):
            self.note(f"{variant}, {part}: was made with other {', '.join(differences)}; done again")
            return None
        return content

    def save(self, variant: str, part: str, fingerprint: Fingerprint, content: BaseModel) -> None:
        """Keep a finished piece; its file appears only when it is complete.

        Raises:
            EvaluationError: the disk is full, say.
        """
        piece = f'{{"fingerprint": {fingerprint.model_dump_json()},\n"content": {content.model_dump_json()}}}\n'
        write_whole(self._path(variant, part), piece)

    def save_logits(self, index: int, logits: Tensor) -> None:
        """Keep the baseline's logits on one sequence, in their own dtype."""
        path = self._logits_path(index)
        beside = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            path.parent.mkdir(exist_ok=True)
            try:
                save_file({LOGITS: logits.contiguous()}, beside)
                beside.replace(path)
            finally:
                beside.unlink(missing_ok=True)
        except (OSError, SafetensorError) as error:
            message = f"cannot write {path} ({error}): logits on running text need room while variants are compared"
            raise EvaluationError(message) from None

    def logits(self, count: int) -> "StoredLogits | None":
        """The baseline's logits on every sequence; None where any is missing."""
        paths = tuple(self._logits_path(index) for index in range(count))
        return StoredLogits(paths) if all(path.is_file() for path in paths) else None

    def drop_logits(self) -> None:
        """Forget the baseline's logits: nobody needs them any more."""
        shutil.rmtree(self.folder / LOGITS, ignore_errors=True)

    def _logits_path(self, index: int) -> Path:
        return self.folder / LOGITS / f"{index:05d}.safetensors"

    def _path(self, variant: str, part: str) -> Path:
        return self.folder / PIECES / file_name(variant) / f"{file_name(part)}.json"


@dataclass(frozen=True)
class StoredLogits:
    """Logits by sequence, read when they are asked for."""

    paths: tuple[Path, ...]

    def __len__(self) -> int:
        """Number of sequences."""
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        """Logits of one sequence, (position, vocabulary)."""
        return load_file(self.paths[index])[LOGITS].to(torch.device("cpu"))


def file_name(name: str) -> str:
    """A name that every file system takes; one that had to be changed ends in a checksum of what it was.

    >>> file_name("w4a16-g64"), file_name("a/b")
    ('w4a16-g64', 'a-b-07f4401c')
    """
    plain = re.sub(r"[^\w.-]", "-", name, flags=re.ASCII).lstrip(".")
    return plain if plain == name else f"{plain}-{zlib.crc32(name.encode()):08x}"
