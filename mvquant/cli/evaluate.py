"""`mvquant eval`: ask a model what it reads and what it knows."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from mvquant.cli.heavy import evaluation, pipeline, report
from mvquant.cli.terminal import AsJson, Model, err, out, print_json, progress_bar
from mvquant.errors import EvaluationError


def evaluate(
    model: Model,
    tasks: Annotated[
        str | None,
        typer.Option(
            help="Tasks or groups, separated by commas; those that suit the model by default.", show_default=False
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many items of each task.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Prompts per batch.")] = 64,
    device: Annotated[
        str | None,
        typer.Option(
            help="Where to run, such as `cuda:0`; `cpu` by default, or what another engine chooses.", show_default=False
        ),
    ] = None,
    engine: Annotated[
        str,
        typer.Option(
            help="`hf` (transformers), or an engine of lm-evaluation-harness (extra `eval`), such as `vllm`; those "
            "cannot load mvquant's own format."
        ),
    ] = "hf",
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
    """Measure contextual accuracy (the answer is in the prompt) and parametric accuracy (in the weights).

    Tasks whose data is not here are named with the way to it; the others run, and the exit code is 1.
    """
    compared_with = [] if baseline is None else evaluation.load_results(baseline)[:1]
    wanted = pipeline.default_tasks(model) if tasks is None else tasks.split(",")
    names = [name.strip() for name in wanted if name.strip()]
    own = pipeline.find_available_tasks(names, data_dir, pipeline.token_count(model))
    theirs = pipeline.prepare_harness_tasks(names, model)
    without = [*own.missing, *(theirs.missing if theirs else ())]
    if without:
        said = evaluation.describe_missing(without)
        if not (own.tasks or (theirs and theirs.tasks)):
            raise EvaluationError(said)
        err.print(f"[bold yellow]left out:[/] {escape(said)}", highlight=False)
    options: dict[str, Any] = {"harness": theirs, "missing": without, "chat_template": chat_template, "limit": limit}
    options |= {"batch_size": batch_size}
    if engine == "hf":
        with progress_bar("evaluating") as progress:
            result = pipeline.evaluate_model(model, own.tasks, device=device or "cpu", progress=progress, **options)
    else:
        result = pipeline.evaluate_in_engine(model, own.tasks, engine, data_dir=data_dir, device=device, **options)
    if output:
        result.save(output)
        err.print(f"saved {output}", highlight=False)
    if as_json:
        print_json(result.model_dump(mode="json"))
    else:
        _show(model, result, compared_with)
    if without:
        raise typer.Exit(1)


def _show(model: str, result: Any, compared_with: Sequence[Any]) -> None:  # noqa: ANN401 - loaded lazily
    out.print(report.verdict_table([*compared_with, result]))
    subject = result.subject
    if subject.bits_per_cached_key is not None and subject.bits_per_cached_value is not None:
        cached = f"K {subject.bits_per_cached_key:.2f}, V {subject.bits_per_cached_value:.2f}"
        out.print(f"{model}: bits per cached value: {cached}, everything counted", highlight=False)
