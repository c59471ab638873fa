"""Our own tasks through lm-evaluation-harness, for the engines that it has and mvquant has not, such as vLLM.

The harness gets the same items, asks them in its way, and logs what came; the rows are those of our own runner.
"""

from collections.abc import Sequence
from pathlib import Path

from transformers import AutoTokenizer

from mvquant.evaluation.chat import as_chat
from mvquant.evaluation.harness import run_prepared
from mvquant.evaluation.harness_data import Prepared, prepare
from mvquant.evaluation.result import TaskResult
from mvquant.evaluation.tasks import HarnessTask, Task

HF = "hf"
"""The engine that mvquant runs by itself: transformers."""


def prepare_own(tasks: Sequence[Task], folder: Path, model: Path, data: Path | None = None) -> Prepared:
    """Have the harness read the items of our own tasks.

    Args:
        tasks: from `load_tasks`, with the count of the model's tokenizer.
        folder: the `eval/` folder that they came from.
        model: the folder of the model, for its tokenizer.
        data: the folder of local data sets.

    Raises:
        UsageError: the harness is not installed.
        EvaluationError: a tokenizer that brings code along.
    """
    wanted = [HarnessTask(task.name, task.knowledge, task.file.metadata.chance) for task in tasks]
    return prepare(wanted, str(model), folder=folder / "tasks", defaults=False, data=data)


def run_own(
    model: Path,
    tasks: Sequence[Task],
    prepared: Prepared,
    *,
    engine: str,
    limit: int | None = None,
    batch_size: int = 64,
    device: str | None = None,
    chat_template: bool = False,
) -> list[TaskResult]:
    """Have an engine of the harness answer our own tasks.

    Args:
        model: the folder that the engine loads.
        tasks: from `load_tasks`.
        prepared: the same tasks, from `prepare_own`.
        engine: `vllm`, or any other model type that the harness knows.
        limit: the first so many items of each task; None for all.
        batch_size: prompts per batch.
        device: None leaves it to the engine.
        chat_template: put prompts into the chat template of the tokenizer, in the harness's way.

    Raises:
        UsageError: the harness does not know the engine.
        EvaluationError: no chat template where one is wanted, and what `run_prepared` raises.
    """
    asked = as_chat(tasks, AutoTokenizer.from_pretrained(model)) if chat_template else tasks
    found = run_prepared(
        str(model),
        prepared,
        engine=engine,
        limit=limit,
        batch_size=batch_size,
        device=device,
        chat_template=chat_template,
    )
    return [_as_ours(result, task) for result, task in zip(found, asked, strict=True)]


def _as_ours(result: TaskResult, task: Task) -> TaskResult:
    """Items by their ids instead of their numbers, and what the task file says of itself."""
    ids = [item.id for item in task.items]
    return result.model_copy(
        update={
            "version": task.file.metadata.version,
            "seed": task.file.metadata.seed,
            "data_hash": task.data_hash,
            "rows": tuple(row._replace(id=ids[int(row.id)]) for row in result.rows),
            "too_long": tuple(ids[int(number)] for number in result.too_long),
            "prompts": None,
            "item_hashes": None,
        }
    )
