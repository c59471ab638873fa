"""The table of methods."""

from collections.abc import Callable

from torch import Tensor

from mvquant.methods import rtn
from mvquant.plan import ModulePlan
from mvquant.recipe import MethodName

METHODS: dict[MethodName, Callable[[ModulePlan, Tensor], dict[str, Tensor]]] = {"rtn": rtn.quantize}
"""(plan of a module, its weight) -> its quantized tensors by local name."""


def quantize_module(module: ModulePlan, weight: Tensor, method: MethodName) -> dict[str, Tensor]:
    """Quantize one weight by the method of that name.

    Args:
        module: its plan.
        weight: [rows, columns], or [experts, rows, columns].
        method: how values are chosen.

    Returns:
        The quantized module's tensors by local name; see `mvquant.quant.state`.
    """
    return METHODS[method](module, weight)
