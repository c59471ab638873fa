"""`mvquant quantize`: the main job."""

import os
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mvquant.backends.folder.programs import PROGRAMS
from mvquant.checkpoint.staging import check_writable
from mvquant.cli.heavy import pipeline, report
from mvquant.cli.terminal import (
    INTERRUPTED,
    AlreadySaid,
    CalibrationOption,
    Model,
    Overwrite,
    RecipeOption,
    SchemeOption,
    chosen_recipe,
    err,
    out,
    progress_bar,
    way_to_resume,
)
from mvquant.cli.worker import can_fork, leave_to_worker
from mvquant.cli.worker_killed import WORKER_KILLED
from mvquant.errors import ConfigError
from mvquant.plan import Plan, load_plan
from mvquant.recipe import Recipe

if TYPE_CHECKING:
    from mvquant.pipeline import OpenModel, Workplace

GB = 1e9


def quantize(
    model: Model,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="OUT", help="Folder to write.")],
    scheme: SchemeOption = None,
    recipe: RecipeOption = None,
    plan: Annotated[Path | None, typer.Option("--plan", "-p", help="Obey a saved plan.")] = None,
    calibration: CalibrationOption = None,
    shard_size: Annotated[float, typer.Option(help="Largest weight file, in GB (10^9 bytes).", min=0.001)] = 1.0,
    device: Annotated[
        str,
        typer.Option(help="Where the model is run: cpu, cuda, ...; AutoAWQ and auto-gptq keep to the CPU."),
    ] = "cpu",
    states_memory: Annotated[
        float, typer.Option(help="Hidden states between layers kept in memory, in GB; the rest goes to disk.", min=0)
    ] = 4.0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where an interrupted run to OUT stopped.")] = False,
    overwrite: Overwrite = False,
) -> None:
    """Quantize a model into OUT, a folder that transformers loads after `import mvquant`.

    OUT appears only when it is complete. Methods of llm-compressor run the model layer by layer and keep what is done
    in OUT.work, so that --resume goes on after an interruption; torchrun shares their text between processes. Packages
    for whole models hold the model in memory and run in one process; --resume takes up what they finished.

        mvquant quantize reference --scheme mv-protect -o out

        torchrun --nproc-per-node 2 -m mvquant quantize reference --scheme gptq-w4a16 -o out
    """
    if plan is not None and (scheme, recipe, calibration) != (None, None, None):
        raise ConfigError("command line", ["--plan decides everything: leave --scheme, --recipe and --calibration"])
    started = time.monotonic()
    decided = chosen_recipe(scheme, recipe, calibration) if plan is None else load_plan(plan)
    check_writable(output, overwrite=overwrite)
    package_here = _is_for_worker(decided)
    if package_here:
        leave_to_worker([WORKER_KILLED, "--", str(output)])
    with pipeline.joined_processes(device) as processes:
        first = processes.rank == 0
        place = pipeline.Workplace(
            resume=resume,
            device=pipeline.usable_device(pipeline.own_device(device)),
            states_memory=int(states_memory * GB),
            processes=processes,
            package_here=package_here,
        )
        opened = pipeline.open_model(model)
        made = decided if isinstance(decided, Plan) else _planned(model, decided, opened, place, output)
        with _work_kept(output), progress_bar("quantizing", shown=first) as progress:
            pipeline.quantize(
                opened,
                made,
                output,
                overwrite=overwrite,
                shard_bytes=int(shard_size * GB),
                progress=progress,
                place=place,
                note=_note if first else None,
            )
    if first:
        out.print(report.plan_summary(made), highlight=False)
        err.print(f"wrote {output} in {time.monotonic() - started:.1f} s", highlight=False)


def _is_for_worker(decided: Plan | Recipe) -> bool:
    """Whether a package is asked that takes whole models, in this environment, by one process that can be forked."""
    recipe = decided.recipe if isinstance(decided, Plan) else decided
    return recipe.method.backend in PROGRAMS and int(os.environ.get("WORLD_SIZE", "1")) == 1 and can_fork()


def _planned(model: str, recipe: Recipe, opened: "OpenModel", place: "Workplace", output: Path) -> Plan:
    if recipe.calibrates_weights:
        work = pipeline.work_folder(output)
        pipeline.require_method(recipe.method, opened.view, work, resume=place.resume, processes=place.processes)
        earlier = pipeline.plan_to_resume(model, recipe, opened, output) if place.resume else None
        if earlier is not None:
            return earlier
        pipeline.require_room_to_quantize(model, recipe, opened, output, place)
    with progress_bar("calibrating", shown=place.processes.rank == 0) as progress:
        return pipeline.plan_model(model, recipe, opened, progress=progress, place=place)


def _note(sentence: str) -> None:
    err.print(sentence, highlight=False, markup=False)


@contextmanager
def _work_kept(output: Path) -> Generator[None]:
    """Say of an interruption what is left, and how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        work = pipeline.work_folder(output)
        if not work.exists():
            raise
        err.print(f"interrupted; {way_to_resume(work)}", highlight=False)
        raise AlreadySaid(INTERRUPTED) from None
