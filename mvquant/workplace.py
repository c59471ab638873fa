"""Where and how a calibrated method runs: device, memory, processes, and the folder for work in progress."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Int64
from torch import Tensor

from mvquant.arch import ModelView
from mvquant.backends.child import last_lines
from mvquant.backends.folder.run import LOG
from mvquant.checkpoint.staging import remove_leftovers
from mvquant.layerwise import ALONE, CPU, DEFAULT_LIMIT, SharedWork, WorkFolder
from mvquant.plan import Plan
from mvquant.preflight import preflight


@dataclass(frozen=True)
class Workplace:
    """Where and how a calibrated method runs.

    Attributes:
        resume: go on where an interrupted run stopped.
        device: that the model runs on.
        states_memory: bytes of hidden states between layers held in memory; what is beyond goes to disk.
        processes: those that share the calibration sequences.
        package_here: run a package for whole models in this process rather than in one of its own: somebody watches
            this one, and it has nothing else to do.
    """

    resume: bool = False
    device: torch.device = CPU
    states_memory: int = DEFAULT_LIMIT
    processes: SharedWork = ALONE
    package_here: bool = False

    def has_package_results(self, work: Path) -> bool:
        """Whether an earlier run's work is taken up of which only the checkpoint is left to write."""
        return self.resume and WorkFolder(work).package_is_done

    def preflight(self, plan: Plan, view: ModelView, batches: Sequence[Int64[Tensor, "1 _"]], work: Path) -> str:
        """Refuse what cannot fit here; see `mvquant.preflight`."""
        return preflight(
            plan,
            view,
            batches,
            work,
            device=self.device,
            states_memory=self.states_memory,
            processes=self.processes.size,
        )


HERE = Workplace()


def work_folder(out: Path) -> Path:
    """Where the work of quantizing to `out` is kept until it is done.

    >>> work_folder(Path("models/out")).as_posix()
    'models/out.work'
    """
    return out.with_name(f"{out.name}.work")


def clean_after_kill(out: Path) -> tuple[list[str], bool]:
    """Remove what a process has left that was killed while it quantized to `out`, but what can be gone on with.

    Returns:
        The last lines that a package printed, and whether there is something to go on with.
    """
    remove_leftovers(out)
    work = WorkFolder(work_folder(out))
    lines = last_lines(work.package / LOG)
    work.remove_if_useless()
    return lines, work.path.exists()
