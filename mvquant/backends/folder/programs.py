"""The programs that run packages of this environment, each in a process of its own. Nothing heavy is imported here.

A program gets the files of its jobs as arguments, or else as lines of its standard input, which it reads when it has
imported its package. So it can be started before there is a job (`started_early`): importing torch and transformers
takes seconds, which the package's process and ours then take at the same time.
"""

import os
import subprocess
import sys
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from mvquant.backends import registry
from mvquant.backends.child import end_child, start_child
from mvquant.checkpoint.staging import raised_termination
from mvquant.method_settings import BackendName


@dataclass(frozen=True)
class Program:
    """How a package's process is started.

    Attributes:
        module: that it runs.
        environment: variables beside the usual ones.
    """

    module: str
    environment: Mapping[str, str] = field(default_factory=dict)

    def command(self, *jobs: Path) -> list[str]:
        """Return the command line that does jobs, or waits for them."""
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
    path = os.pathsep.join([str(Path(__file__).parents[3]), *filter(None, [os.environ.get("PYTHONPATH")])])
    counted = {} if threads is None else {"OMP_NUM_THREADS": str(threads)}
    return {**QUIET, **counted, "PYTHONPATH": path, **(more or {})}


@dataclass(frozen=True, eq=False)
class WaitingProgram:
    """A program that runs, and waits for its jobs.

    Attributes:
        backend: that it runs.
        process: to be watched once it has its jobs.
    """

    backend: BackendName
    process: "subprocess.Popen[bytes]"

    @property
    def is_free(self) -> bool:
        """Whether it can still be given jobs, which is done once."""
        return self.process.stdin is not None and not self.process.stdin.closed

    def give(self, jobs: Sequence[Path]) -> None:
        """Tell it the files of its jobs; whether it still lives is seen by who watches it."""
        assert self.process.stdin is not None, "it was started with a pipe"
        with suppress(BrokenPipeError):
            self.process.stdin.write(b"".join(os.fsencode(job) + b"\n" for job in jobs))
            self.process.stdin.close()


@contextmanager
def started_early(backend: BackendName) -> Generator[WaitingProgram | None]:
    """Start the program of a backend, if it has one and all that it needs is installed, and end it with the block.

    Args:
        backend: by name; nothing is started for those that work layer by layer or have an environment of their own.

    Raises:
        BackendError: it could not be started.
        SystemExit: this process was asked to end by SIGTERM, in its main thread.
    """
    program = PROGRAMS.get(backend)
    if program is None or registry.state(backend).missing:
        yield None
        return
    with raised_termination():
        process = start_child(
            program.command(),
            what=f"backend {backend}",
            environment=child_environment(more=program.environment),
            stdin=subprocess.PIPE,
        )
        try:
            yield WaitingProgram(backend, process)
        finally:
            end_child(process)
