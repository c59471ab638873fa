"""`results.json`: everything that a comparison found, as one value that reports are made from.

Accuracies, drops and shares are fractions, not per cent; an `Estimate` is {value, low, high} with a 95 % interval.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from mvquant.comparison.recipe import ComparisonRecipe
from mvquant.errors import EvaluationError
from mvquant.evaluation.compare import TaskDrop
from mvquant.evaluation.statistics import Estimate
from mvquant.evaluation.task_file import Knowledge, mistakes
from mvquant.evaluation.text_quality import TextQuality

RESULTS_VERSION = 1
"""Raised whenever a figure changes its meaning."""

RESULTS_FILE = "results.json"
FLIPS_FILE = "flips.jsonl"
TABLE_FILE = "table.md"
ANALYSIS_FILE = "analysis.json"
STATS_FILE = "stats.safetensors"
PLANS_FOLDER = "plans"

Role = Literal["baseline", "again", "variant", "control"]
"""`again` is the baseline a second time, in other batches: the noise floor."""


class _Saved(BaseModel):
    # a p-value of 0 or a one-sequence interval can be infinite, which JSON has no number for
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


class TaskInfo(_Saved):
    """One task, the same for every variant.

    Attributes:
        chance: accuracy of the best guess.
        items: how many were asked.
        source: our own runner, or lm-evaluation-harness.
    """

    knowledge: Knowledge
    version: int | str
    chance: float
    answer_by: Literal["generation", "choice"]
    items: int
    data_hash: str
    source: Literal["mvquant", "lm_eval"] = "mvquant"


class TaskScore(_Saved):
    """One variant on one task.

    Attributes:
        n: items answered.
        correct: of those, right.
        corrected: chance-corrected accuracy.
        too_long: items that did not fit the model; they count nowhere.
        cut_off: answers that never ended and were cut at the task's limit; None where choices were scored.
        mean_tokens: length of the generated answers.
        versus_baseline: what was lost on the same items; None for the baseline.
    """

    n: int
    correct: int
    accuracy: Estimate
    corrected: Estimate
    too_long: int
    cut_off: int | None
    mean_tokens: float | None
    versus_baseline: TaskDrop | None


class GroupScore(_Saved):
    """The mean over the tasks of one group; `drop` is of chance-corrected accuracy, None for the baseline."""

    tasks: tuple[str, ...]
    accuracy: Estimate
    corrected: Estimate
    drop: Estimate | None


class TextScore(_Saved):
    """One variant on running text, the same tokens for all.

    Attributes:
        tokens: how many were predicted, in `sequences` sequences.
        perplexity_ratio: over the baseline's, paired by sequence; None for the baseline, as all below.
        kl: mean KL divergence of the next token from the baseline's, in nats.
        kl_tail: its 99.9 % quantile over tokens.
        top_1: share of tokens where both hold the same next token for the likeliest.
        continuations: greedy continuations of the sequences' beginnings.
    """

    sequences: int
    tokens: int
    perplexity: float
    perplexity_ratio: Estimate | None = None
    kl: Estimate | None = None
    kl_tail: float | None = None
    top_1: Estimate | None = None
    continuations: TextQuality | None = None


class Failure(_Saved):
    """What went wrong, and where: planning, loading, a task's name, or `text`."""

    part: str
    message: str


class VariantResult(_Saved):
    """One model of the comparison.

    Attributes:
        name: unique in the comparison.
        summary: one line about it.
        control_of: the variants whose bytes it spends in another way; also of one that was asked for itself.
        model_hash: SHA-256 over the weights and configs that it was made of, or is.
        plan_hash: of `plan_file`.
        plan_file: relative to the folder of the comparison; None where there is no plan.
        calibration_hash: of the calibration tokens; None where none are known.
        bytes: of all tensors on disk; from the plan where there is one.
        bits_per_weight: of the planned modules, scales, zero points and row indices included.
        bits_per_cached_value: of K and V in the cache on average, everything counted over the training context.
        bits_per_cached_key: of K alone.
        tasks: by task name; those that failed are missing.
        contextual_minus_parametric: the headline, in chance-corrected accuracy; None for the baseline.
        failures: empty where all went well.
    """

    name: str
    role: Role
    summary: str
    control_of: tuple[str, ...] = ()
    model_hash: str
    plan_hash: str | None = None
    calibration_hash: str | None = None
    plan_file: str | None = None
    bytes: int | None = None
    bits_per_weight: float | None = None
    bits_per_cached_value: float | None = None
    bits_per_cached_key: float | None = None
    tasks: dict[str, TaskScore] = {}
    groups: dict[Knowledge, GroupScore] = {}
    contextual_minus_parametric: Estimate | None = None
    text: TextScore | None = None
    failures: tuple[Failure, ...] = ()


class Contrast(_Saved):
    """A variant against one of its controls, on the same items: positive where the variant kept more.

    Attributes:
        gains: of chance-corrected accuracy, variant minus control, by group.
        better: items that only the variant answered right.
        worse: items that only the control answered right.
        p: McNemar's exact test over the items of all tasks, where what one group gained and the other lost cancels:
            whether reading or recall differs is told by `gains`.
        p_holm: the same, adjusted for all contrasts of the comparison.
        extra_bytes: what the variant takes more than the control on disk.
        extra_cached_bits: what it takes more of a cached key, over the training context.
    """

    variant: str
    control: str
    gains: dict[Knowledge, Estimate]
    better: int
    worse: int
    p: float
    p_holm: float
    extra_bytes: int | None
    extra_cached_bits: float | None = None


class ComparisonResults(_Saved):
    """The whole comparison; `variants[0]` is the baseline.

    Attributes:
        family: `config.model_type` of the baseline.
        command: what makes it again.
        settings: what was asked for.
        text_hash: SHA-256 of the token ids of the running text.
        analysis_file: the massive values of the baseline, where a policy measured them.
        without_data: tasks that were wanted too but whose data was not there, and why.
    """

    schema_version: Literal[1] = RESULTS_VERSION
    model: str
    family: str
    dtype: str
    device: str
    command: str
    settings: ComparisonRecipe
    versions: dict[str, str]
    text_hash: str | None = None
    analysis_file: str | None = None
    tasks: dict[str, TaskInfo]
    variants: tuple[VariantResult, ...]
    contrasts: tuple[Contrast, ...] = ()
    without_data: dict[str, str] = {}

    @property
    def complete(self) -> bool:
        """Whether nothing failed."""
        return not any(variant.failures for variant in self.variants)


class Answer(_Saved):
    """What one variant said to one item; `text` is the whole of it where the prediction was parsed out of it."""

    prediction: str
    correct: bool
    text: str | None = None


class FlippedItem(_Saved):
    """One line of `flips.jsonl`: an item that some variant got right and another wrong, with all answers."""

    task: str
    id: str
    prompt: str
    answer: str
    choices: tuple[str, ...] | None = None
    answers: dict[str, Answer]
    """By the name of the variant."""


def different_texts(hashes: Mapping[str, str | None]) -> str | None:
    """Name the variants of each calibration text; None where all that were calibrated saw the same.

    >>> different_texts({"a": "1", "b": "1", "c": "2", "plain": None})
    'a, b / c'
    """
    texts: dict[str, list[str]] = {}
    for name, text in hashes.items():
        if text is not None:
            texts.setdefault(text, []).append(name)
    return " / ".join(", ".join(names) for names in texts.values()) if len(texts) > 1 else None


def load_comparison(folder: Path) -> ComparisonResults:
    """Read the results of a comparison.

    Raises:
        EvaluationError: no results, or not of this schema version.
    """
    path = folder / RESULTS_FILE
    try:
        return ComparisonResults.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        message = f"{folder} holds no comparison ({error}): give a folder that `mvquant compare` has written"
        raise EvaluationError(message) from None
    except ValidationError as error:
        message = f"{path}: not a comparison of this mvquant: {mistakes(error)[0]}; compare again"
        raise EvaluationError(message) from None


def load_flips(folder: Path) -> list[FlippedItem]:
    """Read the items that flipped, in the order of tasks and items.

    Raises:
        EvaluationError: missing, or not of this schema version.
    """
    path = folder / FLIPS_FILE
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
        return [FlippedItem.model_validate_json(line) for line in lines if line.strip()]
    except (OSError, UnicodeDecodeError, ValidationError) as error:
        message = f"{path}: not the flips of a comparison ({str(error).splitlines()[0]})"
        raise EvaluationError(message) from None
