"""`mvquant eval`: ask a model what it reads and what it knows."""

from pathlib import Path
from typing import Annotated

import typer

from mvquant.cli.heavy import evaluation, pipeline, report
from mvquant.cli.terminal import AsJson, Model, err, out, print_json, progress_bar


def evaluate(
    model: Model,
    tasks: Annotated[
        str | None,
        typer.Option(
            help="Tasks or groups, separated by commas; `contextual,parametric` by default.", show_default=False
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many items of each task.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Prompts per batch.")] = 64,
    device: Annotated[str, typer.Option(help="Where to run, such as `cpu` or `cuda:0`.")] = "cpu",
    data_dir: Annotated[
        Path | None, typer.Option(help="Local data of tasks from the Hub; MVQUANT_DATA says it too.")
    ] = None,
    chat_template: Annotated[
        bool, typer.Option("--chat-template", help="Put prompts into the chat template of the tokenizer.")
    ] = False,
    baseline: Annotated[Path | None, typer.Option(help="Results of the unquantized model, to compare with.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Save results and every answer.")] = None,
    as_json: AsJson = False,
) -> None:
    """Measure contextual accuracy (the answer is in the prompt) and parametric accuracy (in the weights)."""
    compared_with = [] if baseline is None else evaluation.load_results(baseline)[:1]
    wanted = pipeline.default_tasks(model) if tasks is None else tasks.split(",")
    names = [name.strip() for name in wanted if name.strip()]
    chosen = pipeline.find_tasks(names, data_dir)
    with progress_bar("evaluating") as progress:
        result = pipeline.evaluate_model(
            model,
            chosen,
            harness=pipeline.find_harness_tasks(names),
            chat_template=chat_template,
            limit=limit,
            batch_size=batch_size,
            device=device,
            progress=progress,
        )
    if output:
        result.save(output)
        err.print(f"saved {output}", highlight=False)
    if as_json:
        print_json(result.model_dump(mode="json"))
    else:
        out.print(report.verdict_table([*compared_with, result]))
        subject = result.subject
        if subject.bits_per_cached_key is not None and subject.bits_per_cached_value is not None:
            cached = f"K {subject.bits_per_cached_key:.2f}, V {subject.bits_per_cached_value:.2f}"
            out.print(f"{model}: bits per cached value: {cached}, everything counted", highlight=False)
