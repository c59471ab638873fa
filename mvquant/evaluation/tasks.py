"""Tasks: what is asked, what is right, and where the answer is."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mvquant.errors import ConfigError, EvaluationError, MissingDataError, UnknownNameError
from mvquant.evaluation.items import Item, hash_items, read_items
from mvquant.evaluation.missing import MissingTask, describe_missing
from mvquant.evaluation.sources import PlacedItems, source_items
from mvquant.evaluation.task_file import GroupFile, Knowledge, TaskFile, read_task_file
from mvquant.evaluation.text_length import Count, count_words

__all__ = [
    "GROUPS",
    "AvailableTasks",
    "HarnessTask",
    "Item",
    "Task",
    "available_tasks",
    "harness_tasks",
    "hash_items",
    "load_tasks",
]

GROUPS: tuple[Knowledge, ...] = ("contextual", "parametric")


@dataclass(frozen=True)
class Task:
    """A task file with its items.

    Attributes:
        file: the task as the harness reads it.
        items: every item, in the order of the data.
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


@dataclass(frozen=True)
class HarnessTask:
    """A task of lm-evaluation-harness itself, asked by its name there."""

    name: str
    knowledge: Knowledge
    chance: float = 0.0


@dataclass(frozen=True)
class AvailableTasks:
    """Wanted tasks that can be asked, and those whose data is not there."""

    tasks: tuple[Task, ...]
    missing: tuple[MissingTask, ...]


def load_tasks(
    folder: Path, wanted: Sequence[str] = ("all",), data: Path | None = None, count: Count = count_words
) -> list[Task]:
    """Read the tasks below `folder/tasks`, with shipped items relative to `folder`.

    Args:
        folder: the `eval/` folder.
        wanted: names of tasks and groups, in any mixture; `all` is every task file. Where no group file is called
            `contextual` or `parametric`, these are all tasks of that knowledge.
        data: the folder of local data sets; None for the one that MVQUANT_DATA names, or the Hub.
        count: the length of a text, for tasks whose texts are made to a length: by words, or by a model's tokenizer.

    Returns:
        Each wanted task once, contextual ones first, in the order of their file names. Tasks that only
        lm-evaluation-harness has are left to `harness_tasks`.

    Raises:
        ConfigError: a task file with mistakes.
        UnknownNameError: a name that is no task and no group.
        EvaluationError: no tasks, data that cannot be had (every such task is named) or cannot be read.
    """
    found = available_tasks(folder, wanted, data, count)
    if found.missing:
        raise EvaluationError(describe_missing(found.missing))
    return list(found.tasks)


def available_tasks(
    folder: Path, wanted: Sequence[str] = ("all",), data: Path | None = None, count: Count = count_words
) -> AvailableTasks:
    """Read tasks as `load_tasks` does, but set those apart whose data cannot be had.

    Raises:
        ConfigError: a task file with mistakes.
        UnknownNameError: a name that is no task and no group.
        EvaluationError: no tasks, or data that cannot be read.
    """
    table = _read_table(folder)
    names = table.members(wanted)
    chosen = [file for name, file in table.tasks.items() if name in names]
    chosen.sort(key=lambda file: GROUPS.index(file.metadata.knowledge))
    tasks: list[Task] = []
    missing: list[MissingTask] = []
    for file in chosen:
        try:
            tasks.append(_load(file, folder, data, count))
        except MissingDataError as error:
            missing.append(MissingTask(file.task, error.why, error.way_out))
    return AvailableTasks(tuple(tasks), tuple(missing))


def harness_tasks(folder: Path, wanted: Sequence[str] = ("all",)) -> list[HarnessTask]:
    """Return those of the wanted tasks that lm-evaluation-harness has and `folder` has not, in order of group files.

    Raises:
        ConfigError: a task file with mistakes.
        UnknownNameError: a name that is no task and no group.
    """
    table = _read_table(folder)
    names = table.members(wanted)
    return [task for name, task in table.foreign.items() if name in names]


@dataclass(frozen=True)
class _Table:
    """Everything that has a name: our task files, groups, and the harness's tasks that are in a group."""

    tasks: dict[str, TaskFile]
    groups: dict[str, GroupFile]
    foreign: dict[str, HarnessTask]

    def members(self, wanted: Iterable[str]) -> set[str]:
        """The names of all tasks that are meant.

        Raises:
            UnknownNameError: a name that is none of these.
        """
        known = {*self.tasks, *self.groups, *self.foreign, *GROUPS, "all"}
        found: set[str] = set()
        for name in wanted:
            if name not in known:
                raise UnknownNameError("task", name, known)
            found.update(self._inside(name))
        return found

    def _inside(self, name: str, above: tuple[str, ...] = ()) -> Iterator[str]:
        if name in above:
            raise ConfigError(f"group {name}", [f"task: it contains itself ({' > '.join((*above, name))})"])
        if name in self.groups:
            for member in self.groups[name].task:
                yield from self._inside(member, (*above, name))
        elif name in (*GROUPS, "all"):
            yield from (task for task, file in self.tasks.items() if name in {"all", file.metadata.knowledge})
        else:
            yield name


def _read_table(folder: Path) -> _Table:
    table = _Table({}, {}, {})
    paths = sorted((folder / "tasks").rglob("*.yaml"))
    for path in paths:
        file = read_task_file(path)
        name = file.group if isinstance(file, GroupFile) else file.task
        taken = name in table.tasks or name in table.groups or name == "all"
        if taken or (isinstance(file, TaskFile) and name in GROUPS):
            raise ConfigError(str(path), [f"task: the name {name!r} is taken"])
        if isinstance(file, GroupFile):
            table.groups[name] = file
        else:
            table.tasks[name] = file
    if not table.tasks:
        message = f"no task files (*.yaml) in {folder / 'tasks'}: give the folder that holds tasks/ and data/"
        raise EvaluationError(message)
    for group in table.groups.values():
        table.foreign.update(_foreign(group, {*table.tasks, *table.groups}))
    return table


def _foreign(group: GroupFile, own: set[str]) -> Iterator[tuple[str, HarnessTask]]:
    for name in group.task:
        if name in own:
            continue
        if group.metadata.knowledge is None:
            mistake = f"task: {name} is no task here; metadata.knowledge must say what kind it is in the harness"
            raise ConfigError(f"group {group.group}", [mistake])
        yield name, HarnessTask(name, group.metadata.knowledge, group.metadata.chance)


def _load(file: TaskFile, folder: Path, data: Path | None, count: Count) -> Task:
    try:
        items = tuple(_checked(file, _placed(file, folder, data, count)))
    except MissingDataError:
        raise
    except EvaluationError as error:
        message = f"task {file.task}: {error}"
        raise EvaluationError(message) from None
    if not items:
        message = f"task {file.task}: its data holds no items"
        raise EvaluationError(message)
    return Task(file, items, hash_items(items))


def _placed(file: TaskFile, folder: Path, data: Path | None, count: Count) -> PlacedItems:
    where = file.dataset_kwargs
    if where.file is not None:
        return read_items(folder / where.file)
    return source_items(where.source or "", data, count)


def _checked(file: TaskFile, placed: PlacedItems) -> Iterator[Item]:
    uses: Counter[str] = Counter()
    for where, item in placed:
        uses[item.id] += 1
        if uses[item.id] > 1:
            message = f"{where}: the id {item.id!r} more than once"
            raise EvaluationError(message)
        if file.output_type == "multiple_choice" and item.choices is None:
            message = f"{where}: choices: a multiple-choice item needs them"
            raise EvaluationError(message)
        yield item
