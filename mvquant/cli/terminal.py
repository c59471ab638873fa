"""What the command line prints: results on stdout, everything else on stderr."""

import json
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mvquant.errors import ConfigError
from mvquant.named_schemes import recipe_for_scheme
from mvquant.recipe import Recipe, load_recipe

INTERRUPTED = 130
"""Exit code of a run that was interrupted."""

NOTHING_LEFT = "nothing was left behind"

out = Console()
err = Console(stderr=True)

Model = Annotated[str, typer.Argument(metavar="MODEL", help="A model folder, a Hub id, or the word `reference`.")]
SchemeOption = Annotated[
    str | None, typer.Option("--scheme", "-s", help="A scheme by name; `mvquant schemes` lists them.")
]
RecipeOption = Annotated[str | None, typer.Option("--recipe", "-r", help="A shipped recipe by name, or a recipe file.")]
CalibrationOption = Annotated[
    str | None,
    typer.Option("--calibration", "-c", help="Text to measure on: a file, a folder, a Hub dataset, or `reference`."),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the output folder, if mvquant wrote it.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]


class AlreadySaid(SystemExit):
    """The end of a command that was interrupted and has said what there is to say."""


def way_to_resume(work: Path) -> str:
    """Say where the work is that an ended run has left, and what to do with it."""
    return f"what is done is in {work}: go on with --resume"


def chosen_recipe(scheme: str | None, recipe: str | None, calibration: str | None) -> Recipe:
    """Return the one recipe that the flags ask for.

    Raises:
        ConfigError: neither or both of the flags.
    """
    if scheme is not None and recipe is None:
        chosen = recipe_for_scheme(scheme)
    elif recipe is not None and scheme is None:
        chosen = load_recipe(recipe)
    else:
        raise ConfigError("command line", ["give one of --scheme and --recipe"])
    if calibration is None:
        return chosen
    source = chosen.calibration.model_copy(update={"source": calibration})
    return chosen.model_copy(update={"calibration": source})


def print_json(value: dict[str, Any]) -> None:
    """Print a value as JSON, never wrapped or coloured."""
    out.file.write(json.dumps(value, indent=1) + "\n")


@contextmanager
def progress_bar(what: str, *, shown: bool = True) -> Generator[Callable[[str, int, int], None]]:
    """Give a function to be told (detail, done, all); it draws a bar on a terminal and nothing elsewhere."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("[dim]{task.fields[detail]}"),
    )
    with Progress(
        *columns,
        console=err,
        transient=True,
        speed_estimate_period=float("inf"),
        disable=not (shown and err.is_terminal),
    ) as progress:
        task = progress.add_task(what, total=None, detail="")

        def update(detail: str, done: int, total: int) -> None:
            progress.update(task, completed=done, total=total, detail=detail[-30:])

        yield update
