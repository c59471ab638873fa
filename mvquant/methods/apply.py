"""Quantized modules from a plan: empty ones for a loader to fill, or a whole model quantized in memory."""

from torch import Tensor
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from mvquant.arch import model_view
from mvquant.methods.table import quantize_module
from mvquant.plan import ModulePlan, Plan, check_plan_fits
from mvquant.quant import MixedRowLinear, QuantizedExperts, replace_weight


def apply_plan(model: PreTrainedModel, plan: Plan) -> PreTrainedModel:
    """Quantize a model in memory, in place; its logits equal those of the checkpoint that the plan would give.

    Raises:
        PlanError: the plan is for another model.
    """
    check_plan_fits(plan, {weight.name: weight.shape for weight in model_view(model.config).weights})
    for module in plan.modules:
        if module.scheme.is_quantized:
            weight, bias = _weight_and_bias(model, module)
            state = quantize_module(module, weight, plan.recipe.weights.method)
            replace_weight(model, module.name, _filled(module, state, bias))
    return model


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
