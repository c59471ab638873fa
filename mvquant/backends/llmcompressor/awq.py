"""AWQ by llmcompressor, for one decoder layer.

AWQ multiplies the columns with large activations by scales, and divides what feeds them, so that they lose less when
they are rounded. Exponents of the scales are tried on a grid; those that change outputs least are taken (Lin et al.,
"AWQ: Activation-aware Weight Quantization for On-Device LLM Compression and Acceleration", MLSys 2024).
"""

import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from math import prod
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

from mvquant.arch import ModelView, WeightView
from mvquant.backends.layer import CalibratedLayer, LayerResult, Processes
from mvquant.backends.llmcompressor.holder import changed_parameters, held, scaled_parameters
from mvquant.backends.llmcompressor.linears import LayerLinears, taken_apart
from mvquant.backends.llmcompressor.mappings import awq_mappings
from mvquant.backends.llmcompressor.package import every_expert, package, unpinned, weight_scheme
from mvquant.backends.llmcompressor.records import record
from mvquant.backends.nearest import rounded
from mvquant.backends.replaced import replaced
from mvquant.errors import CalibrationError, UsageError
from mvquant.method_settings import Awq
from mvquant.plan import ModulePlan

FEWEST_GRID_POINTS = 3
"""The package divides by the number of exponents less two."""

_NOT_SCALED: Mapping[str, tuple[str, ...]] = {
    "gemma3_text": ("q_proj",),
    "gpt_neox": ("dense", "dense_4h_to_h"),
    "olmo2": ("q_proj", "gate_proj"),
}
"""By family: weights whose input no scale goes into, named by the first of those that share it (see `awq_mappings`)."""


class AwqBackend:
    """AWQ, as `LayerBackend`: scales by the package, then every weight to the closest point of its grid."""

    sees_rounded: ClassVar[bool] = False
    """Later layers are calibrated on what this one gives before it is rounded, as in the package."""

    def __init__(self, settings: Awq) -> None:
        """Take the settings.

        Raises:
            UsageError: fewer exponents than the package can try.
        """
        if settings.grid_points < FEWEST_GRID_POINTS:
            raise UsageError(
                f"awq by llmcompressor tries at least {FEWEST_GRID_POINTS} exponents, not {settings.grid_points}: "
                "raise grid_points (20 by default)"
            )
        self._settings = settings

    def require_fit(self, view: ModelView) -> None:
        """Refuse a family that AWQ cannot scale.

        Raises:
            UnsupportedModelError: with the reason.
        """
        awq_mappings(view.config, experts=any(weight.kind == "experts" for weight in view.weights))

    def quantize(self, layer: CalibratedLayer) -> LayerResult:
        """Quantize one layer.

        Raises:
            BackendError: the package is not installed.
            CalibrationError: inputs or outputs with NaN or infinite values.
            UnsupportedModelError: a family that AWQ cannot scale.
        """
        start = time.perf_counter()
        with taken_apart(layer) as linears:
            mappings = awq_mappings(layer.config, experts=bool(linears.experts))
            found = _scaled(layer, linears, mappings, self._settings)
            seconds = (time.perf_counter() - start) / max(1, len(layer.modules))
            return LayerResult(
                {plan.name: rounded(plan, linears.matrix(plan.name)) for plan in layer.modules},
                changed_parameters(layer, linears, found.parameters),
                tuple(_record(plan, linears, found, seconds) for plan in layer.modules),
            )


class AwqSearch(NamedTuple):
    """What the package holds and runs to find scales for weights that share an input.

    It judges scales by what the smallest module around all those weights gives, which is the weight's own if it is
    alone. What goes into that module is kept, of all sequences, from the run of the layer until the search is over;
    what comes out is held twice, of the weights as they were and of those that are tried; the module is run for the
    first, and for every exponent.

    Attributes:
        columns: of what goes in; of experts' down projections all together, for each expert gets every token.
        rows: of what comes out, of one expert.
        copied: weights that are kept as they were.
        run: weights in the module, those of all experts.
    """

    columns: int
    rows: int
    copied: int
    run: int


def awq_search(view: ModelView, weights: Sequence[WeightView]) -> AwqSearch | None:
    """Say what the package takes for weights of a layer.

    Args:
        view: the model's structure.
        weights: all that share an input; experts' gate and up projections are one.

    Returns:
        None where the package puts no scales into them.
    """
    first = weights[0]
    around, _, leaf = first.name.rpartition(".")
    if leaf in _NOT_SCALED.get(view.family, ()) or _lacks_scales(view, first):
        return None
    *experts, rows, columns = first.shape
    copied = sum(prod(weight.shape) for weight in weights)
    if experts and leaf == "down_proj":
        return AwqSearch(experts[0] * columns, rows, copied // experts[0], copied)
    if len(weights) == 1 and not experts:
        return AwqSearch(columns, rows, copied, copied)
    module = around.rpartition(".")[0] if experts else around
    run = sum(prod(weight.shape) for weight in view.weights if weight.name.startswith(f"{module}."))
    return AwqSearch(columns, view.config.get_text_config().hidden_size, copied, run)


def _lacks_scales(view: ModelView, weight: WeightView) -> bool:
    """Whether it is an output projection whose columns are more than the rows of V, which heads share."""
    values = view.attentions[weight.layer].v
    return weight.name.endswith(".o_proj") and values.heads * values.head_dim != weight.shape[-1]


class _Found(NamedTuple):
    """Names of scaled parameters in the layer; by linear, the error of the best scales, and tokens that chose them."""

    parameters: set[str]
    errors: dict[str, float]
    tokens: dict[str, int]


def _scaled(layer: CalibratedLayer, linears: LayerLinears, mappings: Sequence[Any], settings: Awq) -> _Found:
    """Scale the layer in place."""
    module = package("modifiers.transform.awq.base")
    with ExitStack() as stack:
        root = stack.enter_context(held(layer))
        for plan, linear in linears.planned():
            assert isinstance(linear.module, nn.Linear), "families with Conv1D are refused"
            stack.enter_context(weight_scheme(linear.module, plan.scheme))
        stack.enter_context(_alone(module, layer.processes))
        stack.enter_context(every_expert())
        # what goes into a module waits there until scales are searched for it: that of all sequences, in all modules,
        # and of experts in each of them. `predict` counts it as the machine's memory. On the CPU nothing is copied.
        waiting = torch.device("cpu")
        search = module.AWQModifier(
            mappings=mappings, n_grid=settings.grid_points, duo_scaling=settings.duo_scaling, offload_device=waiting
        )
        search._set_resolved_mappings(root)
        search._resolved_mappings = [each for each in search._resolved_mappings if _is_planned(each)]
        _observe(search, linears, layer.processes)
        resolved = [each for each in search._resolved_mappings if each.smooth_name in search._smooth_activation_stats]
        tokens = {name: int(count) for name, (_, count) in search._smooth_activation_stats.items()}
        search._apply_smoothing(root)
        return _collected(layer, search, resolved, tokens)


def _is_planned(mapping: Any) -> bool:  # noqa: ANN401
    """Whether any weight that a mapping multiplies is rounded: without one there is nothing to search for."""
    return any(hasattr(module, "quantization_scheme") for module in mapping.balance_layers)


@contextmanager
def _alone(module: Any, processes: Processes) -> Generator[None]:  # noqa: ANN401
    """Let the package search without progress bars and pinned memory, and leave other processes to us.

    Its own sums over processes want an accelerator, and float32 sums depend on how sequences are dealt out.
    """

    def loss(_search: object, plain: Sequence[Tensor], rounded: Sequence[Tensor]) -> float:
        errors = [nn.functional.mse_loss(a, b, reduction="sum").double() for a, b in zip(plain, rounded, strict=True)]
        total = processes.sum(torch.stack(errors).sum())
        return float(total / processes.sum(torch.tensor(sum(each.numel() for each in plain), device=total.device)))

    with (
        unpinned(),
        replaced(module, tqdm=partial(tqdm, disable=True)),
        replaced(module, is_distributed=lambda: False),
        replaced(module.AWQModifier, _compute_loss=loss),
    ):
        yield


def _observe(search: Any, linears: LayerLinears, processes: Processes) -> None:  # noqa: ANN401
    """Run the layer, and let the package's hooks see it; sums of activations are float64, over all processes.

    Raises:
        CalibrationError: inputs with NaN or infinite values.
    """
    seen = search._smooth_activation_stats
    for mapping in search._resolved_mappings:
        columns = mapping.balance_layers[0].weight.shape[1]
        seen[mapping.smooth_name] = [torch.zeros(columns, dtype=torch.float64), torch.tensor(0)]
    search._setup_activation_cache_hooks()
    linears.run()
    search.remove_hooks()
    for name, (total, count) in list(seen.items()):
        seen[name] = [processes.sum(total).float(), processes.sum(count)]
        if not int(seen[name][1]):
            del seen[name]
        elif not bool(seen[name][0].isfinite().all()):
            raise CalibrationError(f"what {name} gives has NaN or infinite values on the calibration text")


def _collected(layer: CalibratedLayer, search: Any, resolved: Sequence[Any], tokens: dict[str, int]) -> _Found:  # noqa: ANN401
    """Say what was scaled.

    Raises:
        CalibrationError: the package skipped a mapping, because outputs were not finite.
    """
    errors = {metric["layer_name"]: float(metric["best_error"]) for metric in search._error_metrics}
    found = _Found(set(), {}, {})
    for mapping in resolved:
        if mapping.smooth_name not in errors:
            raise CalibrationError(f"{mapping.parent_name} gives NaN or infinite values on the calibration text")
        found.parameters.update(scaled_parameters(layer, [(mapping.smooth_layer, mapping.balance_layers)]))
        for name in mapping.balance_names:
            found.errors[name], found.tokens[name] = errors[mapping.smooth_name], tokens[mapping.smooth_name]
    return found


def _record(plan: ModulePlan, linears: LayerLinears, found: _Found, seconds: float) -> Any:  # noqa: ANN401
    names = [linear.name for linear in linears.by_plan[plan.name]]
    errors = [found.errors[name] for name in names if name in found.errors]
    notes = () if errors else ("rounded to nearest: AWQ scales no input of it in this family",)
    return record(
        plan,
        linears,
        seconds,
        tokens=found.tokens.get(names[0]),
        error=max(errors, default=None),
        notes=notes,
    )
