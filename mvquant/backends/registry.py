"""Every backend: the distributions it needs, the versions it was tested with, what it can do, and how to get it.

A table and `importlib.metadata`: no backend is imported to be asked about.
"""

import logging
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NoReturn

from mvquant.backends.environments import environment_packages, packages_here
from mvquant.errors import BackendError
from mvquant.method_settings import BackendName, MethodName
from mvquant.scheme import WeightScheme

logger = logging.getLogger(__name__)

ALL_BITS = (8, 4, 3, 2)


@dataclass(frozen=True)
class Ability:
    """What a backend can do with a method.

    Attributes:
        method: by name.
        bits: of weights, where activations are not rounded; none where they have to be.
        grids: that it knows.
        activations: whether it rounds activations to 8 bits (`w8a8`, `w8a8-static`).

    >>> Ability("smoothquant", bits=(), activations=True).allows(WeightScheme(bits=4))
    False
    """

    method: MethodName
    bits: tuple[int, ...] = ALL_BITS
    grids: tuple[Literal["symmetric", "asymmetric"], ...] = ("symmetric", "asymmetric")
    activations: bool = False

    def allows(self, scheme: WeightScheme) -> bool:
        """Whether weights can be stored in a scheme."""
        if scheme.activations:
            return self.activations
        return scheme.bits in self.bits and ("symmetric" if scheme.symmetric else "asymmetric") in self.grids

    @property
    def summary(self) -> str:
        """The method and its bits, for people: `gptq: 8, 4, 3, 2 bits, w8a8`."""
        bits = [f"{', '.join(map(str, self.bits))} bits"] if self.bits else []
        only = [f"{self.grids[0]} only"] if self.bits and len(self.grids) == 1 else []
        return f"{self.method}: {', '.join([*bits, *only, *(['w8a8'] if self.activations else [])])}"


@dataclass(frozen=True)
class Backend:
    """One backend.

    Attributes:
        name: as recipes have it.
        packages: distributions that it needs, each with the versions that it was tested with.
        install: the command that gets it.
        abilities: by method.
        formats: of checkpoints that it writes when it is used without mvquant; what it computes fits those exactly.
        place: this environment, or one of its own that `mvquant backends install` makes.
        note: what else a person should know.
    """

    name: BackendName
    packages: Mapping[str, tuple[str, ...]]
    install: str
    abilities: tuple[Ability, ...]
    formats: tuple[str, ...]
    place: Literal["here", "legacy"] = "here"
    note: str = ""

    def can(self, method: MethodName, scheme: WeightScheme) -> bool:
        """Whether it can store weights in a scheme by a method."""
        return any(ability.method == method and ability.allows(scheme) for ability in self.abilities)


@dataclass(frozen=True)
class State:
    """What there is of a backend.

    Attributes:
        backend: which.
        versions: of its packages that are installed, by name.
        missing: names of the others.
        untested: of `versions`, those that it was not tested with.
    """

    backend: Backend
    versions: Mapping[str, str]
    missing: tuple[str, ...]
    untested: Mapping[str, str]

    @property
    def warning(self) -> str | None:
        """What to say of versions that were not tested."""
        if not self.untested:
            return None
        tested = ", ".join(f"{name} {' or '.join(self.backend.packages[name])}" for name in self.untested)
        found = ", ".join(f"{name} {version}" for name, version in self.untested.items())
        return f"{self.backend.name}: tested with {tested}; {found} is installed, and may differ"


_GPTQMODEL = {"gptqmodel": ("7.6.0",), "optimum": ("2.3.0",)}

BACKENDS: dict[BackendName, Backend] = {
    backend.name: backend
    for backend in (
        Backend(
            name="mvquant",
            packages={},
            install="pip install mvquant",
            abilities=(Ability("rtn", activations=True),),
            formats=("mvquant",),
        ),
        Backend(
            name="llmcompressor",
            packages={"llmcompressor": ("0.14.0.1",), "compressed-tensors": ("0.19.0",)},
            install='pip install "mvquant[llmcompressor]"',
            abilities=(
                Ability("gptq", activations=True),
                Ability("awq"),
                Ability("smoothquant", bits=(), grids=("symmetric",), activations=True),
            ),
            formats=("compressed-tensors",),
            note="the default for gptq, awq and smoothquant; works layer by layer",
        ),
        Backend(
            name="gptqmodel",
            packages=_GPTQMODEL,
            install='pip install "mvquant[gptq]"',
            abilities=(Ability("gptq"), Ability("awq", bits=(4, 3, 2))),
            formats=("gptq", "awq"),
            note="holds the whole model in memory",
        ),
        Backend(
            name="auto-round",
            packages={"auto-round": ("0.15.1",)},
            install='pip install "mvquant[autoround]"',
            abilities=(Ability("autoround"),),
            formats=("auto-round", "gptq", "awq"),
            note="holds the whole model in memory",
        ),
        Backend(
            name="autoawq",
            packages={"autoawq": ("0.2.9",), "zstandard": ("0.25.0",)},
            install="pip install --no-deps autoawq==0.2.9 zstandard",
            abilities=(Ability("awq", bits=(4,), grids=("asymmetric",)),),
            formats=("awq",),
            note="archived; holds the whole model in memory",
        ),
        Backend(
            name="auto-gptq",
            packages={"auto-gptq": ("0.7.1",), "transformers": ("4.53.3",)},
            install="mvquant backends install auto-gptq",
            abilities=(Ability("gptq"),),
            formats=("gptq",),
            place="legacy",
            note="archived; holds the whole model in memory, as 32-bit floats",
        ),
    )
}
"""Every backend by the name that a recipe gives it."""


def state(name: BackendName) -> State:
    """Look at what is installed of a backend."""
    backend = BACKENDS[name]
    found = packages_here(backend.packages) if backend.place == "here" else environment_packages(name)
    versions = {package: found[package] for package in backend.packages if package in found}
    missing = tuple(package for package in backend.packages if package not in found)
    untested = {
        package: version
        for package, version in versions.items()
        if version.partition("+")[0] not in backend.packages[package]
    }
    return State(backend, versions, missing, untested)


def versions(name: BackendName) -> dict[str, str]:
    """Versions of a backend's packages that are installed: for checkpoints and fingerprints."""
    return dict(state(name).versions)


def named(name: BackendName, found: Mapping[str, str]) -> dict[str, str]:
    """Name a backend's versions so that those of another environment do not pass for this one's."""
    return dict(found) if BACKENDS[name].place == "here" else {f"{name}/{package}": found[package] for package in found}


def require(name: BackendName) -> dict[str, str]:
    """Return the versions of a backend's packages; warn, once, of versions that were not tested.

    Raises:
        BackendError: a package is missing; the message has the command that installs it.
    """
    found = state(name)
    if found.missing:
        _refuse(found)
    if found.warning is not None and found.warning not in _warned:
        _warned.add(found.warning)
        logger.warning(found.warning)
    return dict(found.versions)


def _refuse(found: State) -> NoReturn:
    missing = ", ".join(found.missing)
    are = "is" if len(found.missing) == 1 else "are"
    where = f"in {sys.prefix}" if found.backend.place == "here" else "in an environment of its own"
    message = f"backend {found.backend.name} needs {missing}, which {are} not installed {where}"
    raise BackendError(f"{message}; to install: {found.backend.install}")


_warned: set[str] = set()
