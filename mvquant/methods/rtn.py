"""Round to nearest: every weight goes to the closest point of its group's grid. Needs no data."""

from torch import Tensor

from mvquant.plan import ModulePlan
from mvquant.quant import quantize_weight


def quantize(module: ModulePlan, weight: Tensor) -> dict[str, Tensor]:
    """Quantize one weight.

    Args:
        module: its plan.
        weight: [rows, columns], or [experts, rows, columns].

    Returns:
        The quantized module's tensors by local name; see `mvquant.quant.state`.
    """
    matrix = weight.reshape(module.rows, module.columns)
    return quantize_weight(matrix, module.scheme, module.protected_scheme, list(module.protected_rows))
