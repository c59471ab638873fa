"""`mvquant quantize`: the main job."""

import time
from pathlib import Path
from typing import Annotated

import typer

from mvquant.cli.heavy import pipeline, report
from mvquant.cli.terminal import (
    CalibrationOption,
    Model,
    Overwrite,
    RecipeOption,
    SchemeOption,
    chosen_recipe,
    err,
    out,
    progress_bar,
)
from mvquant.errors import ConfigError
from mvquant.plan import load_plan


def quantize(
    model: Model,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="OUT", help="Folder to write.")],
    scheme: SchemeOption = None,
    recipe: RecipeOption = None,
    plan: Annotated[Path | None, typer.Option("--plan", "-p", help="Obey a saved plan.")] = None,
    calibration: CalibrationOption = None,
    shard_size: Annotated[float, typer.Option(help="Largest weight file, in GB (10^9 bytes).", min=0.001)] = 1.0,
    overwrite: Overwrite = False,
) -> None:
    """Quantize a model into OUT, a folder that transformers loads after `import mvquant`.

    OUT appears only when it is complete.

        mvquant quantize reference --scheme mv-protect -o out
    """
    if plan is not None and (scheme, recipe, calibration) != (None, None, None):
        raise ConfigError("command line", ["--plan decides everything: leave --scheme, --recipe and --calibration"])
    pipeline.check_writable(output, overwrite=overwrite)
    started = time.monotonic()
    opened = pipeline.open_model(model)
    if plan is not None:
        made = load_plan(plan)
    else:
        wanted = chosen_recipe(scheme, recipe, calibration)
        with progress_bar("calibrating") as progress:
            made = pipeline.plan_model(model, wanted, opened, progress=progress)
    with progress_bar("quantizing") as progress:
        pipeline.quantize(
            opened, made, output, overwrite=overwrite, shard_bytes=int(shard_size * 1e9), progress=progress
        )
    out.print(report.plan_summary(made), highlight=False)
    err.print(f"wrote {output} in {time.monotonic() - started:.1f} s", highlight=False)
