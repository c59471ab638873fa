"""recipes/README.md: what it shows can be read, and leaves no key out."""

import re
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel

from mvquant.cache_formats import ValueFormat
from mvquant.cache_recipe import Fold, KeyCache, KvCache
from mvquant.comparison.recipe import ComparisonRecipe, TextSettings, parse_comparison
from mvquant.method_settings import METHOD_SETTINGS
from mvquant.named_schemes import is_scheme
from mvquant.recipe import Calibration, Protect, Recipe, Weights, parse_recipe

TEXT = (Path(__file__).parent.parent / "recipes" / "README.md").read_text(encoding="utf-8")
RECIPE, COMPARISON = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)

PARTS: dict[tuple[str, ...], type[BaseModel]] = {
    (): Recipe,
    ("weights",): Weights,
    ("protect",): Protect,
    ("fold",): Fold,
    ("kv_cache",): KvCache,
    ("kv_cache", "keys"): KeyCache,
    ("kv_cache", "values"): ValueFormat,
    ("calibration",): Calibration,
}


def test_both_examples_are_valid():
    assert parse_recipe(RECIPE, "the example").kv_cache is not None
    assert len(parse_comparison(COMPARISON, "the example").variants) == 2


@pytest.mark.parametrize("path", PARTS)
def test_every_key_of_a_recipe_is_there(path):
    shown = yaml.safe_load(RECIPE)
    for key in path:
        shown = shown[key]
    wanted = set(PARTS[path].model_fields)
    if PARTS[path] is Protect:
        wanted.remove("bytes")  # one of two budgets, named beside the other
        assert "`bytes`" in RECIPE
    assert set(shown) == wanted


def test_every_key_of_a_comparison_is_there():
    shown = yaml.safe_load(COMPARISON)
    assert set(shown) == set(ComparisonRecipe.model_fields)
    assert set(shown["text"]) == set(TextSettings.model_fields)


@pytest.mark.parametrize("key", ["equal_bytes", "noise_floor", "batch_size", "chat_template", "limit", "seed"])
def test_settings_of_a_comparison_are_shown_with_their_defaults(key):
    assert yaml.safe_load(COMPARISON)[key] == ComparisonRecipe.model_fields[key].default


@pytest.mark.parametrize("name", METHOD_SETTINGS)
def test_every_method_is_there_with_its_backends_and_settings(name):
    row = next(line for line in TEXT.splitlines() if line.startswith(f"| `{name}` |"))
    _, _, backends, settings, _ = (cell.strip() for cell in row.split("|"))
    fields = METHOD_SETTINGS[name].model_fields
    assert backends.split(", ") == list(fields["backend"].annotation.__args__)
    assert backends.split(", ")[0] == fields["backend"].default
    shown = yaml.safe_load("{" + settings.replace("`", "") + "}") or {}
    assert shown == {key: field.default for key, field in fields.items() if key not in ("name", "backend")}


def test_names_made_by_the_pattern_are_schemes():
    for line in re.findall(r"^    (\[mv-protect-\].*)$", TEXT, re.MULTILINE):
        shortest = re.sub(r"\[[^\[\]]*\]", "", re.sub(r"\[[^\[\]]*\]", "", line)).replace(" ", "").replace("N", "2")
        longest = line.replace("[", "").replace("]", "").replace("N", "2.25").replace("M", "4")
        for name in shortest.split("|"):
            assert is_scheme(name), name
        for name in _choices(longest.split()):
            assert is_scheme(name), name


def _choices(parts: list[str]) -> list[str]:
    """Every way to write a pattern whose parts offer choices; `a-b|c|d-` has the prefix `a-` in common."""
    names = [""]
    for part in parts:
        first, *others = part.split("|")
        prefix = "mv-protect-" if first.startswith("mv-protect-") else ""
        options = [first, *(prefix + other for other in others)]
        names = [name + option for name in names for option in options]
    return names
