"""Quantized 3-D expert weights, in the place of the parameter of a transformers experts module."""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from mvquant.errors import PlanError
from mvquant.quant.rows import MixedRows, empty_parameters
from mvquant.scheme import WeightScheme


class QuantizedExperts(MixedRows):
    """Stands for a parameter `[experts, rows, columns]`; indexing it dequantizes one expert.

    transformers' eager experts run `linear(states, self.gate_up_proj[expert])` for the experts that were
    hit: this is all they need. The batched implementations index differently, see `replace_weight`.

    >>> QuantizedExperts.empty((4, 48, 64), WeightScheme(bits=4, group_size=32))
    QuantizedExperts(experts=4, rows=48, columns=64, scheme=w4a16-g32)
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        state: Mapping[str, Tensor],
        scheme: WeightScheme,
        protected_scheme: WeightScheme | None = None,
    ) -> None:
        """Hold the state of the flat weight `[experts * rows, columns]` without copying it.

        Raises:
            PlanError: the scheme rounds activations.
        """
        if scheme.activations:
            message = f"experts' activations cannot be rounded ({scheme.name}): transformers asks for weights only"
            raise PlanError(message)
        experts, rows, columns = shape
        super().__init__((experts * rows, columns), state, scheme, protected_scheme)
        self.shape = shape

    @classmethod
    def empty(
        cls,
        shape: tuple[int, int, int],
        scheme: WeightScheme,
        protected_scheme: WeightScheme | None = None,
        protected_count: int = 0,
        *,
        dtype: torch.dtype = torch.bfloat16,
        device: torch.device | str = "meta",
    ) -> "QuantizedExperts":
        """Build a module without values, for a loader to fill."""
        experts, rows, columns = shape
        flat = experts * rows, columns
        state = empty_parameters(flat, scheme, protected_scheme, protected_count, dtype, device=device)
        return cls(shape, state, scheme, protected_scheme)

    def __len__(self) -> int:
        """Number of experts."""
        return self.shape[0]

    def __getitem__(self, expert: int | Tensor) -> Float[Tensor, "rows columns"]:
        """Return the weight of one expert, dequantized.

        Raises:
            IndexError: there is no such expert.
        """
        experts, rows, _ = self.shape
        index = int(expert)
        if not 0 <= index < experts:
            message = f"expert {index} is outside 0..{experts - 1}"
            raise IndexError(message)
        return self.dequantize_rows(index * rows, (index + 1) * rows)

    def dequantize(self, dtype: torch.dtype | None = None) -> Float[Tensor, "experts rows columns"]:
        """Return the weights of all experts, in `dtype` or in that of the scales."""
        return self.dequantize_rows(dtype=dtype).view(self.shape)

    def extra_repr(self) -> str:
        """Say sizes and schemes."""
        experts, rows, columns = self.shape
        return f"experts={experts}, rows={rows}, columns={columns}, {self.scheme_repr()}"
