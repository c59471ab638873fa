"""Put a quantized module into a model, where its weight was, or the plain weight back."""

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from mvquant.errors import PlanError
from mvquant.quant.experts import QuantizedExperts
from mvquant.quant.linear import MixedRowLinear


def replace_weight(model: nn.Module, name: str, module: MixedRowLinear | QuantizedExperts) -> None:
    """Put `module` at the linear, or at the 3-D expert parameter, called `name`.

    Experts are switched to transformers' eager implementation, the only one that asks for one expert at a time.

    Raises:
        PlanError: the model has no such linear or parameter, or it has another shape.

    >>> from mvquant.scheme import WeightScheme
    >>> model = nn.Sequential(nn.Linear(64, 48))
    >>> replace_weight(model, "0", MixedRowLinear.empty((48, 64), WeightScheme(bits=2, group_size=64)))
    >>> model
    Sequential(
      (0): MixedRowLinear(in_features=64, out_features=48, bias=False, scheme=w2a16-g64)
    )
    """
    parent_name, _, leaf = name.rpartition(".")
    try:
        parent = model.get_submodule(parent_name)
        old = getattr(parent, leaf)
    except AttributeError:
        message = f"the model has no {name!r} to replace by {module}"
        raise PlanError(message) from None
    weight = old if isinstance(module, QuantizedExperts) else getattr(old, "weight", None)
    shape = module.shape if isinstance(module, QuantizedExperts) else module.matrix_shape
    module.transposed = isinstance(old, Conv1D)  # GPT-2 stores [columns, rows]
    if weight is None or tuple(weight.T.shape if module.transposed else weight.shape) != shape:
        message = f"{name} is {old}: it cannot be replaced by {module}"
        raise PlanError(message)
    if isinstance(module, QuantizedExperts):
        delattr(parent, leaf)  # a parameter does not give way to a module
    parent.add_module(leaf, module)
    config = getattr(parent, "config", None)
    if isinstance(module, QuantizedExperts) and config is not None:
        config._experts_implementation = "eager"  # its public switch takes whole models


def restore_weight(model: nn.Module, name: str, dtype: torch.dtype | None = None) -> None:
    """Put the dequantized weight back where `replace_weight` took it from.

    Args:
        model: the model.
        name: of a quantized module in it.
        dtype: of the weight; that of the scales by default.

    >>> from mvquant.quant.state import quantize_weight
    >>> from mvquant.scheme import WeightScheme
    >>> scheme, weight = WeightScheme(bits=8, group_size=32), torch.ones(48, 64)
    >>> model = nn.Sequential(MixedRowLinear((48, 64), quantize_weight(weight, scheme), scheme))
    >>> restore_weight(model, "0")
    >>> model
    Sequential(
      (0): Linear(in_features=64, out_features=48, bias=False)
    )
    """
    parent_name, _, leaf = name.rpartition(".")
    parent, module = model.get_submodule(parent_name), model.get_submodule(name)
    if isinstance(module, QuantizedExperts):
        delattr(parent, leaf)
        parent.register_parameter(leaf, nn.Parameter(module.dequantize(dtype), requires_grad=False))
    elif isinstance(module, MixedRowLinear):
        setattr(parent, leaf, _plain(module, dtype))


def _plain(module: MixedRowLinear, dtype: torch.dtype | None) -> nn.Module:
    weight, bias = module.dequantize(dtype), module.bias
    if module.transposed:
        plain = Conv1D(module.out_features, module.in_features)
    else:
        with torch.device("meta"):
            plain = nn.Linear(module.in_features, module.out_features, bias=bias is not None)
    plain.weight = nn.Parameter(weight.T.contiguous() if module.transposed else weight, requires_grad=False)
    if bias is not None:
        plain.bias = nn.Parameter(bias.to(weight.dtype), requires_grad=False)
    return plain
