"""`mvquant recipes ls|show|validate` and `mvquant schemes`: what can be asked for."""

from pathlib import Path
from typing import Annotated

import typer
import yaml
from rich.table import Table

from mvquant.cli.heavy import comparison
from mvquant.cli.terminal import AsJson, out, print_json
from mvquant.errors import UnknownNameError
from mvquant.named_schemes import COMMON_SCHEMES, scheme_summaries
from mvquant.recipe import load_recipe, recipe_paths
from mvquant.resources import resource_folder

recipes = typer.Typer(help="List, show or check recipes.", no_args_is_help=True)


@recipes.command("ls")
def ls(as_json: AsJson = False) -> None:
    """List the shipped recipes: for one model, and for comparisons of several."""
    single = {name: load_recipe(name).summary for name in recipe_paths()}
    several = {name: str(_read_yaml(path).get("summary", "")) for name, path in _comparison_paths().items()}
    if as_json:
        print_json({"recipes": single, "comparisons": several})
        return
    out.print("One model, for `mvquant plan|quantize --recipe NAME`:", highlight=False)
    _print_names(single)
    out.print("\nComparisons, for `mvquant compare NAME`:", highlight=False)
    _print_names(several)


@recipes.command("show")
def show(name: Annotated[str, typer.Argument(help="A shipped recipe.")]) -> None:
    """Print a shipped recipe, to be copied and changed: `mvquant recipes show w4a16 > mine.yaml`."""
    shipped = {**_comparison_paths(), **recipe_paths()}
    if name not in shipped:
        raise UnknownNameError("recipe", name, shipped)
    out.file.write(shipped[name].read_text(encoding="utf-8"))


@recipes.command("validate")
def validate(files: Annotated[list[str], typer.Argument(help="Recipe files, or names of shipped ones.")]) -> None:
    """Check recipes without reading a model; every mistake is listed."""
    for file in files:
        recipe = comparison.load_comparison_recipe(file) if _is_comparison(file) else load_recipe(file)
        out.print(f"{file}: valid ({recipe.summary})", soft_wrap=True, highlight=False)


def _comparison_paths() -> dict[str, Path]:
    """Shipped comparisons by name; only what is done with one needs the modules that load torch."""
    return {path.stem: path for path in sorted((resource_folder("recipes") / "compare").glob("*.yaml"))}


def _is_comparison(name_or_path: str) -> bool:
    path = Path(name_or_path)
    shipped = name_or_path in _comparison_paths() and name_or_path not in recipe_paths()
    return shipped or (path.is_file() and "variants" in _read_yaml(path))


def _read_yaml(path: Path) -> dict[str, object]:
    """The fields of a file; none where it is not YAML, which whoever loads it will say."""
    try:
        content: object = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return {}
    return {str(key): value for key, value in content.items()} if isinstance(content, dict) else {}


def schemes(as_json: AsJson = False) -> None:
    """List what `--scheme` takes."""
    summaries = scheme_summaries()
    if as_json:
        print_json(dict(summaries))
        return
    _print_names({name: summaries[name] for name in COMMON_SCHEMES})
    out.print("\nAdd -g64, -g32 or -row for other groups, then -asym for an asymmetric grid: w4a16-g64-asym.")
    out.print("Put gptq-, awq-, autoround- or smoothquant- (w8a8 only) before weights; w8a8-static has one scale.")
    out.print("Add -kN to cache K at N bits on average (1 to 8), vM for V (2, 3, 4, 8): mv-protect-w4a16-k2.25v4.")


def _print_names(summaries: dict[str, str]) -> None:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True, style="bold")
    table.add_column()
    for name, summary in summaries.items():
        table.add_row(name, summary)
    out.print(table)
