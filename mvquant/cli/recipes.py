"""`mvquant recipes ls|show|validate` and `mvquant schemes`: what can be asked for."""

from typing import Annotated

import typer
from rich.table import Table

from mvquant.cli.terminal import AsJson, out, print_json
from mvquant.errors import UnknownNameError
from mvquant.named_schemes import COMMON_SCHEMES, scheme_summaries
from mvquant.recipe import load_recipe, recipe_paths

recipes = typer.Typer(help="List, show or check recipes.", no_args_is_help=True)


@recipes.command("ls")
def ls(as_json: AsJson = False) -> None:
    """List the shipped recipes."""
    _print_names({name: load_recipe(name).summary for name in recipe_paths()}, as_json=as_json)


@recipes.command("show")
def show(name: Annotated[str, typer.Argument(help="A shipped recipe.")]) -> None:
    """Print a shipped recipe, to be copied and changed: `mvquant recipes show w4a16 > mine.yaml`."""
    if name not in recipe_paths():
        raise UnknownNameError("recipe", name, recipe_paths())
    out.file.write(recipe_paths()[name].read_text(encoding="utf-8"))


@recipes.command("validate")
def validate(files: Annotated[list[str], typer.Argument(help="Recipe files, or names of shipped ones.")]) -> None:
    """Check recipes without reading a model; every mistake is listed."""
    for file in files:
        recipe = load_recipe(file)
        out.print(f"{file}: valid ({recipe.summary})", soft_wrap=True, highlight=False)


def schemes(as_json: AsJson = False) -> None:
    """List what `--scheme` takes."""
    summaries = scheme_summaries()
    if as_json:
        print_json(dict(summaries))
        return
    _print_names({name: summaries[name] for name in COMMON_SCHEMES}, as_json=False)
    out.print("\nAdd -g64, -g32 or -row for other groups, then -asym for an asymmetric grid: w4a16-g64-asym.")
    out.print("Add -kN to cache K at N bits on average (1 to 8), vM for V (2, 3, 4, 8): mv-protect-w4a16-k2.25v4.")


def _print_names(summaries: dict[str, str], *, as_json: bool) -> None:
    if as_json:
        print_json(dict(summaries))
        return
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True, style="bold")
    table.add_column()
    for name, summary in summaries.items():
        table.add_row(name, summary)
    out.print(table)
