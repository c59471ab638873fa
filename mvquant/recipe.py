"""What is wanted: recipes are YAML files, read into frozen data that refuses what it does not know.

summary: 4-bit weights, the massive slow Q/K rows at 8 bits
weights: {scheme: w4a16}
protect: {policy: massive, pairs: 0.125, scheme: w8a16}

or, of the cache of keys and values only:

summary: K cached at 2 bits on average, more for the RoPE pairs that count
kv_cache: {keys: {bits: 2}}
"""

import re
from collections.abc import Iterable
from pathlib import Path
from types import UnionType
from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails

from mvquant.cache_recipe import Fold, KvCache
from mvquant.data_files import read_text, yaml_mapping
from mvquant.errors import ConfigError, UnknownNameError, nearest_name
from mvquant.method_settings import METHOD_SETTINGS, Method, MethodSettings, Rtn
from mvquant.resources import resource_folder
from mvquant.scheme import WeightScheme

PolicyName = Literal["massive", "sensitivity", "slow-pairs", "random", "fast-pairs", "top-norm", "whole-module", "none"]

MEASURED_POLICIES = frozenset({"massive", "sensitivity", "top-norm"})
"""Policies that need calibration statistics; the others are data-free."""


class _Data(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Weights(_Data):
    """How the rows that are not protected are stored, and how their values are chosen."""

    scheme: WeightScheme
    method: Method = Rtn()
    ignore: tuple[str, ...] = ()
    """Shell patterns of module names that stay in the model's dtype, such as `*.down_proj`."""

    @field_validator("scheme")
    @classmethod
    def _quantizes(cls, scheme: WeightScheme) -> WeightScheme:
        if not scheme.is_quantized:
            raise ValueError("bf16 quantizes nothing; choose 8, 4, 3 or 2 bits")
        return scheme

    @model_validator(mode="after")
    def _possible(self) -> "Weights":
        if mistake := impossible(self.scheme, self.method):
            raise ValueError(mistake)
        return self


class Protect(_Data):
    """Which rows of Q and K keep more bits: chosen by `policy`, as many as the budget allows."""

    policy: PolicyName = "massive"
    pairs: float | None = Field(default=None, gt=0, le=1)
    """Budget as a fraction of all RoPE pairs of Q and K."""
    bytes: int | None = Field(default=None, gt=0)
    """Budget as bytes on top of what the unprotected model takes."""
    scheme: WeightScheme | None = None
    """Scheme of the protected rows, with more bits than the others; by default theirs at 8 bits, over w8a8 bf16."""
    roles: tuple[Literal["q", "k"], ...] = ("q", "k")
    seed: int = 0

    @model_validator(mode="after")
    def _one_budget(self) -> "Protect":
        needs_budget = self.policy not in ("none", "whole-module")
        if needs_budget and (self.pairs is None) == (self.bytes is None):
            raise ValueError("give one budget: `pairs` (a fraction, such as 0.125) or `bytes`")
        return self


class Calibration(_Data):
    """The text that policies and methods see. `auto` is the model's own corpus for `reference`, else WikiText-2."""

    source: str = "auto"
    """A file, a folder, or a data set of the Hub with its configuration after a colon: `allenai/c4:en`."""
    split: str | None = Field(default=None, exclude_if=lambda value: value is None)
    """Of a data set; by default `train`, or the first that begins so."""
    column: str | None = Field(default=None, exclude_if=lambda value: value is None)
    """That holds the text or the conversations, where it cannot be guessed."""
    chat: Literal["auto", "never"] = Field(default="auto", exclude_if=lambda value: value == "auto")
    """Put conversations into the tokenizer's chat template if it has one, or take them as plain text."""
    sequences: int = Field(default=32, gt=0)
    length: int = Field(default=512, gt=1)
    seed: int = 0


class Recipe(_Data):
    """One way to quantize a model: its weights, the cache of its keys and values, or both."""

    summary: str
    weights: Weights | None = None
    protect: Protect = Protect(policy="none")
    fold: Fold | None = None
    kv_cache: KvCache | None = None
    calibration: Calibration = Calibration()

    @model_validator(mode="after")
    def _quantizes(self) -> "Recipe":
        if self.weights is None and self.kv_cache is None:
            raise ValueError("quantizes nothing: give `weights`, `kv_cache` or both")
        if self.weights is None and self.protect.policy != "none":
            raise ValueError(
                "`protect` is of weights: give `weights` too, or leave it out; `kv_cache` has its own policy"
            )
        return self

    @property
    def protected_scheme(self) -> WeightScheme:
        """Scheme of the protected rows; that of all rows where no weight is quantized."""
        if self.weights is None:
            return WeightScheme(bits=16)
        if self.weights.scheme.activations and self.protect.scheme is None:
            return WeightScheme(bits=16)
        return self.protect.scheme or self.weights.scheme.model_copy(update={"bits": 8})

    @property
    def method(self) -> MethodSettings:
        """How values of quantized weights are chosen."""
        return Rtn() if self.weights is None else self.weights.method

    @property
    def needs_statistics(self) -> bool:
        """Whether the plan depends on Q, K and V over calibration text."""
        return self.protect.policy in MEASURED_POLICIES or self.kv_cache is not None or self.fold is not None

    @property
    def calibrates_weights(self) -> bool:
        """Whether the values of the weights depend on calibration text."""
        static = self.weights is not None and self.weights.scheme.activations == "tensor"
        return static or self.method.name != "rtn"

    @property
    def needs_calibration(self) -> bool:
        """Whether it needs calibration text, for the plan or for the weights."""
        return self.needs_statistics or self.calibrates_weights

    @property
    def needs_rope(self) -> bool:
        """Whether it asks for something that only models with RoPE have."""
        return self.protect.policy != "none" or self.kv_cache is not None or self.fold is not None


def impossible(scheme: WeightScheme, method: MethodSettings) -> str | None:
    """What a method cannot do with a scheme, and the way out; None where it can."""
    if method.name == "smoothquant" and not scheme.activations:
        return (
            f"smoothquant makes activations easy to round, and {scheme.name} rounds none: use w8a8 or w8a8-static, "
            "or awq for weights alone"
        )
    if method.name in ("awq", "autoround") and scheme.activations:
        return f"{method.name} rounds weights only, not activations ({scheme.name}): use smoothquant, gptq or rtn"
    if method.backend in ("gptqmodel", "auto-gptq") and scheme.activations:
        return f"{method.backend} rounds weights only, not activations ({scheme.name}): use backend llmcompressor"
    if (method.name, method.backend, scheme.bits) == ("awq", "gptqmodel", 8):
        return (
            "awq by gptqmodel rounds and packs in 16-bit floats, which cannot tell integers of 8 bits apart: use rtn, "
            "or backend llmcompressor"
        )
    if method.backend == "autoawq" and (scheme.bits != 4 or scheme.symmetric):
        return f"autoawq does 4 bits with zero points only, not {scheme.name}: use w4a16-asym, or backend llmcompressor"
    return None


def parse_recipe(text: str, where: str) -> Recipe:
    """Read a recipe from YAML.

    Args:
        text: the YAML document.
        where: what to call it in errors, usually its path.

    Raises:
        ConfigError: with every mistake at once.
    """
    expected = "a recipe starts with `summary:`, then `weights:` or `kv_cache:`"
    document = yaml_mapping(text, where, expected)
    try:
        return Recipe.model_validate(document)
    except ValidationError as error:
        raise ConfigError(where, (_explain(detail) for detail in error.errors())) from None


def load_recipe(name_or_path: str) -> Recipe:
    """Read a shipped recipe by name, or a recipe file by path.

    Raises:
        UnknownNameError: neither a shipped recipe nor a file.
        ConfigError: a file with mistakes.
    """
    path = recipe_paths().get(name_or_path, Path(name_or_path))
    if not path.is_file() and path.suffix in (".yaml", ".yml"):
        raise ConfigError(name_or_path, ["there is no such file"])
    if not path.is_file():
        raise UnknownNameError("recipe", name_or_path, recipe_paths())
    return parse_recipe(read_text(path), where=str(path))


def recipe_paths() -> dict[str, Path]:
    """Shipped recipes by name, in alphabetical order."""
    return {path.stem: path for path in sorted(resource_folder("recipes").glob("*.yaml"))}


def _explain(detail: ErrorDetails) -> str:
    place = ".".join(str(part) for part in detail["loc"])
    if detail["type"] == "extra_forbidden":
        known = _keys_at(detail["loc"][:-1])
        return f"{place}: unknown key, {nearest_name(str(detail['loc'][-1]), known)}known: {', '.join(known)}"
    if detail["type"] == "union_tag_invalid":
        name = str(detail["input"].get("name"))
        nearest = nearest_name(name, METHOD_SETTINGS)
        return f"{place}: unknown method {name!r}, {nearest}known: {', '.join(METHOD_SETTINGS)}"
    if detail["loc"][-1:] == ("method",) and detail["type"] in ("union_tag_not_found", "model_attributes_type"):
        known = ", ".join(METHOD_SETTINGS)
        return f"{place}: is neither the name of a method nor a mapping with `name`; known: {known}"
    if detail["type"] == "literal_error":
        return f"{place}: {_nearest_value(detail)}{detail['msg']}, not {detail['input']!r}"
    message = detail["msg"].removeprefix("Value error, ")
    return f"{place}: {message}" if place else message


def _nearest_value(detail: ErrorDetails) -> str:
    """Suggest one of the values that can be chosen, where a word was given."""
    choices = re.findall(r"'([^']*)'", detail.get("ctx", {}).get("expected", ""))
    return nearest_name(detail["input"], choices) if isinstance(detail["input"], str) else ""


def _keys_at(loc: Iterable[int | str]) -> list[str]:
    model: type[BaseModel] = Recipe
    for part in loc:
        if part == "method":
            continue
        if part in METHOD_SETTINGS:
            return list(METHOD_SETTINGS[part].model_fields)
        annotation = model.model_fields[str(part)].annotation
        choices = get_args(annotation) if isinstance(annotation, UnionType) else (annotation,)
        model = next(each for each in choices if isinstance(each, type) and issubclass(each, BaseModel))
    return list(model.model_fields)
