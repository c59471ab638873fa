"""The part of lm-evaluation-harness's task files (0.4.13) that mvquant runs by itself.

Whatever the harness would do and mvquant would not (few shots, other filters, other metrics) is refused
instead of ignored: a task file means the same to both.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from mvquant.errors import ConfigError

Knowledge = Literal["contextual", "parametric"]
"""Where an answer is: in the prompt, or in the weights."""


def _as_tuple(value: object) -> object:
    return (value,) if isinstance(value, str) else value


Strings = Annotated[tuple[Annotated[str, Field(min_length=1)], ...], BeforeValidator(_as_tuple)]


class _Refusing(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DataFiles(_Refusing):
    """JSON-lines files by split, relative to the `eval/` folder."""

    test: str


class DatasetKwargs(_Refusing):
    """What the harness hands to `datasets.load_dataset`."""

    data_files: DataFiles


class GenerationKwargs(_Refusing):
    """How long an answer may be, and which strings end it."""

    max_gen_toks: int = Field(gt=0)
    until: Strings
    do_sample: Literal[False] = False


class FilterStep(_Refusing):
    """A step between the generated text and the metric; mvquant always strips white space."""

    function: Literal["remove_whitespace", "take_first"]


class FilterPipeline(_Refusing):
    """A named chain of filter steps."""

    name: str
    filter: tuple[FilterStep, ...]


class Metric(_Refusing):
    """The fraction of items answered right."""

    metric: Literal["exact_match", "acc"]
    aggregation: Literal["mean"] = "mean"
    higher_is_better: Literal[True] = True


class TaskMetadata(_Refusing):
    """What mvquant must know of a task and the harness need not.

    Attributes:
        version: raised with every change that can move a score.
        chance: accuracy of the best guess that does not read the prompt (or, in parametric tasks, knows nothing).
        knowledge: where the answer is.
        answer_by: free text, or the likelier of given choices.
        seed: the seed that the items were drawn with.
    """

    version: int = Field(ge=0)
    chance: float = Field(ge=0, lt=1)
    knowledge: Knowledge
    answer_by: Literal["generation", "choice"]
    seed: int | str | None = None


class TaskFile(_Refusing):
    """One task file."""

    task: str = Field(min_length=1)
    tag: Strings = ()
    dataset_path: Literal["json"]
    dataset_kwargs: DatasetKwargs
    test_split: Literal["test"] = "test"
    output_type: Literal["generate_until", "multiple_choice"]
    doc_to_text: Literal["{{prompt}}", "prompt"]
    doc_to_target: Literal["{{answer}}", "answer"]
    doc_to_choice: Literal["{{choices}}", "choices"] | None = None
    target_delimiter: str = " "
    generation_kwargs: GenerationKwargs | None = None
    num_fewshot: Literal[0] = 0
    filter_list: tuple[FilterPipeline, ...] = ()
    metric_list: tuple[Metric, ...] = Field(min_length=1)
    metadata: TaskMetadata

    @model_validator(mode="after")
    def _agree_on_the_answer(self) -> "TaskFile":
        generates = self.output_type == "generate_until"
        wanted = "generation" if generates else "choice"
        if self.metadata.answer_by != wanted:
            message = f"output_type {self.output_type} needs metadata.answer_by: {wanted}"
            raise ValueError(message)
        if generates and self.generation_kwargs is None:
            message = "output_type generate_until needs generation_kwargs with max_gen_toks and until"
            raise ValueError(message)
        if not generates and self.doc_to_choice is None:
            message = "output_type multiple_choice needs doc_to_choice: choices"
            raise ValueError(message)
        return self


def read_task_file(path: Path) -> TaskFile | None:
    """Read one task file; None for the harness's group files, which hold no task.

    Raises:
        ConfigError: not YAML, or not a task that mvquant can run; lists every mistake.
    """
    try:
        content: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(str(path), [f"not YAML: {error}"]) from None
    if not isinstance(content, dict):
        raise ConfigError(str(path), ["not a task: a mapping with the key `task` is needed"])
    if "group" in content:
        return None
    try:
        return TaskFile.model_validate(content)
    except ValidationError as error:
        raise ConfigError(str(path), mistakes(error)) from None


def mistakes(error: ValidationError) -> list[str]:
    """Each mistake as `field: what is wrong`."""
    return [
        f"{'.'.join(str(part) for part in detail['loc'])}: {detail['msg'].removeprefix('Value error, ')}".removeprefix(
            ": "
        )
        for detail in error.errors()
    ]
