"""Files that appear only when they are complete."""

import os
from collections.abc import Callable
from pathlib import Path

from mvquant.errors import EvaluationError


def write_whole(path: Path, text: str) -> None:
    """Write a text file that appears only when it is complete.

    Raises:
        EvaluationError: the disk is full, say.
    """

    def save(beside: Path) -> None:
        beside.write_text(text, encoding="utf-8")

    save_whole(path, save)


def save_whole(path: Path, save: Callable[[Path], None]) -> None:
    """Have a file written beside its place, and put there when it is complete.

    Raises:
        EvaluationError: the disk is full, say.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            save(beside)
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)
    except OSError as error:
        message = f"cannot write {path}: {error}"
        raise EvaluationError(message) from None
