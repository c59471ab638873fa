"""A linear layer whose rows are stored in two schemes: base rows and protected rows.

Plain torch is the definition: `linear(states, dequantize())`, where base rows of a scheme that rounds activations see
them rounded, and protected rows as they come. `kernels` and `int8` may compute the same faster.
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mvquant.quant import kernels
from mvquant.quant.int8 import Int8Layout, int8_linear, make_int8_layout
from mvquant.quant.products import blocks_linear, definition_linear
from mvquant.quant.rows import MixedRows, empty_parameters
from mvquant.scheme import WeightScheme

LayoutT = TypeVar("LayoutT", kernels.Layout, Int8Layout)


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
        self._layout: kernels.Layout | Int8Layout | None = None

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
            return kernels.int4_linear(states, self._held_layout(kernels.Layout, kernels.make_layout), self.bias)
        if path == "int8":
            return int8_linear(states, self, self._held_layout(Int8Layout, make_int8_layout), self.bias)
        return (blocks_linear if path == "blocks" else definition_linear)(states, self, self.bias)

    def _held_layout(self, kind: type[LayoutT], make: Callable[[MixedRows], LayoutT]) -> LayoutT:
        """Return the layout, made anew if it is of another kind or of other tensors."""
        if not isinstance(self._layout, kind) or not self.holds(self._layout.sources):
            self._layout = make(self)
        return self._layout

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
