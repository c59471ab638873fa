"""What an evaluation leaves behind: figures, where they come from, and one row per item."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError, field_serializer

from mvquant.errors import EvaluationError
from mvquant.evaluation.statistics import Estimate
from mvquant.evaluation.task_file import Knowledge, mistakes
from mvquant.evaluation.whole_file import write_whole


class _Saved(BaseModel):
    # A choice can have a log-likelihood of minus infinity, which JSON has no number for.
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


class ItemRow(NamedTuple):
    """One answered item; an array in JSON, to keep files small.

    Attributes:
        log_likelihoods: natural, summed over tokens, in the order of the item's choices; None where the answer was
            generated.
        text: what was generated, where the prediction is only a part of it.
        tokens: how many tokens were generated.
        ended: whether the answer ended by itself, by a stop string or an end token; False where it was cut at the
            task's limit.
    """

    id: str
    prediction: str
    answer: str
    correct: bool
    log_likelihoods: tuple[float, ...] | None = None
    text: str | None = None
    tokens: int | None = None
    ended: bool | None = None


class TaskResult(_Saved):
    """One task: `n` items answered, and those that were too long for the model to read whole.

    `too_long` items are neither cut nor scored: they count in no figure. `prompts` and `item_hashes`, in the order of
    `rows`, are kept only where the items are not a task file's own but lm-evaluation-harness's: `data_hash` is then
    that of the items that were asked, and two results are about the same test where the items of both agree.
    """

    task: str
    version: int
    knowledge: Knowledge
    answer_by: Literal["generation", "choice"]
    seed: int | str | None
    data_hash: str
    chance: float
    n: int
    accuracy: Estimate
    corrected: Estimate
    too_long: tuple[str, ...]
    rows: tuple[ItemRow, ...]
    prompts: tuple[str, ...] | None = None
    item_hashes: tuple[str, ...] | None = None

    @field_serializer("rows", when_used="json")
    def _short_rows(self, rows: tuple[ItemRow, ...]) -> list[list[object]]:
        """Rows without the None at their end, which is most of some files."""
        return [list(row[: max(place for place, part in enumerate(row, start=1) if part is not None)]) for row in rows]


class GroupResult(_Saved):
    """The mean over the tasks of one group; `corrected` is chance-corrected accuracy."""

    tasks: tuple[str, ...]
    accuracy: Estimate
    corrected: Estimate


class Subject(_Saved):
    """Who was judged. The evaluator knows nothing of it: the caller says.

    Attributes:
        bits_per_weight: scales and the like included.
        bits_per_cached_key: of a value of K in the cache, everything counted; None where it is cached as it comes.
        bits_per_cached_value: the same of V.
    """

    model: str
    plan_hash: str | None = None
    bits_per_weight: float | None = None
    bits_per_cached_key: float | None = None
    bits_per_cached_value: float | None = None


class EvalResult(_Saved):
    """One model on some tasks. Accuracies are fractions; intervals are 95 %.

    Attributes:
        schema_version: raised whenever a figure changes its meaning.
        subject: the model.
        versions: of python, torch, transformers and mvquant.
        dtype: of the model's floating-point parameters.
        device: where it ran.
        decoding: the only way there is; no seed is needed.
        batch_size: prompts per batch; moves figures by float noise only.
        limit: items per task, the first ones of each; None for all.
        tasks: by task name.
        groups: `contextual` and `parametric`, as far as there were tasks.
        without_data: tasks that were wanted and not asked, because their data was not there, with what was missing.
    """

    schema_version: Literal[1] = 1
    subject: Subject
    versions: dict[str, str]
    dtype: str
    device: str
    decoding: Literal["greedy"] = "greedy"
    batch_size: int
    limit: int | None
    tasks: dict[str, TaskResult]
    groups: dict[Knowledge, GroupResult]
    without_data: dict[str, str] = {}

    def save(self, path: Path) -> None:
        """Write the result as JSON; `path` appears only when complete."""
        save_results([self], path)

    @classmethod
    def load(cls, path: Path) -> "EvalResult":
        """Read a file with one result.

        Raises:
            EvaluationError: no result, several, or not a result.
        """
        results = load_results(path)
        if len(results) != 1:
            message = f"{path} holds {len(results)} results where one is needed: use load_results"
            raise EvaluationError(message)
        return results[0]


def save_results(results: Sequence[EvalResult], path: Path) -> None:
    """Write one result per line (so that a single one is plain JSON); `path` appears only when complete.

    Raises:
        EvaluationError: the file cannot be written.
    """
    write_whole(path, "".join(result.model_dump_json() + "\n" for result in results))


def load_results(path: Path) -> list[EvalResult]:
    """Read a file with any number of results.

    Raises:
        EvaluationError: missing, or a line that is not a result of this schema version.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        message = f"cannot read {path}: {error}"
        raise EvaluationError(message) from None
    return [_parse(line, path, number) for number, line in enumerate(lines, start=1) if line.strip()]


def _parse(line: str, path: Path, number: int) -> EvalResult:
    try:
        return EvalResult.model_validate_json(line)
    except ValidationError as error:
        message = f"{path}, line {number}: not a result of this mvquant: {mistakes(error)[0]}; evaluate again"
        raise EvaluationError(message) from None
