"""A model folder as one hash: of what it computes, whatever it is called."""

import hashlib
from pathlib import Path

HASHED = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt")
"""Files of a model folder that decide what it answers."""


def folder_hash(folder: Path) -> str:
    """SHA-256 over the weights, configs and tokenizer of a model folder, by file name."""
    digest = hashlib.sha256()
    for path in sorted({path for pattern in HASHED for path in folder.glob(pattern)}):
        with path.open("rb") as file:
            digest.update(f"{path.name}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()
