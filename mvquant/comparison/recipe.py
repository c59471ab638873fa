"""What is to be compared: a YAML file, read into frozen data that refuses what it does not know.

summary: mv-protect against plain rounding at 3 bits, and what else its bytes could buy
model: reference
variants: [w3a16, mv-protect-w3a16]
equal_bytes: true
"""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from mvquant.data_files import read_text, yaml_mapping
from mvquant.errors import ConfigError, UnknownNameError
from mvquant.named_schemes import COMMON_SCHEMES, is_scheme
from mvquant.recipe import Recipe, recipe_paths
from mvquant.resources import resource_folder

RESERVED = ("full precision", "full precision again")
"""What the baseline is called, and its second run."""

FOLDER = "compare"
"""Shipped comparison recipes lie in this folder of `recipes/`."""


class _Data(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class VariantEntry(_Data):
    """One variant, as a scheme's name, a recipe (by name, path or in place), a saved plan, or a finished checkpoint.

    In YAML and on the command line a single word will do: a scheme, a shipped recipe, a path to a recipe (.yaml), a
    plan (.json) or a checkpoint (a folder).
    """

    name: str = Field(min_length=1)
    scheme: str | None = None
    recipe: str | None = None
    quantize: Recipe | None = None
    plan: Path | None = None
    checkpoint: Path | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_word(cls, value: object) -> object:
        if isinstance(value, str):
            return _entry_of(value)
        if isinstance(value, dict) and "name" not in value:
            word = next((value[key] for key in ("scheme", "recipe", "plan", "checkpoint") if value.get(key)), None)
            return value if word is None else {"name": _short(str(word)), **value}
        return value

    @model_validator(mode="after")
    def _made_in_one_way(self) -> "VariantEntry":
        ways = [self.scheme, self.recipe, self.quantize, self.plan, self.checkpoint]
        if sum(way is not None for way in ways) != 1:
            raise ValueError("give one of `scheme`, `recipe`, `quantize` (a recipe in place), `plan` and `checkpoint`")
        if self.scheme is not None and not is_scheme(self.scheme):
            raise ValueError(str(UnknownNameError("scheme", self.scheme, COMMON_SCHEMES)))
        return self


def _entry_of(word: str) -> dict[str, object]:
    """What a single word stands for.

    >>> _entry_of("mv-protect-w3a16")
    {'name': 'mv-protect-w3a16', 'scheme': 'mv-protect-w3a16'}
    >>> _entry_of("mine.yaml")
    {'name': 'mine', 'recipe': 'mine.yaml'}
    """
    path = Path(word)
    if is_scheme(word):
        return {"name": word, "scheme": word}
    if path.suffix in (".yaml", ".yml") or word in recipe_paths():
        return {"name": _short(word), "recipe": word}
    if path.suffix == ".json":
        return {"name": _short(word), "plan": word}
    if path.is_dir():
        return {"name": _short(word), "checkpoint": word}
    unknown = UnknownNameError("scheme", word, [*COMMON_SCHEMES, *recipe_paths()])
    raise ValueError(f"{unknown}; nor is it a recipe (.yaml), a plan (.json) or the folder of a checkpoint")


def _short(word: str) -> str:
    path = Path(word)
    return path.stem if path.suffix in (".yaml", ".yml", ".json") else path.name or word


class TextSettings(_Data):
    """The running text on which distributions and continuations are compared.

    Attributes:
        source: a file, a folder, a Hub dataset, or `reference`; `auto` is the model's own corpus for `reference`,
            else WikiText-2.
        sequences: how many; intervals are over sequences.
        length: tokens in each.
        seed: chooses them; not the seed of calibration, so that rows are not chosen on the text they are judged on.
        new_tokens: the most tokens of a greedy continuation of each sequence's first half.
    """

    source: str = "auto"
    sequences: int = Field(default=32, ge=2)
    length: int = Field(default=512, ge=4)
    seed: int = 1
    new_tokens: int = Field(default=64, ge=2)


class ComparisonRecipe(_Data):
    """One baseline and any number of variants, on the same items.

    Attributes:
        tasks: names and groups; without any, those that suit the model.
        limit: the first so many items of each task.
        equal_bytes: add the controls that spend the same bytes in another way.
        chat_template: put every prompt into the chat template of the baseline's tokenizer.
        noise_floor: answer everything with the baseline a second time, in other batches.
        text: None leaves KL, perplexity and continuations out.
        seed: of random rows and of the bootstrap.
    """

    summary: str = ""
    model: str = Field(min_length=1)
    variants: tuple[VariantEntry, ...] = Field(min_length=1)
    tasks: tuple[str, ...] = ()
    limit: int | None = Field(default=None, ge=1)
    batch_size: int = Field(default=64, ge=1)
    chat_template: bool = False
    equal_bytes: bool = False
    noise_floor: bool = True
    text: TextSettings | None = TextSettings()
    seed: int = 0

    @field_validator("tasks", mode="before")
    @classmethod
    def _words(cls, value: object) -> object:
        return tuple(word.strip() for word in value.split(",") if word.strip()) if isinstance(value, str) else value

    @field_validator("variants")
    @classmethod
    def _different_names(cls, variants: tuple[VariantEntry, ...]) -> tuple[VariantEntry, ...]:
        repeated = [name for name, count in Counter(entry.name for entry in variants).items() if count > 1]
        if repeated:
            raise ValueError(f"the name {repeated[0]!r} is used more than once: give each variant a `name` of its own")
        if taken := {entry.name for entry in variants} & set(RESERVED):
            raise ValueError(f"{min(taken)!r} is what the baseline is called: give the variant another `name`")
        return variants


def parse_comparison(text: str, where: str) -> ComparisonRecipe:
    """Read a comparison recipe from YAML.

    Args:
        text: the YAML document.
        where: what to call it in errors, usually its path.

    Raises:
        ConfigError: with every mistake at once.
    """
    document = yaml_mapping(text, where, "a comparison has `model:` and `variants:`")
    if "weights" in document:
        raise ConfigError(where, ["is a recipe for one model; a comparison has `model:` and `variants:`"])
    return comparison_recipe(document, where)


def comparison_recipe(document: dict[str, object], where: str) -> ComparisonRecipe:
    """Make a comparison recipe from its fields.

    Raises:
        ConfigError: with every mistake at once.
    """
    try:
        return ComparisonRecipe.model_validate(document)
    except ValidationError as error:
        raise ConfigError(where, _mistakes(error)) from None


def _mistakes(error: ValidationError) -> Iterable[str]:
    for detail in error.errors():
        place = ".".join(str(part) for part in detail["loc"])
        known = f" (known: {', '.join(ComparisonRecipe.model_fields)})" if len(detail["loc"]) == 1 else ""
        hint = known if detail["type"] == "extra_forbidden" else ""
        yield f"{place}: {detail['msg'].removeprefix('Value error, ')}{hint}"


def load_comparison_recipe(name_or_path: str) -> ComparisonRecipe:
    """Read a shipped comparison recipe by name, or a file by path.

    Raises:
        UnknownNameError: neither a shipped comparison nor a file.
        ConfigError: a file with mistakes.
    """
    shipped = comparison_paths()
    path = shipped.get(name_or_path, Path(name_or_path))
    if path.is_file():
        return parse_comparison(read_text(path), where=str(path))
    if path.suffix in (".yaml", ".yml"):
        raise ConfigError(name_or_path, ["there is no such file"])
    raise UnknownNameError("comparison", name_or_path, shipped)


def comparison_paths() -> dict[str, Path]:
    """Shipped comparison recipes by name, in alphabetical order."""
    return {path.stem: path for path in sorted((resource_folder("recipes") / FOLDER).glob("*.yaml"))}
