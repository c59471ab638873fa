"""Where and how a calibrated method runs: device, memory, processes, and the folder for work in progress."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Int64
from torch import Tensor

from mvquant.arch import ModelView
from mvquant.backends.folder.programs import WaitingProgram
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
        waiting: the process of the method's package, if it was started before.
    """

    resume: bool = False
    device: torch.device = CPU
    states_memory: int = DEFAULT_LIMIT
    processes: SharedWork = ALONE
    waiting: WaitingProgram | None = None

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
