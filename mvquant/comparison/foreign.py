"""Finished checkpoints, whoever made them: what they take, by their files, and what is needed to load them."""

import json
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from math import prod
from pathlib import Path
from typing import Any

from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

from mvquant.arch import ModelView
from mvquant.checkpoint.folder import CONFIG
from mvquant.errors import CheckpointError

PACKAGES: dict[str, tuple[str, ...]] = {
    "aqlm": ("aqlm",),
    "auto-round": ("auto-round",),
    "awq": ("gptqmodel",),
    "bitsandbytes": ("bitsandbytes",),
    "compressed-tensors": ("compressed-tensors",),
    "eetq": ("eetq",),
    "gptq": ("gptqmodel", "optimum"),
    "hqq": ("hqq",),
    "quanto": ("optimum-quanto",),
    "torchao": ("torchao",),
    "vptq": ("vptq",),
}
"""What transformers needs beside itself, by `quant_method`; of any other it says so itself."""

_LENGTH_BYTES = 8


def quantization_of(folder: Path) -> dict[str, Any]:
    """The `quantization_config` of a checkpoint; empty where nothing is quantized.

    Raises:
        CheckpointError: its config cannot be read.
    """
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        found = config.get("quantization_config") or {}
        return dict(found)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: not the config of a model ({error})") from None


def obstacle(method: str) -> str | None:
    """Why a checkpoint of a quantization cannot be loaded here, and the way out; None where it can.

    Args:
        method: its `quant_method`; a method that transformers does not know it skips, and fills the weights at random.
    """
    if not any(known.partition("_")[0] == method or known == method for known in AUTO_QUANTIZATION_CONFIG_MAPPING):
        reader = f"transformers {version('transformers')}"
        return f"quantized by {method!r}, which {reader} cannot read: dequantize it with the package that made it"
    missing = [package for package in PACKAGES.get(method, ()) if not _is_installed(package)]
    if missing:
        return f"{method} checkpoints need {' and '.join(missing)}: pip install {' '.join(missing)}"
    return None


def _is_installed(package: str) -> bool:
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True


def stored_bytes(folder: Path) -> dict[str, int]:
    """Bytes of every tensor in the safetensors files of a folder, by name; no tensor is read.

    Raises:
        CheckpointError: there is no such file, or one that is cut short.
    """
    found: dict[str, int] = {}
    for path in sorted(folder.glob("*.safetensors")):
        for name, entry in _header(path).items():
            if name != "__metadata__":
                start, end = entry["data_offsets"]
                found[name] = end - start
    if not found:
        raise CheckpointError(f"{folder} has no weights as safetensors")
    return found


def _header(path: Path) -> dict[str, Any]:
    """The table of contents of a safetensors file (its first 8 bytes are the table's length)."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
            header = json.loads(file.read(min(length, path.stat().st_size)))
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is not a safetensors file ({error}): copy it again") from None
    if path.stat().st_size != _LENGTH_BYTES + length + max(ends, default=0):
        raise CheckpointError(f"{path} is cut short, or longer than it says: copy it again")
    return header


def measured_bits_per_weight(stored: Mapping[str, int], view: ModelView) -> float | None:
    """Average bits of a weight of the decoder layers, with all that is stored beside it but biases.

    Packed integers, scales, zero points, indices and the weights that were left as they are: every tensor below the
    name of a Linear counts; those of experts count together. So it is what a plan without ignored modules says.

    Args:
        stored: bytes by the name of a tensor.
        view: structure of the model that the checkpoint was made of.

    Returns:
        None where some weight is nowhere: the checkpoint has other names or another structure.
    """
    places = {weight.name if weight.kind == "linear" else weight.name.rpartition(".")[0] for weight in view.weights}
    taken = dict.fromkeys(places, 0)
    for name, size in stored.items():
        place = next((prefix for prefix in _prefixes(name) if prefix in taken), None)
        if place is not None and name != f"{place}.bias":
            taken[place] += size
    if not all(taken.values()):
        return None
    return 8 * sum(taken.values()) / sum(prod(weight.shape) for weight in view.weights)


def _prefixes(name: str) -> list[str]:
    """Every module that a tensor lies in.

    >>> _prefixes("layers.0.q_proj.weight")
    ['layers.0.q_proj', 'layers.0', 'layers']
    """
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(len(parts) - 1, 0, -1)]
