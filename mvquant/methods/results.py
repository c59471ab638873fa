"""What a calibrated method made of a model, whoever computed it: the way into checkpoints and models in memory."""

from collections.abc import Collection
from typing import Protocol, runtime_checkable

from torch import Tensor


@runtime_checkable
class WeightResults(Protocol):
    """Quantized tensors by module, and other parameters that the method changed (scales moved into norms, say)."""

    @property
    def changed(self) -> Collection[str]:
        """Full names of parameters that are not quantized and have new values."""
        ...

    def parameter(self, name: str) -> Tensor:
        """Return the new value of one of `changed`."""
        ...

    def state(self, module: str) -> dict[str, Tensor]:
        """Return a quantized module's tensors by local name; see `mvquant.quant.state`."""
        ...
