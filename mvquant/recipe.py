"""What is wanted: recipes are YAML files, read into frozen data that refuses what it does not know.

summary: 4-bit weights, the massive slow Q/K rows at 8 bits
weights: {scheme: w4a16}
protect: {policy: massive, pairs: 0.125, scheme: w8a16}
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails

from mvquant.errors import ConfigError, UnknownNameError, nearest_name
from mvquant.heads import Role
from mvquant.resources import resource_folder
from mvquant.scheme import SCHEME_NAMES, WeightScheme

PolicyName = Literal["massive", "sensitivity", "slow-pairs", "random", "fast-pairs", "top-norm", "whole-module", "none"]
MethodName = Literal["rtn"]

MEASURED_POLICIES = frozenset({"massive", "sensitivity", "top-norm"})
"""Policies that need calibration statistics; the others are data-free."""

MV_PROTECT = "mv-protect"
"""Name of our own scheme, alone (on `w4a16`) or before a weight scheme: `mv-protect-w3a16-g64`."""


class _Data(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Weights(_Data):
    """How the rows that are not protected are stored, and how their values are chosen."""

    scheme: WeightScheme
    method: MethodName = "rtn"
    ignore: tuple[str, ...] = ()
    """Shell patterns of module names that stay in the model's dtype, such as `*.down_proj`."""

    @field_validator("scheme")
    @classmethod
    def _quantizes(cls, scheme: WeightScheme) -> WeightScheme:
        if not scheme.is_quantized:
            raise ValueError("bf16 quantizes nothing; choose 8, 4, 3 or 2 bits")
        return scheme


class Protect(_Data):
    """Which rows of Q and K keep more bits: chosen by `policy`, as many as the budget allows."""

    policy: PolicyName = "massive"
    pairs: float | None = Field(default=None, gt=0, le=1)
    """Budget as a fraction of all RoPE pairs of Q and K."""
    bytes: int | None = Field(default=None, gt=0)
    """Budget as bytes on top of what the unprotected model takes."""
    scheme: WeightScheme | None = None
    """Scheme of the protected rows; without one, the scheme of the other rows at 8 bits."""
    roles: tuple[Role, ...] = ("q", "k")
    seed: int = 0

    @model_validator(mode="after")
    def _one_budget(self) -> "Protect":
        needs_budget = self.policy not in ("none", "whole-module")
        if needs_budget and (self.pairs is None) == (self.bytes is None):
            raise ValueError("give one budget: `pairs` (a fraction, such as 0.125) or `bytes`")
        return self


class Calibration(_Data):
    """The text that policies measure on. `auto` is the model's own corpus for `reference`, else WikiText-2."""

    source: str = "auto"
    sequences: int = Field(default=32, gt=0)
    length: int = Field(default=512, gt=1)
    seed: int = 0


class Recipe(_Data):
    """One way to quantize a model."""

    summary: str
    weights: Weights
    protect: Protect = Protect(policy="none")
    calibration: Calibration = Calibration()

    @property
    def protected_scheme(self) -> WeightScheme:
        """Scheme of the protected rows."""
        return self.protect.scheme or self.weights.scheme.model_copy(update={"bits": 8})

    @property
    def needs_calibration(self) -> bool:
        """Whether the policy measures the model on text."""
        return self.protect.policy in MEASURED_POLICIES


def parse_recipe(text: str, where: str) -> Recipe:
    """Read a recipe from YAML.

    Args:
        text: the YAML document.
        where: what to call it in errors, usually its path.

    Raises:
        ConfigError: with every mistake at once.
    """
    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(where, [f"is not YAML: {error}"]) from None
    if not isinstance(document, dict):
        raise ConfigError(where, ["is not a mapping; a recipe starts with `summary:` and `weights:`"])
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
    return parse_recipe(path.read_text(encoding="utf-8"), where=str(path))


def recipe_for_scheme(name: str) -> Recipe:
    """Make the recipe that a scheme's name stands for.

    Raises:
        UnknownNameError: not a scheme.

    >>> recipe_for_scheme("mv-protect-w2a16").protect.pairs
    0.125
    """
    if name not in scheme_summaries():
        raise UnknownNameError("scheme", name, COMMON_SCHEMES)
    scheme = WeightScheme.model_validate(name.removeprefix(MV_PROTECT).removeprefix("-") or "w4a16")
    if not name.startswith(MV_PROTECT):
        return Recipe(summary=scheme_summaries()[name], weights=Weights(scheme=scheme))
    protect = Protect(policy="massive", pairs=0.125, scheme=WeightScheme(bits=16) if scheme.bits == 8 else None)
    return Recipe(summary=scheme_summaries()[name], weights=Weights(scheme=scheme), protect=protect)


COMMON_SCHEMES = (
    MV_PROTECT,
    *(f"{prefix}w{bits}a16" for prefix in ("", f"{MV_PROTECT}-") for bits in (8, 4, 3, 2)),
)
"""Scheme names shown in errors; each weight scheme of `mvquant.scheme` works too."""


def scheme_summaries() -> dict[str, str]:
    """What can be asked for with `--scheme`: name and one line about it."""
    plain = [WeightScheme.model_validate(name) for name in SCHEME_NAMES if name != "bf16"]
    protected = {f"{MV_PROTECT}-{scheme.name}": _protected_summary(scheme) for scheme in plain}
    return {
        MV_PROTECT: f"the default: {MV_PROTECT}-w4a16",
        **protected,
        **{scheme.name: f"{_grid_summary(scheme)}; nothing is protected" for scheme in plain},
    }


def _protected_summary(scheme: WeightScheme) -> str:
    kept = "in the model's dtype" if scheme.bits == 8 else "at 8 bits"
    return f"{_grid_summary(scheme)}; an eighth of the RoPE pairs of Q and K, massive slow ones first, {kept}"


def _grid_summary(scheme: WeightScheme) -> str:
    groups = "one group a row" if scheme.group_size == -1 else f"groups of {scheme.group_size}"
    return f"{scheme.bits}-bit weights, {groups}, {'' if scheme.symmetric else 'a'}symmetric"


def recipe_paths() -> dict[str, Path]:
    """Shipped recipes by name, in alphabetical order."""
    return {path.stem: path for path in sorted(resource_folder("recipes").glob("*.yaml"))}


def _explain(detail: ErrorDetails) -> str:
    place = ".".join(str(part) for part in detail["loc"])
    if detail["type"] == "extra_forbidden":
        known = _keys_at(detail["loc"][:-1])
        return f"{place}: unknown key, {nearest_name(str(detail['loc'][-1]), known)}known: {', '.join(known)}"
    if detail["type"] == "literal_error":
        return f"{place}: {_nearest_value(detail)}{detail['msg']}, not {detail['input']!r}"
    return f"{place}: {detail['msg'].removeprefix('Value error, ')}"


def _nearest_value(detail: ErrorDetails) -> str:
    return nearest_name(str(detail["input"]), get_args(PolicyName) if detail["loc"][-1] == "policy" else ())


def _keys_at(loc: Iterable[int | str]) -> list[str]:
    model: type[BaseModel] = Recipe
    for part in loc:
        annotation = model.model_fields[str(part)].annotation
        assert isinstance(annotation, type)
        assert issubclass(annotation, BaseModel)
        model = annotation
    return list(model.model_fields)
