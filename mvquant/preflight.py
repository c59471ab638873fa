"""Whether a calibrated method has room to run here, asked before it begins."""

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Int64
from torch import Tensor

from mvquant.arch import ModelView
from mvquant.backends.folder.run import FOLDER_BACKENDS
from mvquant.layerwise import available_room, operations_per_second, predict, require_room
from mvquant.method_backends import works_by_layers
from mvquant.plan import Plan


def preflight(
    plan: Plan,
    view: ModelView,
    batches: Sequence[Int64[Tensor, "1 _"]],
    work: Path,
    *,
    device: torch.device,
    states_memory: int,
    processes: int = 1,
) -> str:
    """Predict memory, disk and time, and refuse what cannot fit; of a package on a device, that beside the device.

    Args:
        plan: what is to be done.
        view: the model's structure.
        batches: calibration sequences.
        work: folder for work in progress.
        device: that runs the layers.
        states_memory: bytes of hidden states between layers held in memory.
        processes: that share the sequences, on this machine.

    Raises:
        UsageError: it cannot fit, with the numbers and the way out.

    Returns:
        What it takes and what there is, in a line.
    """
    method = plan.recipe.method
    package = None if works_by_layers(method) else FOLDER_BACKENDS[method.backend]
    if package is not None and device.type not in package.devices:
        device = torch.device("cpu")
    lengths = [batch.shape[1] for batch in batches]
    needs = predict(plan, view, lengths, states_memory, processes=processes, package=package)
    room = available_room(device, work, processes)
    require_room(needs, room)
    return needs.line(room, operations_per_second(device, getattr(torch, plan.dtype)))
