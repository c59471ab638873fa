"""Tasks: what is asked, what is right, and where the answer is."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from mvquant.errors import ConfigError, EvaluationError, UnknownNameError
from mvquant.evaluation.task_file import Knowledge, TaskFile, mistakes, read_task_file

GROUPS: tuple[Knowledge, ...] = ("contextual", "parametric")


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


@dataclass(frozen=True)
class Task:
    """A task file with its items.

    Attributes:
        file: the task as the harness reads it.
        items: every item, in the order of the data file.
        data_hash: SHA-256 of the items, independent of spacing and key order.
    """

    file: TaskFile
    items: tuple[Item, ...]
    data_hash: str

    @property
    def name(self) -> str:
        """The name in the task file."""
        return self.file.task

    @property
    def knowledge(self) -> Knowledge:
        """The group that the task counts towards."""
        return self.file.metadata.knowledge


def load_tasks(folder: Path, wanted: Sequence[str] = ("all",)) -> list[Task]:
    """Read the tasks below `folder/tasks`, with data files relative to `folder`.

    Args:
        folder: the `eval/` folder.
        wanted: task names and groups (`contextual`, `parametric`, `all`), in any mixture.

    Returns:
        Each wanted task once, contextual ones first, in the order of their file names.

    Raises:
        ConfigError: a task file with mistakes.
        UnknownNameError: a name that is no task and no group.
        EvaluationError: no tasks, or data that cannot be read.
    """
    files = _task_files(folder)
    known = [*files, *GROUPS, "all"]
    for name in wanted:
        if name not in known:
            raise UnknownNameError("task", name, known)
    chosen = [file for file in files.values() if {"all", file.task, file.metadata.knowledge}.intersection(wanted)]
    chosen.sort(key=lambda file: GROUPS.index(file.metadata.knowledge))
    return [_load(file, folder) for file in chosen]


def _task_files(folder: Path) -> dict[str, TaskFile]:
    files: dict[str, TaskFile] = {}
    for path in sorted((folder / "tasks").rglob("*.yaml")):
        file = read_task_file(path)
        if file is None:
            continue
        if file.task in files or file.task in (*GROUPS, "all"):
            raise ConfigError(str(path), [f"task: the name {file.task!r} is taken"])
        files[file.task] = file
    if not files:
        message = f"no task files (*.yaml) in {folder / 'tasks'}: give the folder that holds tasks/ and data/"
        raise EvaluationError(message)
    return files


def _load(file: TaskFile, folder: Path) -> Task:
    path = folder / file.dataset_kwargs.data_files.test
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        message = f"task {file.task}: cannot read its data {path}: {error}"
        raise EvaluationError(message) from None
    items = tuple(_read_items(text, path, needs_choices=file.output_type == "multiple_choice"))
    if not items:
        message = f"task {file.task}: {path} holds no items"
        raise EvaluationError(message)
    repeated = [name for name, count in Counter(item.id for item in items).items() if count > 1]
    if repeated:
        message = f"task {file.task}: {path} uses the id {repeated[0]!r} more than once"
        raise EvaluationError(message)
    return Task(file, items, hash_items(items))


def _read_items(text: str, path: Path, *, needs_choices: bool) -> Iterator[Item]:
    # Not splitlines: JSON strings may hold U+2028, which is no line break here.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            item = Item.model_validate_json(line)
        except ValidationError as error:
            message = f"{path}, line {number}: {'; '.join(mistakes(error))}"
            raise EvaluationError(message) from None
        if needs_choices and item.choices is None:
            message = f"{path}, line {number}: choices: a multiple-choice item needs them"
            raise EvaluationError(message)
        yield item


def hash_items(items: Iterable[Item]) -> str:
    """Return the SHA-256 of the items as JSON lines with sorted keys and no spaces."""
    digest = hashlib.sha256()
    for item in items:
        fields = item.model_dump(mode="json", exclude_unset=True)
        line = json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        digest.update(line.encode() + b"\n")
    return digest.hexdigest()
