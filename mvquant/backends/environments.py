"""Environments of their own for archived packages that cannot live beside transformers 5: virtual environments.

They are made on request, in a cache folder, and never touch the environment that mvquant runs in.
"""

import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distributions, version
from pathlib import Path

from mvquant.backends.child import run_logged
from mvquant.errors import BackendError
from mvquant.method_settings import BackendName

PINS = "requirements.txt"
"""In an environment's folder: what it was made of. It is written last, so that no unfinished one has it."""

LOG = "install.log"
STALE_SECONDS = 24 * 3600.0
"""Age of an unfinished environment that nobody can be at work on any more."""


@dataclass(frozen=True)
class LegacyEnvironment:
    """How to make an environment.

    Attributes:
        python: version of Python that its packages have wheels for.
        pins: requirements file of the tested set.
        packages: what to report of it.
        size: of what is installed, for people.
        imports: module whose import proves that it works.
    """

    python: str
    pins: Path
    packages: tuple[str, ...]
    size: str
    imports: str


LEGACY: dict[BackendName, LegacyEnvironment] = {
    "auto-gptq": LegacyEnvironment(
        python="3.11",
        pins=Path(__file__).parent / "auto_gptq" / "requirements.txt",
        packages=("auto-gptq", "transformers", "torch", "accelerate", "peft", "datasets", "safetensors"),
        size="1.5 GB",
        imports="auto_gptq",
    ),
}
"""Backends that need an environment of their own."""


def environments_folder() -> Path:
    """Where environments lie: in `$MVQUANT_HOME`, else in mvquant's folder of the user's cache."""
    home = os.environ.get("MVQUANT_HOME")
    if home:
        return Path(home).expanduser().absolute() / "environments"
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache").absolute() / "mvquant" / "environments"


def environment_folder(name: BackendName) -> Path:
    """Where the environment of a backend lies, or would lie."""
    return environments_folder() / name


def environment_python(folder: Path) -> Path:
    """The interpreter of an environment."""
    return folder / "bin" / "python"


def is_current(name: BackendName) -> bool:
    """Whether the environment of a backend is there, complete, and of the set of packages that is asked for now."""
    made_of = environment_folder(name) / PINS
    return made_of.is_file() and made_of.read_bytes() == LEGACY[name].pins.read_bytes()


def environment_packages(name: BackendName) -> dict[str, str]:
    """Versions of what counts in the environment of a backend; nothing where there is none."""
    if not is_current(name):
        return {}
    paths = [str(path) for path in environment_folder(name).glob("lib/python3.*/site-packages")]
    found = {package: list(distributions(name=package, path=paths)) for package in LEGACY[name].packages}
    return {package: each[0].version for package, each in found.items() if each}


def packages_here(names: Iterable[str]) -> dict[str, str]:
    """Versions of distributions of the environment that mvquant runs in, of those that are installed."""
    found: dict[str, str] = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def create_environment(
    name: BackendName, folder: Path, report: Callable[[str], None], index: str | None = None
) -> None:
    """Make an environment in an empty folder, and try it.

    Args:
        name: of the backend.
        folder: to make it in; it may be renamed afterwards.
        report: is told what is going on, line by line.
        index: a package index beside pip's own, for a build of torch that is not there.

    Raises:
        BackendError: the Python that it needs is missing, or pip failed; with pip's last lines.
    """
    wanted, log = LEGACY[name], folder / LOG
    python = interpreter(wanted.python)
    pins = folder / "asked-for.txt"
    pins.write_text(own_torch(wanted.pins.read_text(encoding="utf-8")), encoding="utf-8")
    run_logged([python, "-I", "-m", "venv", folder], log, what="making a virtual environment", report=report)
    own = [environment_python(folder), "-I"]
    extra = ["--extra-index-url", index] if index else []
    run_logged(
        [*own, "-m", "pip", "--disable-pip-version-check", "install", "--only-binary=:all:", *extra, "-r", pins],
        log,
        what="pip",
        way_out="another package index can be given with --index",
        report=report,
    )
    report(f"trying it: import {wanted.imports}")
    run_logged([*own, "-c", f"import {wanted.imports}"], log, what=f"import {wanted.imports}")
    shutil.copyfile(wanted.pins, folder / PINS)


def interpreter(version_wanted: str) -> Path:
    """Find a Python of a version: the one that runs, or one on the path.

    Raises:
        BackendError: there is none.
    """
    if f"{sys.version_info.major}.{sys.version_info.minor}" == version_wanted:
        return Path(sys.executable)
    found = shutil.which(f"python{version_wanted}")
    if found is None:
        raise BackendError(f"this needs Python {version_wanted}, and there is no python{version_wanted} on the path")
    return Path(found)


def own_torch(pins: str) -> str:
    """Ask for the build of torch that runs here (`+cpu`), not for the largest that the index has.

    >>> own_torch("torch==2.13.0").startswith("torch==2.13.0")
    True
    """
    _, plus, build = version("torch").partition("+")
    return "\n".join(line + plus + build if line.startswith("torch==") else line for line in pins.splitlines()) + "\n"


def remove_leftovers(name: BackendName, older_than: float = STALE_SECONDS) -> None:
    """Remove what installs that were killed left beside an environment: folders that are not complete."""
    for folder in environments_folder().glob(f".{name}.*"):
        if time.time() - folder.stat().st_mtime >= older_than:
            shutil.rmtree(folder, ignore_errors=True)


def remove_environment(name: BackendName) -> bool:
    """Remove the environment of a backend; whether there was one."""
    folder = environment_folder(name)
    if not folder.exists():
        return False
    (folder / PINS).unlink(missing_ok=True)
    shutil.rmtree(folder)
    return True
