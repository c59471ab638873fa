"""The largest input of each linear on the calibration text: for activations with one scale per tensor."""

from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from mvquant.backends.layer import Processes
from mvquant.errors import CalibrationError
from mvquant.quant.activations import activation_scale


class InputRanges:
    """The largest absolute input of each linear, by name."""

    def __init__(self) -> None:
        self._largest: dict[str, Float[Tensor, ""]] = {}

    def watch(self, name: str, module: nn.Module) -> RemovableHandle:
        """Look at the inputs of a module from now on."""

        def see(_module: nn.Module, arguments: tuple[Any, ...]) -> None:
            largest = arguments[0].detach().abs().amax()
            known = self._largest.get(name)
            self._largest[name] = largest if known is None else torch.maximum(known, largest)

        return module.register_forward_pre_hook(see)

    def share(self, processes: Processes) -> None:
        """Take the largest of all processes.

        Raises:
            CalibrationError: inputs with NaN or infinite values.
        """
        self._largest = {name: processes.maximum(largest) for name, largest in self._largest.items()}
        for name, largest in self._largest.items():
            if not bool(largest.isfinite()):
                raise CalibrationError(f"{name} gets NaN or infinite inputs on the calibration text")

    def scale(self, names: Iterable[str], dtype: torch.dtype) -> Float[Tensor, "1"]:
        """Return the scale that holds the inputs of all these modules."""
        largest = torch.stack([self._largest[name] for name in names]).amax()
        return activation_scale(largest.to(dtype)).view(1)
