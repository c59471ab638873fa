"""`mvquant plan`: decide, print, save; touch nothing."""

from pathlib import Path
from typing import Annotated

import typer

from mvquant.cli.heavy import pipeline, report
from mvquant.cli.terminal import (
    AsJson,
    CalibrationOption,
    Model,
    RecipeOption,
    SchemeOption,
    chosen_recipe,
    err,
    out,
    print_json,
    progress_bar,
)


def plan(
    model: Model,
    scheme: SchemeOption = None,
    recipe: RecipeOption = None,
    calibration: CalibrationOption = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Save the plan as JSON.")] = None,
    every_head: Annotated[bool, typer.Option("--heads", help="Print the protected pairs of every head.")] = False,
    as_json: AsJson = False,
) -> None:
    """Decide which rows of which module get how many bits, and print it.

    A saved plan can be edited and given to `mvquant quantize --plan`.
    """
    wanted = chosen_recipe(scheme, recipe, calibration)
    opened = pipeline.open_model(model)
    with progress_bar("calibrating") as progress:
        made = pipeline.plan_model(model, wanted, opened, progress=progress)
    if as_json:
        print_json(made.model_dump(mode="json", exclude_defaults=True))
    else:
        out.print(report.format_plan(made, every_head=every_head))
    if output:
        made.save(output)
        err.print(f"saved {output}", highlight=False)
