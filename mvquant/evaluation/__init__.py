"""Judge a model by what it reads and by what it knows, whoever made it.

    load_tasks -> evaluate -> EvalResult -> compare -> (report)

A task is data: an lm-evaluation-harness YAML file and a JSON-lines file. A result keeps one row per item,
so that any two results on the same items can be compared item by item.
"""

from mvquant.evaluation.compare import Comparison, TaskDrop, compare
from mvquant.evaluation.missing import MissingTask, describe_missing
from mvquant.evaluation.result import (
    EvalResult,
    GroupResult,
    ItemRow,
    Subject,
    TaskResult,
    load_results,
    save_results,
)
from mvquant.evaluation.run import evaluate
from mvquant.evaluation.statistics import Estimate
from mvquant.evaluation.tasks import Item, Knowledge, Task, load_tasks

__all__ = [
    "Comparison",
    "Estimate",
    "EvalResult",
    "GroupResult",
    "Item",
    "ItemRow",
    "Knowledge",
    "MissingTask",
    "Subject",
    "Task",
    "TaskDrop",
    "TaskResult",
    "compare",
    "describe_missing",
    "evaluate",
    "load_results",
    "load_tasks",
    "save_results",
]
