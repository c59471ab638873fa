"""The programs that run packages of this environment. Nothing heavy is imported here."""

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mvquant.method_settings import BackendName


@dataclass(frozen=True)
class Program:
    """How a package is run.

    Attributes:
        module: whose `quantize` does a job, and that is run as a process.
        environment: variables beside the usual ones.
    """

    module: str
    environment: Mapping[str, str] = field(default_factory=dict)

    def command(self, *jobs: Path) -> list[str]:
        """Return the command line that does jobs."""
        # -P: the folder that it starts in, which can be a downloaded model's, is not searched for modules
        return [sys.executable, "-P", "-m", self.module, *map(str, jobs)]


PROGRAMS: dict[BackendName, Program] = {
    # Its packer in C++ is switched off: compiling takes half a minute, which is what it saves on a billion weights.
    "gptqmodel": Program(
        "mvquant.backends.gptqmodel.quantize", {"GPTQMODEL_CPU_WORKERS": "2", "GPTQMODEL_DISABLE_PACK_EXT": "1"}
    ),
    "autoawq": Program("mvquant.backends.autoawq.quantize"),
    "auto-round": Program("mvquant.backends.autoround.quantize"),
}
"""By the backend that they run."""

QUIET = {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONUNBUFFERED": "1",
}
"""Environment variables of every child."""


def child_environment(threads: int | None = None, more: Mapping[str, str] | None = None) -> dict[str, str]:
    """Environment variables of a child that may use as many threads as its parent; as its parent began, by default."""
    counted = {} if threads is None else {"OMP_NUM_THREADS": str(threads)}
    return {**QUIET, **counted, **importing_mvquant(), **(more or {})}


def importing_mvquant() -> dict[str, str]:
    """Environment variable by which another Python finds this mvquant, installed or not."""
    path = [str(Path(__file__).parents[3]), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"PYTHONPATH": os.pathsep.join(path)}
