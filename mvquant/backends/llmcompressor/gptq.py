"""GPTQ by llmcompressor, for one decoder layer.

GPTQ rounds column after column, and moves the error of each into the columns that are not rounded yet, in proportion to
the inverse Hessian of the layer's output error (Frantar et al., "GPTQ: Accurate Post-Training Quantization for
Generative Pre-trained Transformers", ICLR 2023). Rows do not know of each other: protected rows are rounded on their
own grid by the same Hessian, and change nothing in the others.
"""

import time
from collections.abc import Iterable, Iterator
from typing import ClassVar, NamedTuple

from torch import Tensor

from mvquant.arch import ModelView
from mvquant.backends.input_ranges import InputRanges
from mvquant.backends.layer import HESSIAN_BYTES, CalibratedLayer, LayerResult, ModuleRecord, RoundedModule
from mvquant.backends.llmcompressor.gptq_matrix import Rounded, gptq_round, joined
from mvquant.backends.llmcompressor.inputs import HESSIAN_DTYPE, InputSum, InputSums, input_scale, static_linears
from mvquant.backends.llmcompressor.linears import LayerLinears, Linear, taken_apart
from mvquant.backends.llmcompressor.records import record
from mvquant.method_settings import Gptq
from mvquant.plan import ModulePlan
from mvquant.quant import RoundedWeight


class GptqBackend:
    """GPTQ, as `LayerBackend`."""

    sees_rounded: ClassVar[bool] = True
    """Later layers are calibrated on what this one gives once it is rounded, as in the package and in the paper."""

    def __init__(self, settings: Gptq) -> None:
        self._settings = settings

    def require_fit(self, view: ModelView) -> None:
        """Accept every model that mvquant knows."""
        del view

    def quantize(self, layer: CalibratedLayer) -> LayerResult:
        """Quantize one layer.

        Raises:
            BackendError: the package is not installed.
            CalibrationError: inputs with NaN or infinite values.
            UnsupportedModelError: experts of a shape that the package cannot take apart.
        """
        parts: dict[str, _Part] = {}
        with taken_apart(layer) as linears:
            ranges = InputRanges()
            static = {linear.name for linear in static_linears(linears, layer.modules)}
            for some in _shares(linears):
                sums = _summed(layer, linears, some, ranges, static)
                for plan, linear in some:
                    parts[linear.name] = self._rounded(plan, linear, sums[linear.name])
            ranges.share(layer.processes)
            modules = {plan.name: _module(plan, linears, parts, ranges) for plan in layer.modules}
            records = tuple(self._record(plan, linears, parts) for plan in layer.modules)
        return LayerResult(modules, records=records)

    def _rounded(self, plan: ModulePlan, linear: Linear, inputs: InputSum) -> "_Part":
        start = time.perf_counter()
        base, protected = gptq_round(linear.weight, inputs, plan.scheme, self._settings), None
        if plan.protected_scheme is not None and plan.protected_scheme.is_quantized:
            protected = gptq_round(linear.weight, inputs, plan.protected_scheme, self._settings)
        return _Part(base, protected, int(inputs.tokens), time.perf_counter() - start)

    def _record(self, plan: ModulePlan, linears: LayerLinears, parts: dict[str, "_Part"]) -> ModuleRecord:
        own = [parts[linear.name] for linear in linears.by_plan[plan.name]]
        base = joined([part.base for part in own])
        seconds = sum(part.seconds for part in own)
        tokens, notes = min(part.tokens for part in own), self._notes(base)
        return record(plan, linears, seconds, tokens=tokens, error=base.error, damping=base.damping, notes=notes)

    def _notes(self, rounded: Rounded) -> tuple[str, ...]:
        damping = f"{rounded.damping:g}"
        if rounded.failed:
            where = "" if rounded.failed == 1 else f" ({rounded.failed} matrices)"
            return (f"rounded to nearest{where}: its Hessian cannot be inverted, even with damping {damping}",)
        if rounded.damping > self._settings.damping:
            return (f"damping raised from {self._settings.damping:g} to {damping} to invert its Hessian",)
        return ()


class _Part(NamedTuple):
    """What became of one linear; `protected` is all its rows in the protected scheme, if that rounds."""

    base: Rounded
    protected: Rounded | None
    tokens: int
    seconds: float


def _shares(linears: LayerLinears) -> Iterator[list[tuple[ModulePlan, Linear]]]:
    """Cut the linears of a layer into lists whose Hessians are held at once."""
    share: list[tuple[ModulePlan, Linear]] = []
    held = 0
    for plan, linear in linears.planned():
        size = HESSIAN_DTYPE.itemsize * plan.columns**2
        if share and held + size > HESSIAN_BYTES:
            yield share
            share, held = [], 0
        share.append((plan, linear))
        held += size
    yield share


def _summed(
    layer: CalibratedLayer,
    linears: LayerLinears,
    some: Iterable[tuple[ModulePlan, Linear]],
    ranges: InputRanges,
    static: set[str],
) -> InputSums:
    """Run the layer, and sum up the inputs of some linears."""
    sums = InputSums()
    watched = [linear for _, linear in some]
    hooks = [sums.watch(linear) for linear in watched]
    hooks += [ranges.watch(linear.name, linear.module) for linear in watched if linear.name in static]
    linears.run(hooks, after=sums.next_sequence)
    sums.share(layer.processes)
    return sums


def _module(plan: ModulePlan, linears: LayerLinears, parts: dict[str, _Part], ranges: InputRanges) -> RoundedModule:
    own = [parts[linear.name] for linear in linears.by_plan[plan.name]]
    kept: RoundedWeight | Tensor | None = None
    protected = [part.protected for part in own if part.protected is not None]
    if protected:
        kept = joined(protected).weight
    elif plan.protected_scheme is not None:
        kept = linears.matrix(plan.name).clone()  # the layer may be written to before it is used
    return RoundedModule(joined([part.base for part in own]).weight, kept, input_scale(ranges, plan, linears))
