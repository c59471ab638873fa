"""The data of lm-evaluation-harness's own tasks: read or made before a model is loaded, and what is missing named."""

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mvquant.errors import EvaluationError, UsageError
from mvquant.evaluation.hub_data import why_unread
from mvquant.evaluation.missing import MissingTask
from mvquant.evaluation.tasks import HarnessTask

INSTALL = "pip install 'mvquant[eval]'"

SEED = 0
"""With which the harness itself seeds `random` before it makes the texts of RULER's tasks."""

# What building a task raises where a network, a package or a tokenizer is missing, beside DatasetsError.
BUILDING_ERRORS = (OSError, ValueError, RuntimeError, ImportError, LookupError, AssertionError)

CACHE = "ask once where there is a network, then copy the cache that HF_HOME names (~/.cache/huggingface) to here"
RULER = "pip install 'lm_eval[ruler]'"


@dataclass(frozen=True)
class Prepared:
    """Tasks of the harness that can be asked, with their data, and those that cannot.

    Attributes:
        tasks: in the order in which they were asked for.
        built: the harness's own task objects, by name.
        missing: tasks whose data or packages are not there.
        manager: of the harness, which made them.
    """

    tasks: tuple[HarnessTask, ...]
    built: Mapping[str, Any]
    missing: tuple[MissingTask, ...]
    manager: Any


def prepare(
    tasks: Sequence[HarnessTask],
    tokenizer: str | None = None,
    *,
    folder: Path | None = None,
    defaults: bool = True,
    data: Path | None = None,
) -> Prepared:
    """Have the harness read or make the data of its tasks, before a model is loaded.

    Args:
        tasks: by the harness's names, groups excepted.
        tokenizer: the folder of the model's tokenizer, by which RULER's tasks measure their texts.
        folder: more task files, beside the harness's own.
        defaults: whether the harness's own tasks are there (listing them takes some seconds).
        data: the folder of local data sets, for our own tasks.

    Raises:
        UsageError: the harness is not installed.
        EvaluationError: an unknown task or a group, or a tokenizer that brings code along.
    """
    require_harness(tasks)
    if tokenizer is not None:
        _refuse_foreign_code(Path(tokenizer))
    from datasets.exceptions import DatasetsError
    from lm_eval.tasks import TaskManager

    include = None if folder is None else str(folder)
    settings = {"tokenizer": tokenizer, "data_dir": None if data is None else str(data)}
    metadata: dict[str, Any] = {name: value for name, value in settings.items() if value is not None}
    manager: Any = TaskManager(include_path=include, include_defaults=defaults, metadata=metadata)
    for task in tasks:
        _require_task(task.name, manager)
    built: dict[str, Any] = {}
    missing: list[MissingTask] = []
    for task in tasks:
        try:
            built[task.name] = _build(task.name, manager)
        except (*BUILDING_ERRORS, DatasetsError) as error:
            missing.append(_missing(task.name, error))
    return Prepared(tuple(task for task in tasks if task.name in built), built, tuple(missing), manager)


def _require_task(name: str, manager: Any) -> None:  # noqa: ANN401 - the harness is not typed
    if name not in manager.all_tasks:
        message = f"lm-evaluation-harness has no task {name!r}: `lm_eval ls tasks` lists what it has"
        raise EvaluationError(message)
    if name not in manager.all_subtasks:
        message = f"{name} is a group of lm-evaluation-harness: name the tasks in it (`lm_eval ls groups` lists them)"
        raise EvaluationError(message)


def _build(name: str, manager: Any) -> Any:  # noqa: ANN401 - the harness is not typed
    """Build one task as if it were the only one: RULER draws from the common generator while it does."""
    before = random.getstate()
    random.seed(SEED)
    try:
        return manager.load([name])["tasks"][name]
    finally:
        random.setstate(before)


def _missing(name: str, error: Exception) -> MissingTask:
    reason = " ".join(why_unread(error).split())
    packages = isinstance(error, ImportError)
    return MissingTask(name, f"{name}: {reason[:200]}", RULER if packages else CACHE)


def _refuse_foreign_code(folder: Path) -> None:
    """Refuse a tokenizer that brings code along: RULER's tasks load it in a way that would run it."""
    for name in ("config.json", "tokenizer_config.json"):
        path = folder / name
        if path.is_file() and "auto_map" in json.loads(path.read_text(encoding="utf-8")):
            message = f"{path} names code (auto_map) that tasks of lm-evaluation-harness might run: not asked"
            raise EvaluationError(message)


def require_harness(tasks: Sequence[HarnessTask]) -> None:
    """Refuse tasks of the harness where it is missing, before anything is computed.

    Raises:
        UsageError: it is not installed.
    """
    try:
        import lm_eval
    except ImportError as error:
        names = ", ".join(task.name for task in tasks)
        raise UsageError(f"{names}: lm-evaluation-harness is needed ({error}): {INSTALL}") from None
    del lm_eval
