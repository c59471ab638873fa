"""Round to nearest, layer by layer: for activations with one scale per tensor, which calibration has to find."""

import time
from collections.abc import Sequence
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from mvquant.arch import ModelView
from mvquant.backends.input_ranges import InputRanges
from mvquant.backends.layer import CalibratedLayer, LayerResult, ModuleRecord, RoundedModule
from mvquant.backends.nearest import lost_share, rounded
from mvquant.method_settings import Rtn
from mvquant.plan import ModulePlan


class RoundToNearest:
    """Every weight goes to the closest point of its group's grid; the inputs' range is that of the calibration text."""

    sees_rounded: ClassVar[bool] = True

    def __init__(self, settings: Rtn | None = None) -> None:
        self.settings = settings or Rtn()

    def require_fit(self, view: ModelView) -> None:
        """Accept every model that mvquant knows."""
        del view

    def quantize(self, layer: CalibratedLayer) -> LayerResult:
        """Quantize one layer.

        Raises:
            CalibrationError: inputs that are NaN or infinite.
        """
        static = [module for module in layer.modules if module.scheme.activations == "tensor"]
        started = time.perf_counter()
        ranges, tokens = _watched(layer, static) if static else (InputRanges(), None)
        each = (time.perf_counter() - started) / max(len(static), 1)
        modules: dict[str, RoundedModule] = {}
        records: list[ModuleRecord] = []
        for module in layer.modules:
            started = time.perf_counter()
            weight, is_static = _weight(layer, module), module in static
            scale = ranges.scale([module.name], weight.dtype) if is_static else None
            modules[module.name] = rounded(module, weight, scale)
            records.append(
                ModuleRecord(
                    module=module.name,
                    seconds=time.perf_counter() - started + (each if is_static else 0.0),
                    error=lost_share(module, weight, modules[module.name]),
                    tokens=tokens if is_static else None,
                )
            )
        return LayerResult(modules, records=tuple(records))


def _watched(layer: CalibratedLayer, modules: Sequence[ModulePlan]) -> tuple[InputRanges, int]:
    """Run the layer; return the ranges of the modules' inputs and how many tokens there were, over all processes."""
    ranges, tokens = InputRanges(), 0
    hooks = [ranges.watch(each.name, layer.module.get_submodule(layer.local(each.name))) for each in modules]
    try:
        for hidden in layer.run():
            tokens += hidden.shape[0] * hidden.shape[1]
    finally:
        for hook in hooks:
            hook.remove()
    ranges.share(layer.processes)
    device = next(layer.module.parameters()).device
    return ranges, int(layer.processes.sum(torch.tensor(tokens, device=device)))


def _weight(layer: CalibratedLayer, module: ModulePlan) -> Float[Tensor, "rows columns"]:
    local = layer.local(module.name)
    if module.kind == "experts":
        return layer.module.get_parameter(local).detach().reshape(module.rows, module.columns)
    linear = layer.module.get_submodule(local)
    weight = linear.get_parameter("weight").detach()
    return weight.T.contiguous() if isinstance(linear, Conv1D) else weight
