"""The log of a quantization, in its checkpoint: first a line on what it was made with, then one for each module."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from mvquant.backends.layer import ModuleRecord

LOG_FILE = "quantization_log.jsonl"

FEWEST_TOKENS = 128
"""Calibration tokens below which a module is warned of: fewer than a group has columns say little of its inputs."""

SHOWN = 8
"""Items of a list that are shown on a terminal; the log has them all."""


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

    What is the same of several modules is said once, and long lists are shortened, as of experts: the log has them all.

    >>> few = [ModuleRecord(module=f"layers.{layer}.experts", seconds=1.0, tokens=7) for layer in range(9)]
    >>> warn_of(few)
    ['layers.0.experts and 8 more: saw 7 calibration tokens only, use more sequences']
    """
    modules: dict[str, list[str]] = {}
    for record in records:
        if record.note:
            modules.setdefault(_shortened(record.note), []).append(record.module)
        elif record.tokens is not None and record.tokens < fewest:
            said = f"saw {record.tokens} calibration tokens only, use more sequences"
            modules.setdefault(said, []).append(record.module)
    return [f"{_first(names)}: {said}" for said, names in modules.items()]


def _first(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def _shortened(note: str) -> str:
    """Count what is beyond the first items of a list in a note; its statements have semicolons between them.

    >>> _shortened("experts 0, 1, 2, 3, 4, 5, 6, 7, 8, 9; all were calibrated")
    'experts 0, 1, 2, 3, 4, 5, 6, 7 and 2 more; all were calibrated'
    """
    return "; ".join(map(_first_items, note.split("; ")))


def _first_items(statement: str) -> str:
    items = statement.split(", ")
    rest = len(items) - SHOWN
    return statement if rest <= 0 else f"{', '.join(items[:SHOWN])} and {rest} more"


def _rounded(record: dict[str, Any]) -> dict[str, Any]:
    return {**record, "seconds": round(record["seconds"], 3)}
