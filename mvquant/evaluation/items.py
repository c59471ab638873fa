"""Items: what is asked and what is right, line by line from JSON-lines files."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from mvquant.errors import EvaluationError
from mvquant.evaluation.task_file import mistakes


class Item(BaseModel):
    """One question. Other keys of its line are kept: they are part of the data and of its hash."""

    model_config = ConfigDict(frozen=True, extra="allow")

    id: str = Field(min_length=1)
    prompt: str = Field(min_length=1)
    answer: str = Field(min_length=1)
    choices: tuple[str, ...] | None = None

    @model_validator(mode="after")
    def _answer_is_a_choice(self) -> "Item":
        if self.choices is not None and (self.answer not in self.choices or len(set(self.choices)) < 2):
            message = f"choices {list(self.choices)} must be different and hold the answer {self.answer!r}"
            raise ValueError(message)
        return self


def read_items(path: Path) -> Iterator[tuple[str, Item]]:
    """Yield every item of a JSON-lines file after the place that it stands at.

    Raises:
        EvaluationError: the file cannot be read, or a line is no item; names file and line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        message = f"cannot read its data {path}: {error}"
        raise EvaluationError(message) from None
    # Not splitlines: JSON strings may hold U+2028, which is no line break here.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            where = f"{path}, line {number}"
            yield where, _parsed(where, line)


def _parsed(where: str, line: str) -> Item:
    try:
        return Item.model_validate_json(line)
    except ValidationError as error:
        message = f"{where}: {'; '.join(mistakes(error))}"
        raise EvaluationError(message) from None


def as_items(where: str, rows: Iterable[Mapping[str, Any]]) -> Iterator[tuple[str, Item]]:
    """Yield generated rows as items, after the place that they stand at."""
    for number, row in enumerate(rows, start=1):
        yield f"{where}, item {number}", Item.model_validate(row)


def hash_items(items: Iterable[Item]) -> str:
    """Return the SHA-256 of the items as JSON lines with sorted keys and no spaces."""
    digest = hashlib.sha256()
    for item in items:
        fields = item.model_dump(mode="json", exclude_unset=True)
        line = json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        digest.update(line.encode() + b"\n")
    return digest.hexdigest()
