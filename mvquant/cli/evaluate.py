"""`mvquant eval`: ask a model what it reads and what it knows."""

from pathlib import Path
from typing import Annotated

import typer

from mvquant.cli.heavy import evaluation, pipeline, report
from mvquant.cli.terminal import AsJson, Model, err, out, print_json, progress_bar


def evaluate(
    model: Model,
    tasks: Annotated[str, typer.Option(help="Tasks or groups, separated by commas.")] = "contextual,parametric",
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many items of each task.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Prompts per batch.")] = 64,
    device: Annotated[str, typer.Option(help="Where to run, such as `cpu` or `cuda:0`.")] = "cpu",
    baseline: Annotated[Path | None, typer.Option(help="Results of the unquantized model, to compare with.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Save results and every answer.")] = None,
    as_json: AsJson = False,
) -> None:
    """Measure contextual accuracy (the answer is in the prompt) and parametric accuracy (in the weights)."""
    compared_with = [] if baseline is None else evaluation.load_results(baseline)[:1]
    chosen = pipeline.find_tasks([name.strip() for name in tasks.split(",") if name.strip()])
    with progress_bar("evaluating") as progress:
        result = pipeline.evaluate_model(
            model, chosen, limit=limit, batch_size=batch_size, device=device, progress=progress
        )
    if output:
        result.save(output)
        err.print(f"saved {output}", highlight=False)
    if as_json:
        print_json(result.model_dump(mode="json"))
    else:
        out.print(report.verdict_table([*compared_with, result]))
