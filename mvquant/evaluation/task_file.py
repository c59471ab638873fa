"""The part of lm-evaluation-harness's task files (0.4.13) that mvquant runs by itself.

Whatever the harness would do and mvquant would not (few shots, other filters, other metrics) is refused
instead of ignored: a task file means the same to both.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from mvquant.errors import ConfigError
from mvquant.evaluation.parsers import PARSERS, Parser

Knowledge = Literal["contextual", "parametric"]
"""Where an answer is: in the prompt, or in the weights."""


def _as_tuple(value: object) -> object:
    return (value,) if isinstance(value, str) else value


Strings = Annotated[tuple[Annotated[str, Field(min_length=1)], ...], BeforeValidator(_as_tuple)]


CUSTOM_DATASET = "!function mvquant.evaluation.sources.harness_dataset"

FILTERS: dict[str, Parser] = {
    f"!function mvquant.evaluation.parsers.{name}_filter": parser for name, parser in PARSERS.items()
}


class _Refusing(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DatasetKwargs(_Refusing):
    """Where the items are; exactly one of two. The harness hands them to `custom_dataset`.

    Attributes:
        file: a JSON-lines file, relative to the `eval/` folder wherever the harness is started.
        source: a name in `mvquant.evaluation.sources.SOURCES`.
    """

    file: str | None = None
    source: str | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> "DatasetKwargs":
        if len(self.model_fields_set) != 1:
            raise ValueError("exactly one of file and source is needed")
        return self


class GenerationKwargs(_Refusing):
    """How long an answer may be, and which strings end it."""

    max_gen_toks: int = Field(gt=0)
    until: Strings
    do_sample: Literal[False] = False


class FilterStep(_Refusing):
    """A step between the generated text and the metric; without `custom`, mvquant strips white space.

    Attributes:
        function: the harness's name of the step.
        filter_fn: of `custom`, one of the filters in `mvquant.evaluation.parsers`.
    """

    function: Literal["remove_whitespace", "take_first", "custom"]
    filter_fn: str | None = None

    @model_validator(mode="after")
    def _custom_is_a_parser(self) -> "FilterStep":
        if (self.function == "custom") != (self.filter_fn is not None):
            raise ValueError("filter_fn goes with function: custom, and the other way round")
        if self.filter_fn is not None and self.filter_fn not in FILTERS:
            message = f"filter_fn must be one of {', '.join(FILTERS)}, not {self.filter_fn}"
            raise ValueError(message)
        return self


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
    custom_dataset: str
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

    @property
    def parser(self) -> Parser:
        """What finds the prediction in a generated text."""
        steps = [step.filter_fn for pipeline in self.filter_list[:1] for step in pipeline.filter if step.filter_fn]
        return FILTERS[steps[0]] if steps else str.strip

    @field_validator("custom_dataset")
    @classmethod
    def _is_ours(cls, value: str) -> str:
        if value != CUSTOM_DATASET:
            message = f"must be {CUSTOM_DATASET}, not {value}"
            raise ValueError(message)
        return value

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


class GroupFile(_Refusing):
    """One group of the harness: tasks, or other groups, by name.

    Attributes:
        group: its name.
        task: its members. Names that no task file and no group file here has are the harness's own tasks.
        metadata: says of the harness's own tasks where their answers are, and what a guess is worth.
    """

    class Metadata(_Refusing):
        """What mvquant must know of the harness's own tasks."""

        version: int | str = 0
        knowledge: Knowledge | None = None
        chance: float = Field(default=0.0, ge=0, lt=1)

    group: str = Field(min_length=1)
    task: Strings = Field(min_length=1)
    metadata: Metadata = Metadata()


class _Loader(yaml.SafeLoader):
    """Reads `!function module.name` as that text: what a task file names is looked up, never imported."""


def _function_name(loader: yaml.SafeLoader, node: yaml.Node) -> str:
    return f"!function {loader.construct_scalar(node)}" if isinstance(node, yaml.ScalarNode) else "!function"


_Loader.add_constructor("!function", _function_name)


def read_task_file(path: Path) -> TaskFile | GroupFile:
    """Read one task or group file.

    Raises:
        ConfigError: not YAML, or not a task or group that mvquant can run; lists every mistake.
    """
    try:
        content: Any = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(str(path), [f"not YAML: {error}"]) from None
    if not isinstance(content, dict):
        raise ConfigError(str(path), ["not a task: a mapping with the key `task` is needed"])
    try:
        return (GroupFile if "group" in content else TaskFile).model_validate(content)
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
