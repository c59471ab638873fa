"""What methods that scale do, seen apart from rounding: all rows are kept as floats."""

import copy

import torch
from torch import Tensor
from transformers import PreTrainedModel

from mvquant.arch import model_view
from mvquant.backends.layer import LayerBackend
from mvquant.method_settings import MethodSettings
from mvquant.recipe import Protect
from mvquant.scheme import WeightScheme
from tests.backends.llmcompressor.layer_driver import Results, planned, quantized

FLOAT = WeightScheme(bits=16)
FLOAT_ROWS = Protect(policy="slow-pairs", pairs=0.25, scheme=FLOAT)


def scaled_without_rounding(
    model: PreTrainedModel,
    backend: LayerBackend,
    method: MethodSettings,
    scheme: str,
    batches: list[Tensor],
    *,
    ignore: tuple[str, ...] = (),
) -> tuple[Results, PreTrainedModel]:
    """Return what the method makes, and the model with its scales and no weight rounded."""
    plan = planned(model, scheme, method, ignore=ignore)
    # not a plan to be saved: no row is listed as protected, but all are asked for
    modules = tuple(module.model_copy(update={"protected_scheme": FLOAT}) for module in plan.modules)
    results = quantized(copy.deepcopy(model), plan.model_copy(update={"modules": modules}), backend, batches)
    scaled = copy.deepcopy(model)
    weights = {weight.name: weight for weight in model_view(model.config).weights}
    with torch.no_grad():
        for name in results.changed:
            scaled.get_parameter(name).copy_(results.parameter(name))
        for name, module in results.modules.items():
            parameter = scaled.get_parameter(weights[name].parameter)
            parameter.copy_(module.kept.reshape(parameter.shape))
    return results, scaled
