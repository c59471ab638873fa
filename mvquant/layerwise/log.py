"""The log of a quantization, in its checkpoint: first a line on what it was made with, then one for each module."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from mvquant.backends.layer import ModuleRecord

LOG_FILE = "quantization_log.jsonl"

FEWEST_TOKENS = 128
"""Calibration tokens below which a module is warned of: fewer than a group has columns say little of its inputs."""


def log_text(made_with: Mapping[str, Any], records: Iterable[ModuleRecord]) -> str:
    """Return the log.

    >>> print(log_text({"method": "rtn"}, [ModuleRecord(module="q_proj", seconds=0.12345)]), end="")
    {"method": "rtn"}
    {"module": "q_proj", "seconds": 0.123}
    """
    lines = [made_with, *(_rounded(record.model_dump(mode="json", exclude_none=True)) for record in records)]
    return "".join(json.dumps(line) + "\n" for line in lines)


def warn_of(records: Iterable[ModuleRecord], fewest: int = FEWEST_TOKENS) -> list[str]:
    """Say what a person should know of modules: methods' own notes, and which saw few tokens (experts, mostly).

    What is the same of several modules is said once.

    >>> few = [ModuleRecord(module=f"layers.{layer}.experts", seconds=1.0, tokens=7) for layer in range(9)]
    >>> warn_of(few)
    ['layers.0.experts and 8 more: saw 7 calibration tokens only, use more sequences']
    """
    modules: dict[str, list[str]] = {}
    for record in records:
        if record.note:
            modules.setdefault(record.note, []).append(record.module)
        elif record.tokens is not None and record.tokens < fewest:
            said = f"saw {record.tokens} calibration tokens only, use more sequences"
            modules.setdefault(said, []).append(record.module)
    return [f"{_first(names)}: {said}" for said, names in modules.items()]


def _first(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def _rounded(record: dict[str, Any]) -> dict[str, Any]:
    return {**record, "seconds": round(record["seconds"], 3)}
