"""Round to nearest, layer by layer: for activations with one scale per tensor, which calibration has to find."""

import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers.pytorch_utils import Conv1D

from mvquant.backends.layer import CalibratedLayer, LayerResult, ModuleRecord, RoundedModule
from mvquant.errors import CalibrationError
from mvquant.method_settings import Rtn
from mvquant.plan import ModulePlan
from mvquant.quant import RoundedWeight, fit_grid, round_to_nearest


class RoundToNearest:
    """Every weight goes to the closest point of its group's grid; the inputs' range is that of the calibration text."""

    sees_rounded: ClassVar[bool] = True

    def __init__(self, settings: Rtn | None = None) -> None:
        self.settings = settings or Rtn()

    def quantize(self, layer: CalibratedLayer) -> LayerResult:
        """Quantize one layer.

        Raises:
            CalibrationError: inputs that are NaN, or that are never seen.
        """
        static = [module for module in layer.modules if module.scheme.activations == "tensor"]
        started = time.perf_counter()
        seen = _InputRanges(layer, static) if static else None
        each = (time.perf_counter() - started) / max(len(static), 1)
        modules: dict[str, RoundedModule] = {}
        records: list[ModuleRecord] = []
        for module in layer.modules:
            started = time.perf_counter()
            weight = _weight(layer, module)
            scale = seen.scale(module, weight.dtype) if seen and module in static else None
            rounded = RoundedModule(round_to_nearest(weight, module.scheme), _kept(module, weight), scale)
            modules[module.name] = rounded
            records.append(
                ModuleRecord(
                    module=module.name,
                    seconds=time.perf_counter() - started + (each if module in static else 0.0),
                    error=_relative_error(module, weight, rounded),
                    tokens=seen.tokens if seen and module in static else None,
                )
            )
        return LayerResult(modules, records=tuple(records))


class _InputRanges:
    """The largest magnitude of every module's inputs over all calibration sequences, of all processes."""

    def __init__(self, layer: CalibratedLayer, modules: Sequence[ModulePlan]) -> None:
        self._largest: dict[str, Tensor] = {}
        tokens = 0
        with self._watched(layer, modules):
            for hidden in layer.run():
                tokens += hidden.shape[0] * hidden.shape[1]
        device = next(layer.module.parameters()).device
        self.tokens = int(layer.processes.sum(torch.tensor(tokens, device=device)))
        self._largest = {
            module.name: layer.processes.maximum(self._largest.get(module.name, torch.zeros((), device=device)))
            for module in modules
        }

    def scale(self, module: ModulePlan, dtype: torch.dtype) -> Float[Tensor, "1"]:
        largest = self._largest[module.name]
        if not bool(largest.isfinite()):
            raise CalibrationError(f"{module.name} gets NaN or infinite inputs on the calibration text")
        # inputs of 8 bits have the grid of weights of 8 bits
        return fit_grid(largest.reshape(1, 1).to(dtype), module.scheme).scale.reshape(1)

    @contextmanager
    def _watched(self, layer: CalibratedLayer, modules: Sequence[ModulePlan]) -> Generator[None]:
        def watch(name: str) -> None:
            def look(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
                largest = inputs[0].abs().amax().float()
                known = self._largest.get(name, largest)
                self._largest[name] = torch.maximum(known, largest)

            hooks.append(layer.module.get_submodule(layer.local(name)).register_forward_pre_hook(look))

        hooks: list[RemovableHandle] = []
        for module in modules:
            watch(module.name)
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


def _weight(layer: CalibratedLayer, module: ModulePlan) -> Float[Tensor, "rows columns"]:
    local = layer.local(module.name)
    if module.kind == "experts":
        return layer.module.get_parameter(local).detach().reshape(module.rows, module.columns)
    linear = layer.module.get_submodule(local)
    weight = linear.get_parameter("weight").detach()
    return weight.T.contiguous() if isinstance(linear, Conv1D) else weight


def _kept(module: ModulePlan, weight: Tensor) -> RoundedWeight | Tensor | None:
    """All rows as the protected ones are stored."""
    scheme = module.protected_scheme
    if scheme is None or not scheme.is_quantized:
        return None if scheme is None else weight
    return round_to_nearest(weight, scheme)


def _relative_error(module: ModulePlan, weight: Tensor, rounded: RoundedModule) -> float:
    """Share of the weights' energy that rounding takes away."""
    energy = torch.linalg.vector_norm(weight, dtype=torch.float32)
    lost = torch.linalg.vector_norm(rounded.base.dequantize(module.scheme, torch.float32).sub_(weight))
    return float((lost / energy.clamp(min=torch.finfo(torch.float32).tiny)).square())
