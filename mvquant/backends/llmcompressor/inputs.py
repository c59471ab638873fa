"""What the inputs of linears are like on the calibration text: Hessians for GPTQ, and scales of static activations."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from mvquant.backends.input_ranges import InputRanges
from mvquant.backends.layer import Processes
from mvquant.backends.llmcompressor.linears import LayerLinears, Linear
from mvquant.backends.llmcompressor.package import package
from mvquant.errors import BackendError, CalibrationError
from mvquant.plan import ModulePlan

HESSIAN_DTYPE = torch.float64
"""In which products are added up."""


@dataclass(eq=False)
class InputSum:
    """Of one input, over the sequences seen: twice the sum of `x x^T`, sequences, and tokens."""

    hessian: Float[Tensor, "columns columns"]
    sequences: Tensor
    tokens: Tensor

    @property
    def mean_hessian(self) -> Float[Tensor, "columns columns"]:
        """The Hessian of a sequence on average, float32: what the package hands to GPTQ."""
        return (self.hessian / self.sequences).float()


class InputSums:
    """Hessians of linears. Linears with the same input, such as Q, K and V, share one.

    A sequence's products are float32, as in the package, but their sum is float64: over any number of processes, in any
    order, it is the same once it is float32 again.
    """

    def __init__(self) -> None:
        self._leaders: dict[str, str] = {}
        self._sums: dict[str, InputSum] = {}
        self._inputs: list[tuple[Tensor, str]] = []

    def __getitem__(self, linear: str) -> InputSum:
        """The sum over the inputs of a linear.

        Raises:
            CalibrationError: it saw none.
        """
        if linear not in self._leaders:
            raise CalibrationError(f"{linear} saw no token of the calibration text: give more sequences")
        return self._sums[self._leaders[linear]]

    def watch(self, linear: Linear) -> RemovableHandle:
        """Add up the inputs of a linear from now on."""

        def see(module: nn.Module, arguments: tuple[Any, ...]) -> None:
            self._see(linear.name, module, arguments[0])

        return linear.module.register_forward_pre_hook(see)

    def next_sequence(self) -> None:
        """Forget the inputs themselves: a new sequence begins."""
        self._inputs.clear()

    def share(self, processes: Processes) -> None:
        """Add up what all processes saw.

        Raises:
            CalibrationError: inputs with NaN or infinite values.
        """
        for name, total in self._sums.items():
            total.hessian = processes.sum(total.hessian)
            total.sequences, total.tokens = processes.sum(total.sequences), processes.sum(total.tokens)
            if not bool(total.hessian.diagonal().isfinite().all()):
                raise CalibrationError(f"{name}: its inputs have NaN or infinite values on the calibration text")

    def _see(self, name: str, module: nn.Module, inputs: Tensor) -> None:
        leader = next((leader for tensor, leader in self._inputs if tensor is inputs), name)
        if self._leaders.setdefault(name, leader) != leader:
            raise BackendError(f"{name} shares its input with {leader} in some calibration sequences, not in others")
        if leader != name:
            return
        self._inputs.append((inputs, name))
        if name not in self._sums:
            columns, device = inputs.shape[-1], inputs.device
            hessian = torch.zeros(columns, columns, dtype=HESSIAN_DTYPE, device=device)
            self._sums[name] = InputSum(hessian, torch.zeros((), device=device), torch.zeros((), device=device))
        total = self._sums[name]
        # adds in place, so that the sum keeps its float64
        package("modifiers.gptq.helpers").accumulate_hessian(inputs, module, total.hessian, total.sequences)
        total.tokens += inputs[..., 0].numel()


def input_scale(ranges: InputRanges, plan: ModulePlan, linears: LayerLinears) -> Float[Tensor, "1"] | None:
    """The scale of a weight's inputs in the model's dtype; None where they have none, or one per token."""
    if plan.scheme.activations != "tensor":
        return None
    chosen = linears.by_plan[plan.name]
    return ranges.scale([linear.name for linear in chosen], chosen[0].weight.dtype)


def static_linears(linears: LayerLinears, plans: tuple[ModulePlan, ...]) -> list[Linear]:
    """Return the linears whose activations have one scale per tensor."""
    return [linear for plan in plans if plan.scheme.activations == "tensor" for linear in linears.by_plan[plan.name]]
