"""Public data sets: from a local folder in the Hub's own layouts if one is given, otherwise from the Hub."""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mvquant.errors import EvaluationError, MissingDataError

VARIABLE = "MVQUANT_DATA"
"""Names the folder of local data where no `--data-dir` is given."""

Row = Mapping[str, Any]


@dataclass(frozen=True)
class HubSet:
    """One split of a data set on the Hub.

    Attributes:
        name: what its files are called outside the Hub, such as `gsm8k` in `gsm8k.test.jsonl`.
        repository: owner and name on the Hub.
        config: the folder of its files there.
        fields: what every row must have, with the type of each.
    """

    name: str
    repository: str
    config: str
    fields: Mapping[str, type]
    split: str = "test"

    @property
    def patterns(self) -> tuple[str, ...]:
        """Where its files may lie below the data folder; the first pattern that finds any counts."""
        short = self.repository.split("/")[1]
        parquet = f"{self.config}/{self.split}-*.parquet"
        return (
            f"{self.repository}/{parquet}",
            f"{short}/{parquet}",
            f"{self.name}.{self.split}.jsonl",
            f"{self.name}/{self.split}.jsonl",
        )

    @property
    def download(self) -> str:
        """The command that puts it below DATA, where `patterns` find it."""
        short = self.repository.split("/")[1]
        return f"hf download {self.repository} --repo-type dataset --local-dir DATA/{short}"


GSM8K = HubSet("gsm8k", "openai/gsm8k", "main", {"question": str, "answer": str})
AQUA_RAT = HubSet("aqua_rat", "deepmind/aqua_rat", "raw", {"question": str, "options": list, "correct": str})
IMDB = HubSet("imdb", "stanfordnlp/imdb", "plain_text", {"text": str, "label": int})


def local_folder(given: Path | None) -> Path | None:
    """Return the folder of local data: the one given, or the environment's; None where there is neither.

    Raises:
        EvaluationError: it does not exist.
    """
    named = given or (Path(os.environ[VARIABLE]) if os.environ.get(VARIABLE) else None)
    if named is not None and not named.is_dir():
        message = f"the data folder {named} does not exist: give one with --data-dir or {VARIABLE}, or neither"
        raise EvaluationError(message)
    return named


def read_rows(wanted: HubSet, given: Path | None = None) -> Iterator[tuple[str, Row]]:
    """Yield every row of a data set after the place that it stands at.

    Raises:
        MissingDataError: the data is neither in the folder nor, where no folder is named, to be had from the Hub.
        EvaluationError: a row is not as it must be; names file and line.
    """
    folder = local_folder(given)
    rows = _from_hub(wanted) if folder is None else _from_folder(wanted, folder)
    for where, row in rows:
        for field, kind in wanted.fields.items():
            if not isinstance(row.get(field), kind):
                message = f"{where}: {field}: {kind.__name__} is needed, and there is {row.get(field)!r}"
                raise EvaluationError(message)
        yield where, row


def _from_folder(wanted: HubSet, folder: Path) -> Iterator[tuple[str, Row]]:
    for pattern in wanted.patterns:
        for path in sorted(folder.glob(pattern)):
            yield from _parquet(path) if path.suffix == ".parquet" else _json_lines(path)
        if any(folder.glob(pattern)):
            return
    why = f"{wanted.name}: no data in {folder}: none of {', '.join(wanted.patterns)}"
    raise MissingDataError(why, wanted.download)


def _parquet(path: Path) -> Iterator[tuple[str, Row]]:
    from pyarrow import ArrowException, parquet

    try:
        rows = parquet.read_table(path).to_pylist()
    except (OSError, ArrowException) as error:
        message = f"{path}: not a Parquet file that can be read: {str(error).splitlines()[0]}"
        raise EvaluationError(message) from None
    for number, row in enumerate(rows, start=1):
        yield f"{path}, row {number}", row


def _json_lines(path: Path) -> Iterator[tuple[str, Row]]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        message = f"cannot read {path}: {error}"
        raise EvaluationError(message) from None
    for number, line in enumerate(lines, start=1):
        if line.strip():
            where = f"{path}, line {number}"
            yield where, _json_object(where, line)


def _json_object(where: str, line: str) -> Row:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        message = f"{where}: not JSON: {error}"
        raise EvaluationError(message) from None
    if not isinstance(row, dict):
        message = f"{where}: not an object with fields"
        raise EvaluationError(message)
    return row


def why_unread(error: Exception) -> str:
    """Say why `datasets` could not read a set; its error over a broken file leaves that to what caused it."""
    from datasets.exceptions import DatasetGenerationError

    said = str(error).strip()
    cause = str(error.__cause__ or "").strip() if isinstance(error, DatasetGenerationError) else ""
    return (f"{said}: {cause}" if cause else said) or type(error).__name__


def _from_hub(wanted: HubSet) -> Iterator[tuple[str, Row]]:
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    place = f"https://huggingface.co/datasets/{wanted.repository}"
    try:
        found = load_dataset(wanted.repository, wanted.config, split=wanted.split)
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        reason = why_unread(error).split("\n")[0]
        raise MissingDataError(f"{wanted.name}: {place} cannot be had ({reason})", wanted.download) from None
    for number, row in enumerate(found, start=1):
        yield f"{place}, row {number}", dict(row)
