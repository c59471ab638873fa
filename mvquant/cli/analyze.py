"""`mvquant analyze`: find the massive values of a model."""

from pathlib import Path
from typing import Annotated

import typer

from mvquant.cli.heavy import pipeline, report
from mvquant.cli.terminal import AsJson, CalibrationOption, Model, Overwrite, err, out, print_json, progress_bar
from mvquant.recipe import Calibration


def analyze(
    model: Model,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Folder for JSON and pictures.")],
    calibration: CalibrationOption = None,
    sequences: Annotated[int, typer.Option(min=1, help="Calibration sequences.")] = 32,
    length: Annotated[int, typer.Option(min=2, help="Tokens in each.")] = 512,
    ratio: Annotated[
        float | None,
        typer.Option(min=1, help="Times the mean norm of its head; by default what 5 asks of 128 dims, 3.54 at 64."),
    ] = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Measure Q, K and V on text, find massive values, and draw where they sit.

    DIR gets analysis.json, stats.safetensors, heatmaps.png, counts.png, wavelengths.png (with RoPE), and for more than
    eight layers heatmaps/layer-NN.png.
    """
    wanted = Calibration(source=calibration or "auto", sequences=sequences, length=length)
    with progress_bar("calibrating") as progress:
        analysis = pipeline.analyze_model(model, wanted, ratio, output, overwrite=overwrite, progress=progress)
    if as_json:
        print_json(analysis.model_dump(mode="json"))
    else:
        out.print(report.format_analysis(analysis))
    err.print(f"wrote {output}", highlight=False)
