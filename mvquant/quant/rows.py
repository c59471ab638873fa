"""The module that holds one weight matrix as a state: what the linear and the experts share."""

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mvquant.quant.state import dequantize_state, empty_state
from mvquant.scheme import WeightScheme


class MixedRows(nn.Module):
    """The tensors of a state (see `mvquant.quant.state`) as frozen parameters under their local names."""

    transposed: bool = False
    """Whether the weight was stored as [columns, rows], as GPT-2's `Conv1D` does."""

    def __init__(
        self,
        matrix_shape: tuple[int, int],
        state: Mapping[str, Tensor],
        scheme: WeightScheme,
        protected_scheme: WeightScheme | None = None,
    ) -> None:
        """Hold `state` without copying it."""
        super().__init__()
        self.matrix_shape = matrix_shape
        self.scheme, self.protected_scheme = scheme, protected_scheme
        self.state_names = tuple(state)
        for name, tensor in state.items():
            self.register_parameter(name, nn.Parameter(tensor, requires_grad=False))
        self._float_name = next(name for name, tensor in state.items() if tensor.is_floating_point())

    @property
    def weight_state(self) -> dict[str, Tensor]:
        """The tensors of the weight by their local names."""
        return {name: cast("Tensor", self._parameters[name]) for name in self.state_names}

    def holds(self, tensors: Sequence[Tensor]) -> bool:
        """Tell whether these very tensors are those of `weight_state`, in its order."""
        return all(self._parameters[name] is tensor for name, tensor in zip(self.state_names, tensors, strict=True))

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the scales (or of the rows kept as floats)."""
        return cast("Tensor", self._parameters[self._float_name]).dtype

    def dequantize_rows(
        self, start: int = 0, stop: int | None = None, dtype: torch.dtype | None = None
    ) -> Float[Tensor, "rows columns"]:
        """Return the weights that rows `start` to `stop` of the matrix stand for."""
        return dequantize_state(
            self.weight_state,
            self.scheme,
            self.protected_scheme,
            self.matrix_shape,
            dtype or self.dtype,
            start=start,
            stop=stop,
        )

    def scheme_repr(self) -> str:
        """Say the schemes and how many rows are protected."""
        rows = self._parameters.get("protected_rows")
        if rows is None or self.protected_scheme is None:
            return f"scheme={self.scheme.name}"
        return f"scheme={self.scheme.name}, protected={len(rows)} rows {self.protected_scheme.name}"


def empty_parameters(
    matrix_shape: tuple[int, int],
    scheme: WeightScheme,
    protected_scheme: WeightScheme | None,
    protected_count: int,
    dtype: torch.dtype,
    *,
    device: torch.device | str,
) -> dict[str, Tensor]:
    """Return uninitialized tensors of a state on `device`."""
    state = empty_state(matrix_shape, scheme, protected_scheme, protected_count, dtype)
    return {name: torch.empty_like(tensor, device=device) for name, tensor in state.items()}
