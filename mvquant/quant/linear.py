"""A linear layer whose rows are stored in two schemes: base rows and protected rows.

Plain torch is the definition: `linear(states, dequantize())`. `kernels` may compute the same faster.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mvquant.quant import kernels
from mvquant.quant.rows import MixedRows, empty_parameters
from mvquant.scheme import WeightScheme


class MixedRowLinear(MixedRows):
    """A linear layer of mixed rows, with a bias if there is one.

    >>> scheme = WeightScheme(bits=4, group_size=32)
    >>> MixedRowLinear.empty((48, 64), scheme, WeightScheme(bits=8, group_size=32), protected_count=8)
    MixedRowLinear(in_features=64, out_features=48, bias=False, scheme=w4a16-g32, protected=8 rows w8a16-g32)
    """

    bias: Tensor | None

    path: kernels.Path | None = None
    """Forces one way to compute on a module or, set on the class, on all; None chooses the fastest for each call."""

    def __init__(
        self,
        shape: tuple[int, int],
        state: Mapping[str, Tensor],
        scheme: WeightScheme,
        protected_scheme: WeightScheme | None = None,
        bias: Tensor | None = None,
    ) -> None:
        """Hold `state`, of a weight of `shape` (rows, columns), without copying it."""
        super().__init__(shape, state, scheme, protected_scheme)
        self.out_features, self.in_features = shape
        self.register_parameter("bias", None if bias is None else nn.Parameter(bias, requires_grad=False))
        self.int4_group = kernels.common_group(shape[1], scheme, protected_scheme)
        self._layout: kernels.Layout | None = None

    @classmethod
    def empty(
        cls,
        shape: tuple[int, int],
        scheme: WeightScheme,
        protected_scheme: WeightScheme | None = None,
        protected_count: int = 0,
        *,
        bias: bool = False,
        dtype: torch.dtype = torch.bfloat16,
        device: torch.device | str = "meta",
    ) -> "MixedRowLinear":
        """Build a module without values, for a loader to fill."""
        state = empty_parameters(shape, scheme, protected_scheme, protected_count, dtype, device=device)
        bias_values = torch.empty(shape[0], dtype=dtype, device=device) if bias else None
        return cls(shape, state, scheme, protected_scheme, bias_values)

    def dequantize(self, dtype: torch.dtype | None = None) -> Float[Tensor, "rows columns"]:
        """Return the weights that the integers stand for, in `dtype` or in that of the scales."""
        return self.dequantize_rows(dtype=dtype)

    def forward(self, states: Float[Tensor, "*batch columns"]) -> Float[Tensor, "*batch rows"]:
        """Multiply by the weight; differentiable in `states`."""
        path = self.path or kernels.choose_path(self, states, self.int4_group)
        if path == "int4":
            if self._layout is None or not self.holds(self._layout.sources):
                self._layout = kernels.make_layout(self)
            return kernels.int4_linear(states, self._layout, self.bias)
        if path == "blocks":
            return kernels.blocks_linear(states, self, self.bias)
        return nn.functional.linear(states, self.dequantize(states.dtype), self.bias)

    def extra_repr(self) -> str:
        """Say sizes and schemes."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, {self.scheme_repr()}"
        )

    def __getstate__(self) -> dict[str, Any]:
        """Leave the kernel layout out of copies: it is made again when needed."""
        return {**self.__dict__, "_layout": None}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "MixedRowLinear":
        self._layout = None
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401  (handed on unread)
        self._layout = None
        super()._load_from_state_dict(*args, **kwargs)
