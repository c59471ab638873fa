"""SmoothQuant by llmcompressor, for one decoder layer.

Activations have few channels with a large range, weights have none: part of the range is moved from the ones into the
others, `s_j = max|X_j|^alpha / max|W_j|^(1 - alpha)`, before both are rounded to 8 bits (Xiao et al., "SmoothQuant:
Accurate and Efficient Post-Training Quantization for Large Language Models", ICML 2023).
"""

import time
from collections.abc import Sequence
from typing import Any, ClassVar

from mvquant.arch import ModelView
from mvquant.backends.input_ranges import InputRanges
from mvquant.backends.layer import CalibratedLayer, LayerResult, Processes
from mvquant.backends.llmcompressor.holder import changed_parameters, held, scaled_parameters
from mvquant.backends.llmcompressor.inputs import input_scale, static_linears
from mvquant.backends.llmcompressor.linears import LayerLinears, taken_apart
from mvquant.backends.llmcompressor.mappings import smoothquant_mappings
from mvquant.backends.llmcompressor.package import package
from mvquant.backends.llmcompressor.records import record
from mvquant.backends.nearest import lost_share, rounded
from mvquant.backends.replaced import replaced
from mvquant.errors import CalibrationError
from mvquant.method_settings import SmoothQuant


class SmoothQuantBackend:
    """SmoothQuant, as `LayerBackend`: scales by the package, then every weight to the closest point of its grid."""

    sees_rounded: ClassVar[bool] = False
    """Later layers are calibrated on what this one gives before it is rounded, as in the package."""

    def __init__(self, settings: SmoothQuant) -> None:
        self._settings = settings

    def require_fit(self, view: ModelView) -> None:
        """Refuse a family that SmoothQuant cannot scale.

        Raises:
            UnsupportedModelError: with the reason.
        """
        smoothquant_mappings(view.config, experts=any(weight.kind == "experts" for weight in view.weights))

    def quantize(self, layer: CalibratedLayer) -> LayerResult:
        """Quantize one layer.

        Raises:
            BackendError: the package is not installed.
            CalibrationError: inputs with NaN or infinite values.
            UnsupportedModelError: a family that SmoothQuant cannot scale.
        """
        start = time.perf_counter()
        with taken_apart(layer) as linears:
            mappings = smoothquant_mappings(layer.config, experts=bool(linears.experts))
            scaled = _smoothed(layer, linears, mappings, self._settings.alpha)
            ranges = _ranges(layer, linears)
            modules = {
                plan.name: rounded(plan, linears.matrix(plan.name), input_scale(ranges, plan, linears))
                for plan in layer.modules
            }
            seconds = (time.perf_counter() - start) / max(1, len(layer.modules))
            records = tuple(
                record(
                    plan,
                    linears,
                    seconds,
                    error=lost_share(plan, linears.matrix(plan.name), modules[plan.name]),
                    tokens=linears.tokens,
                )
                for plan in layer.modules
            )
            return LayerResult(modules, changed_parameters(layer, linears, scaled), records)


def _smoothed(layer: CalibratedLayer, linears: LayerLinears, mappings: Sequence[Any], alpha: float) -> set[str]:
    """Scale the layer in place; return the names in the layer of what changed."""
    module = package("modifiers.transform.smoothquant.base")
    with held(layer) as root, replaced(module, is_distributed=lambda: False):
        modifier = module.SmoothQuantModifier(smoothing_strength=alpha, mappings=mappings)
        modifier.resolved_mappings_ = modifier._resolve_mappings(root)
        modifier.scales_ = {}
        modifier._setup_scale_hooks()
        linears.run()
        modifier.remove_hooks()
        _share(modifier.scales_, layer.processes)
        pairs = [(mapping.smooth_layer, mapping.balance_layers) for mapping in modifier.resolved_mappings_]
        modifier._apply_smoothing(root)
        return scaled_parameters(layer, pairs)


def _share(ranges: dict[str, Any], processes: Processes) -> None:
    """Take the extremes of all processes.

    Raises:
        CalibrationError: outputs with NaN or infinite values.
    """
    for name, seen in ranges.items():
        seen.max_channel_vals = processes.maximum(seen.max_channel_vals)
        seen.min_channel_vals = -processes.maximum(-seen.min_channel_vals)
        if not bool((seen.max_channel_vals - seen.min_channel_vals).isfinite().all()):
            raise CalibrationError(f"what {name} gives has NaN or infinite values on the calibration text")


def _ranges(layer: CalibratedLayer, linears: LayerLinears) -> InputRanges:
    """Run the smoothed layer once more where activations have one scale per tensor."""
    ranges = InputRanges()
    watched = static_linears(linears, layer.modules)
    if watched:
        linears.run([ranges.watch(linear.name, linear.module) for linear in watched])
        ranges.share(layer.processes)
    return ranges
