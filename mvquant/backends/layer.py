"""What a layer backend gets and gives: a decoder layer with its weights and calibration inputs, and what became of it.

A layer backend never sees the model: it can be run, resumed and spread over processes layer by layer.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn
from transformers import PreTrainedConfig

from mvquant.arch import ModelView
from mvquant.plan import ModulePlan
from mvquant.quant import RoundedWeight

HESSIAN_BYTES = 8 << 30
"""Hessians held at once, in bytes: a layer with more, of many experts, is run once for every such share of them."""


@runtime_checkable
class Processes(Protocol):
    """The processes that share the calibration sequences; one alone by default. Every method returns a new tensor."""

    rank: int
    size: int

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the sum over processes, the same in all of them."""
        ...

    def maximum(self, tensor: Tensor) -> Tensor:
        """Return the largest value of every element over processes."""
        ...


@dataclass(frozen=True, eq=False)
class CalibratedLayer:
    """One decoder layer, to be quantized.

    Attributes:
        index: of the layer.
        name: full name, as `model.layers.3`.
        module: the layer with its weights (folded, if the plan folds), in eval mode, on its device.
        modules: the plans of its weights that are quantized; full names.
        config: of the model.
        run: runs the layer as it is on every calibration sequence of this process, in order, and yields the hidden
            states that it gives, `[1, length, hidden]`. Hooks see the inputs of its modules. May be called again.
        processes: those that share the calibration.
    """

    index: int
    name: str
    module: nn.Module
    modules: tuple[ModulePlan, ...]
    config: PreTrainedConfig
    run: Callable[[], Iterator[Float[Tensor, "1 length hidden"]]]
    processes: Processes

    def local(self, name: str) -> str:
        """Return a full name without the layer's: `self_attn.q_proj`."""
        return name.removeprefix(f"{self.name}.")


@dataclass(frozen=True, eq=False)
class RoundedModule:
    """What became of one weight.

    Attributes:
        base: all its rows in the scheme of the plan; experts flat, `[experts * rows, columns]`. The same whichever
            rows are protected.
        kept: its rows in the protected scheme, or as floats, the protected ones as the method saw them (scaled, say);
            None where no row is protected.
        input_scale: of activations with one scale per tensor, `[1]`, in the model's dtype.
    """

    base: RoundedWeight
    kept: RoundedWeight | Float[Tensor, "rows columns"] | None = None
    input_scale: Float[Tensor, "1"] | None = None


class ModuleRecord(BaseModel):
    """What a method says of one weight: for the log of the checkpoint."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    module: str
    seconds: float
    error: float | None = None
    """The method's own loss; its scale differs between methods."""
    damping: float | None = None
    """Of the Hessian (GPTQ), where it had to be raised as well."""
    tokens: int | None = None
    """Calibration tokens that the module saw; of experts, of the one that saw fewest."""
    note: str | None = None
    """What a person should know, such as a fallback to rounding to nearest; statements with `; ` between them."""


@dataclass(frozen=True, eq=False)
class LayerResult:
    """What became of a layer.

    Attributes:
        modules: by full name, one for every plan of the layer.
        parameters: other parameters with new values, by full name: norms that scales were moved into, biases.
        records: for the log.
    """

    modules: Mapping[str, RoundedModule]
    parameters: Mapping[str, Tensor] = field(default_factory=dict)
    records: tuple[ModuleRecord, ...] = ()


@runtime_checkable
class LayerBackend(Protocol):
    """A method that works layer by layer."""

    @property
    def sees_rounded(self) -> bool:
        """Whether later layers are calibrated on what a layer gives in the base scheme, or on what it gave before."""
        ...

    def require_fit(self, view: ModelView) -> None:
        """Refuse, before anything is run, a model that the method cannot do.

        Raises:
            UnsupportedModelError: with the reason.
        """
        ...

    def quantize(self, layer: CalibratedLayer) -> LayerResult:
        """Quantize one layer. Layers come in order; the module may be changed, it is read no more afterwards.

        Raises:
            CalibrationError: inputs that the method cannot use (NaN, too few tokens).
            BackendError: the package failed.
        """
        ...
