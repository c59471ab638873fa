"""What lm-evaluation-harness logs of its samples, as our rows."""

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from mvquant.errors import EvaluationError
from mvquant.evaluation.result import ItemRow, TaskResult
from mvquant.evaluation.statistics import accuracy, chance_corrected
from mvquant.evaluation.tasks import HarnessTask

NOT_APPLICABLE = -1.0
"""What RULER's tasks report for lengths other than the item's own."""

Sample = Mapping[str, Any]


def task_result(
    task: HarnessTask, samples: Sequence[Sample], version: str | int | float | None, too_long: Sequence[int] = ()
) -> TaskResult:
    """Turn the harness's logged samples of one task into our rows; of several filters, the first counts.

    Args:
        task: its name, and what it counts towards.
        samples: what the evaluator logged.
        version: of the task, by the harness.
        too_long: numbers of the items that were not asked, because the model could not read them whole.

    Raises:
        EvaluationError: log-likelihoods that are NaN, or a metric that says neither right nor wrong.
    """
    if not samples:
        message = f"task {task.name}: lm-evaluation-harness answered no item"
        raise EvaluationError(message)
    first_filter = samples[0]["filter"]
    chosen = [sample for sample in samples if sample["filter"] == first_filter]
    rows = tuple(_row(task.name, sample) for sample in chosen)
    estimate = accuracy(sum(row.correct for row in rows), len(rows))
    return TaskResult(
        task=task.name,
        version=_number(version),
        knowledge=task.knowledge,
        answer_by="generation" if rows[0].log_likelihoods is None else "choice",
        seed=None,
        data_hash=_hash(map(_asked, chosen)),
        chance=task.chance,
        n=len(rows),
        accuracy=estimate,
        corrected=chance_corrected(estimate, task.chance),
        too_long=tuple(map(str, too_long)),
        rows=rows,
        prompts=tuple(str(_prompt(sample)) for sample in chosen),
        item_hashes=tuple(_hash([_asked(sample)]) for sample in chosen),
    )


def _number(version: str | int | float | None) -> int:
    """The harness's versions are numbers such as 3.0; ours are whole."""
    try:
        return int(float(version or 0))
    except ValueError:
        return 0


def _asked(sample: Sample) -> str:
    """What was asked and what is right, by the harness's own hashes."""
    return "\n".join(str(sample[key]) for key in ("doc_hash", "prompt_hash", "target_hash"))


def _hash(asked: Iterable[str]) -> str:
    return hashlib.sha256("".join(asked).encode()).hexdigest()


def _row(task: str, sample: Sample) -> ItemRow:
    name, correct = str(sample["doc_id"]), _is_right(task, sample)
    responses = sample["filtered_resps"]
    if not isinstance(responses[0], (list, tuple)):
        prediction, text = str(responses[0]), str(sample["resps"][0][0])
        whole = None if prediction.strip() == text.strip() else text
        return ItemRow(name, prediction, str(sample["target"]), correct, None, whole)
    scores = tuple(float(response[0]) for response in responses)
    if any(math.isnan(score) for score in scores):
        message = f"task {task}: the model's logits are NaN or infinite: no answer can be scored"
        raise EvaluationError(message)
    choices = [_continuation(sample, index).strip() for index in range(len(scores))]
    target = sample["target"]
    answer = choices[target] if isinstance(target, int) and target < len(choices) else str(target)
    prediction = choices[scores.index(max(scores))]
    return ItemRow(name, prediction, answer, correct, tuple(round(score, 4) for score in scores))


def _prompt(sample: Sample) -> object:
    return next(iter(argument_lists(sample)))[0]


def _continuation(sample: Sample, index: int) -> str:
    return str(list(argument_lists(sample))[index][1])


def argument_lists(sample: Sample) -> Iterator[Sequence[object]]:
    """Arguments as the evaluator keeps them, lists, or as its result files do, mappings."""
    arguments = sample["arguments"]
    for entry in arguments.values() if isinstance(arguments, Mapping) else arguments:
        yield list(entry.values()) if isinstance(entry, Mapping) else entry


def _is_right(task: str, sample: Sample) -> bool:
    values = {name: sample[name] for name in sample["metrics"]}
    scored = [(name, float(value)) for name, value in values.items() if isinstance(value, (int, float))]
    relevant = [(name, value) for name, value in scored if value != NOT_APPLICABLE]
    if not relevant or not 0 <= relevant[0][1] <= 1:
        message = f"task {task}: its metrics {sorted(values)} say of no item that it is right or wrong"
        raise EvaluationError(message)
    return relevant[0][1] == 1
