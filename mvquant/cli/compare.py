"""`mvquant compare`: judge several ways to quantize one model, on the same items."""

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from mvquant.cli.heavy import comparing, comparison, report
from mvquant.cli.terminal import AsJson, err, out, print_json, progress_bar
from mvquant.errors import ConfigError, MvquantError

INTERRUPTED = 130


class ComparisonInterruptedError(MvquantError):
    """Ctrl-C, after which the same command goes on."""

    exit_code = INTERRUPTED


def compare(
    recipe: Annotated[
        str | None, typer.Argument(metavar="[RECIPE]", help="A comparison: a file, or a shipped one by name.")
    ] = None,
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", metavar="DIR", help="Folder for report.html and all else; an earlier one goes on."
        ),
    ] = Path("comparison"),
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="The baseline: a folder, a Hub id, or `reference`.")
    ] = None,
    schemes: Annotated[
        str | None,
        typer.Option(
            "--schemes", "-s", help="Schemes, recipes, plans (.json) or checkpoints (folders), separated by commas."
        ),
    ] = None,
    tasks: Annotated[str | None, typer.Option(help="Tasks or groups, separated by commas.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many items of each task.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Prompts per batch; 64 by default.")] = None,
    chat_template: Annotated[
        bool | None,
        typer.Option(
            "--chat-template/--no-chat-template", help="Put prompts into the chat template of the baseline's tokenizer."
        ),
    ] = None,
    equal_bytes: Annotated[
        bool | None,
        typer.Option("--equal-bytes/--no-equal-bytes", help="Add controls that spend the same bytes otherwise."),
    ] = None,
    noise_floor: Annotated[
        bool | None, typer.Option("--noise-floor/--no-noise-floor", help="Run the baseline twice (the default).")
    ] = None,
    text: Annotated[
        str | None,
        typer.Option(help="Running text for KL and perplexity: a file, folder, Hub dataset, `reference`, or `none`."),
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="Local data of tasks from the Hub; MVQUANT_DATA says it too.")
    ] = None,
    device: Annotated[str, typer.Option(help="Where to run, such as `cpu` or `cuda:0`.")] = "cpu",
    engine: Annotated[
        str, typer.Option(help="`local`: one variant after another; `ray`: each in a Ray task (extra `ray`).")
    ] = "local",
    seed: Annotated[int | None, typer.Option(help="Of random rows and of the bootstrap; 0 by default.")] = None,
    as_json: AsJson = False,
) -> None:
    """Compare a model with variants of it: what did reading lose, what did recall lose, is the difference real?

    DIR gets report.html (the page to read), table.md (the same as a table), cards/NAME.md (a section for the model card
    of each checkpoint), results.json (every figure), flips.jsonl (items that some answered right and others wrong),
    plans/NAME.json, analysis.json and stats.safetensors (massive values of the model, where they were measured),
    checkpoints/NAME-HASH (of methods that calibrate) and pieces/ (every answer). Each answer is kept as soon as it is
    there: the same command goes on where it was interrupted. A variant that fails is recorded, the others finish, and
    the exit code is 1. Tasks without data are named and left out; those named with --tasks stop the command instead.

        mvquant compare --model reference --schemes w3a16,mv-protect-w3a16 --equal-bytes -o out
    """
    changes = {
        "tasks": tasks,
        "limit": limit,
        "batch_size": batch_size,
        "chat_template": chat_template,
        "equal_bytes": equal_bytes,
        "noise_floor": noise_floor,
        "seed": seed,
    }
    wanted = _wanted(
        recipe, model, schemes, text, {name: value for name, value in changes.items() if value is not None}
    )
    setting = comparison.Setting(device=device, engine=engine, command=_command())
    try:
        with progress_bar("comparing") as progress:
            results = comparing.compare_models(
                wanted, output, setting=setting, progress=progress, note=_note, data_dir=data_dir
            )
    except KeyboardInterrupt:
        message = f"interrupted: what was answered is kept in {output}, the same command goes on from there"
        raise ComparisonInterruptedError(message) from None
    if as_json:
        print_json(results.model_dump(mode="json"))
    else:
        out.file.write(report.comparison_markdown(results))
    err.print(f"wrote {output}: open {output / 'report.html'}", highlight=False, markup=False, soft_wrap=True)
    if not results.complete:
        raise typer.Exit(1)


def _wanted(
    recipe: str | None, model: str | None, schemes: str | None, text: str | None, changes: dict[str, Any]
) -> Any:  # noqa: ANN401 - a ComparisonRecipe, whose module is loaded lazily
    """The comparison that a file or the flags ask for; flags change what the file says."""
    if recipe is not None and (model is not None or schemes is not None):
        raise ConfigError("command line", ["a comparison recipe names model and variants: leave --model and --schemes"])
    if recipe is None and (model is None or schemes is None):
        raise ConfigError("command line", ["give a comparison recipe, or --model with --schemes"])
    if recipe is not None:
        fields: dict[str, Any] = dict(comparison.load_comparison_recipe(recipe))
    else:
        fields = {"model": model, "variants": [word.strip() for word in str(schemes).split(",") if word.strip()]}
    if text is not None:
        fields["text"] = None if text == "none" else {**dict(fields.get("text") or {}), "source": text}
    return comparison.comparison_recipe({**fields, **changes}, "command line" if recipe is None else recipe)


def _command() -> str:
    return shlex.join(["mvquant", *sys.argv[1:]])


def _note(message: str) -> None:
    err.print(message, highlight=False, markup=False, soft_wrap=True)
