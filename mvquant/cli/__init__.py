"""The command line: one verb per file. Flags choose files, recipes choose behaviour."""

import sys
from typing import Annotated

import typer

from mvquant import __version__
from mvquant.cli.analyze import analyze
from mvquant.cli.backends import backends
from mvquant.cli.compare import compare
from mvquant.cli.evaluate import evaluate
from mvquant.cli.foreign_logs import quiet_foreign_logs
from mvquant.cli.plan import plan
from mvquant.cli.quantize import quantize
from mvquant.cli.recipes import recipes, schemes
from mvquant.cli.report import report
from mvquant.cli.terminal import INTERRUPTED, NOTHING_LEFT, AlreadySaid, err, out
from mvquant.cli.verdict import verdict
from mvquant.cli.worker import ended_soon
from mvquant.cli.worker_killed import WORKER_KILLED, worker_killed
from mvquant.errors import MvquantError

app = typer.Typer(
    name="mvquant",
    help="Quantize a language model without losing what it reads.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode="markdown",
)
app.command("analyze")(analyze)
app.command("plan")(plan)
app.command("quantize")(quantize)
app.command("eval")(evaluate)
app.command("compare")(compare)
app.command("report")(report)
app.command("verdict")(verdict)
app.command("schemes")(schemes)
app.command(WORKER_KILLED, hidden=True)(worker_killed)
app.add_typer(recipes, name="recipes")
app.add_typer(backends, name="backends")


def _print_version(wanted: bool | None) -> None:
    if wanted:
        out.print(f"mvquant {__version__}")
        raise typer.Exit


@app.callback()
def _top(
    version: Annotated[
        bool | None, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = None,
) -> None:
    del version


def main() -> None:
    """Run the command line; exit with 0, 1 (failed), 2 (asked for something wrong), 130 or 143 (interrupted)."""
    quiet_foreign_logs()
    with ended_soon():
        _run()


def _run() -> None:
    try:
        app()
    except MvquantError as error:
        err.print(f"[bold red]error:[/] {_plain(str(error))}", highlight=False)
        sys.exit(error.exit_code)
    except SystemExit as stop:
        if stop.code == INTERRUPTED and not isinstance(stop, AlreadySaid):
            err.print(f"interrupted; {NOTHING_LEFT}")
        raise


def _plain(message: str) -> str:
    """Keep rich from reading `[...]` in a message as markup."""
    return message.replace("[", r"\[")
