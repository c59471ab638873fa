"""`mvquant backends`: who can compute quantized weights, what is installed, and how to get the rest."""

from pathlib import Path
from typing import Annotated, Any, no_type_check

import typer
from rich.table import Table

from mvquant import __version__
from mvquant.backends.environments import (
    LEGACY,
    create_environment,
    environment_folder,
    is_current,
    remove_environment,
    remove_leftovers,
)
from mvquant.backends.registry import BACKENDS, State, state
from mvquant.checkpoint.staging import staged_folder
from mvquant.cli.terminal import AsJson, err, out, print_json
from mvquant.errors import UnknownNameError, UsageError
from mvquant.method_settings import BackendName

backends = typer.Typer(help="List what computes quantized weights; install what needs an environment of its own.")

Name = Annotated[str, typer.Argument(metavar="BACKEND", help="A backend by name, such as auto-gptq.")]


@backends.callback(invoke_without_command=True)
@no_type_check  # typer hands over an instance of a base class of its Context
def ls(context: typer.Context, as_json: AsJson = False) -> None:
    """List backends: what is installed, what each can do, and the commands that get the others."""
    if context.invoked_subcommand is not None:
        return
    states = [state(name) for name in BACKENDS]
    if as_json:
        print_json({each.backend.name: _facts(each) for each in states})
        return
    out.print(_table(states))
    out.print()
    for each in states:
        if each.backend.note:
            out.print(f"[bold]{each.backend.name}[/]: {each.backend.note}", highlight=False)
    for each in states:
        if each.warning is not None:
            out.print(f"\n{each.warning}.", highlight=False)
    if any(each.missing for each in states):
        out.print("\nTo get what is missing:")
    for each in states:
        if each.missing:
            out.print(f"  {each.backend.install}", soft_wrap=True, highlight=False, markup=False)


@backends.command("install")
def install(
    backend: Name,
    index: Annotated[
        str | None, typer.Option("--index", metavar="URL", help="A package index beside those that pip is set up for.")
    ] = None,
) -> None:
    """Make the environment of an archived backend, in the user's cache; `mvquant` itself stays as it is."""
    name = _known(backend)
    if name not in LEGACY:
        raise UsageError(f"{name} needs no environment of its own: {BACKENDS[name].install}")
    folder = environment_folder(name)
    if is_current(name):
        out.print(f"{name} is installed in {folder}", soft_wrap=True, highlight=False)
        return
    _make(name, folder, index)
    versions = ", ".join(f"{package} {version}" for package, version in state(name).versions.items())
    out.print(f"{name} is installed in {folder} ({versions})", soft_wrap=True, highlight=False)


@backends.command("remove")
def remove(backend: Name) -> None:
    """Remove the environment of an archived backend."""
    name = _known(backend)
    if name not in LEGACY:
        raise UsageError(f"{name} has no environment of its own; see `pip uninstall`")
    folder = environment_folder(name)
    remove_leftovers(name, older_than=0.0)
    said = "removed" if remove_environment(name) else "there is nothing in"
    out.print(f"{said} {folder}", soft_wrap=True, highlight=False)


def _make(name: BackendName, folder: Path, index: str | None) -> None:
    """Make an environment; what an older mvquant made of other packages is removed first."""
    remove_leftovers(name)
    remove_environment(name)
    err.print(f"installing {name} into {folder}: {LEGACY[name].size}, some minutes", soft_wrap=True, highlight=False)
    with staged_folder(folder) as stage, err.status("") as status:
        create_environment(name, stage, lambda line: status.update(line[: err.width - 4]), index)


def _known(name: str) -> BackendName:
    for known in BACKENDS:
        if name == known:
            return known
    raise UnknownNameError("backend", name, BACKENDS)


def _version(found: State) -> str:
    if found.missing:
        return "missing"
    return next(iter(found.versions.values()), __version__)


def _table(states: list[State]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for title in ("backend", "version", "can do", "formats"):
        table.add_column(title, no_wrap=title != "formats", style="bold" if title == "backend" else None)
    for each in states:
        can = "\n".join(ability.summary for ability in each.backend.abilities)
        table.add_row(each.backend.name, _version(each), can, ", ".join(each.backend.formats))
    return table


def _facts(found: State) -> dict[str, Any]:
    backend = found.backend
    where = {} if backend.place == "here" else {"folder": str(environment_folder(backend.name))}
    return {
        "ready": not found.missing,
        "versions": dict(found.versions),
        "missing": list(found.missing),
        "tested": {package: list(tested) for package, tested in backend.packages.items()},
        "untested": dict(found.untested),
        "install": backend.install,
        "methods": {
            ability.method: {"bits": list(ability.bits), "grids": list(ability.grids), "w8a8": ability.activations}
            for ability in backend.abilities
        },
        "formats": list(backend.formats),
        "place": backend.place,
        **where,
        "note": backend.note,
    }
