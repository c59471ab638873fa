"""Files that appear only when they are complete."""

import os
from pathlib import Path

from mvquant.errors import EvaluationError


def write_whole(path: Path, text: str) -> None:
    """Write a file that appears only when it is complete.

    Raises:
        EvaluationError: the disk is full, say.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            beside.write_text(text, encoding="utf-8")
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)
    except OSError as error:
        message = f"cannot write {path}: {error}"
        raise EvaluationError(message) from None
