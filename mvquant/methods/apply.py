"""Quantized modules from a plan: empty ones for a loader to fill, or a whole model quantized in memory."""

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from mvquant.arch import ModelView, model_view
from mvquant.errors import PlanError
from mvquant.folding import RowFactors, fold_factors, recorded_scales
from mvquant.kvcache.fit import require_cache_fit
from mvquant.methods.results import WeightResults
from mvquant.methods.rtn import quantize as quantize_module
from mvquant.plan import ModulePlan, Plan, check_plan_fits
from mvquant.quant import MixedRowLinear, QuantizedExperts, replace_weight


def apply_plan(model: PreTrainedModel, plan: Plan, results: WeightResults | None = None) -> PreTrainedModel:
    """Fold and quantize a model in memory, in place; its logits equal those of the checkpoint that the plan would give.

    The cache is no part of the model: `planned_cache` brings it.

    Args:
        model: the model.
        plan: what to do.
        results: what a calibrated method made of it, where the plan names one.

    Raises:
        PlanError: the plan or the results are for another model, or the plan needs results and there are none.
    """
    view = model_view(model.config)
    require_plan_fit(plan, view)
    require_results(plan, view, results)
    with torch.no_grad():
        for name, factors in plan_factors(plan, view).items():
            parameter = model.get_parameter(name)
            parameter.copy_(factors.folded(parameter))
        if results is not None:
            for name in results.changed:
                model.get_parameter(name).copy_(results.parameter(name))
    for module in plan.modules:
        if module.scheme.is_quantized:
            weight, bias = _weight_and_bias(model, module)
            state = results.state(module.name) if results is not None else quantize_module(module, weight)
            replace_weight(model, module.name, _filled(module, state, bias))
    return model


def require_results(plan: Plan, view: ModelView, results: WeightResults | None) -> None:
    """Refuse to round to nearest what a plan gives to a calibrated method, and results of another model.

    Raises:
        PlanError: names the method, the module or the parameter.
    """
    method = plan.recipe.method.name
    if results is None and plan.recipe.calibrates_weights:
        raise PlanError(
            f"the plan's weights are for {method}, which runs the model on calibration text: "
            "quantize a model folder with `mvquant quantize --plan`"
        )
    static = next((module for module in plan.modules if module.scheme.activations == "tensor"), None)
    if results is None and static is not None:
        raise PlanError(
            f"{static.name}: {static.scheme.name} has a scale of activations from calibration, which the plan's recipe "
            "does not ask for: name w8a8-static in the recipe's weights, or choose w8a8 (a scale per token)"
        )
    unknown = sorted(set(results.changed) - set(view.parameters)) if results is not None else []
    if unknown:
        raise PlanError(f"{method} changed {unknown[0]}, which the model lacks: its results are of another model")


def require_plan_fit(plan: Plan, view: ModelView) -> None:
    """Refuse a plan that was made for another model: its weights, what it folds, or its cache.

    Raises:
        PlanError: names the first that differs.
        UnsupportedModelError: a cache or scales to fold in a model without RoPE.
    """
    check_plan_fits(plan, {weight.name: weight.shape for weight in view.weights})
    plan_factors(plan, view)
    if plan.cache is not None:
        require_cache_fit(plan.cache, view)


def plan_factors(plan: Plan, view: ModelView) -> dict[str, RowFactors]:
    """What a plan folds, by the name of the parameter.

    Raises:
        PlanError: scales for another model.
    """
    return fold_factors(view, recorded_scales(plan.fold)) if plan.fold else {}


def empty_module(module: ModulePlan, model: PreTrainedModel) -> MixedRowLinear | QuantizedExperts:
    """Build the quantized module without values, in the dtype of the model, on the meta device."""
    weight, bias = _weight_and_bias(model, module)
    count = len(module.protected_rows)
    if module.kind == "experts":
        experts, rows, columns = module.shape
        return QuantizedExperts.empty(
            (experts, rows, columns),
            module.scheme,
            module.protected_scheme,
            count,
            dtype=weight.dtype,
        )
    return MixedRowLinear.empty(
        (module.rows, module.columns),
        module.scheme,
        module.protected_scheme,
        count,
        bias=bias is not None,
        dtype=weight.dtype,
    )


def _weight_and_bias(model: PreTrainedModel, module: ModulePlan) -> tuple[Tensor, Tensor | None]:
    if module.kind == "experts":
        return model.get_parameter(module.name).detach(), None
    linear = model.get_submodule(module.name)
    weight = linear.get_parameter("weight").detach()
    bias = getattr(linear, "bias", None)
    return weight.T if isinstance(linear, Conv1D) else weight, None if bias is None else bias.detach()


def _filled(module: ModulePlan, state: dict[str, Tensor], bias: Tensor | None) -> MixedRowLinear | QuantizedExperts:
    if module.kind == "experts":
        experts, rows, columns = module.shape
        return QuantizedExperts((experts, rows, columns), state, module.scheme, module.protected_scheme)
    return MixedRowLinear((module.rows, module.columns), state, module.scheme, module.protected_scheme, bias)
