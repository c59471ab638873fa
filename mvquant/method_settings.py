"""Methods and their settings: how the integers of quantized weights are chosen. Data only, as a recipe names it.

method: gptq
method: {name: gptq, backend: gptqmodel, damping: 0.05}
"""

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_serializer

MethodName = Literal["rtn", "gptq", "awq", "smoothquant", "autoround"]
BackendName = Literal["mvquant", "llmcompressor", "gptqmodel", "autoawq", "auto-gptq", "auto-round"]


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_serializer(mode="wrap")
    def _with_name(self, write: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        """Write the name even where defaults are left out: it says which settings the others are."""
        return {"name": type(self).model_fields["name"].default, **write(self)}


class Rtn(_Settings):
    """Round to nearest. Needs no data, unless activations have static scales."""

    name: Literal["rtn"] = "rtn"
    backend: Literal["mvquant"] = "mvquant"


class Gptq(_Settings):
    """GPTQ (Frantar et al., ICLR 2023): each column's rounding error is moved into the columns after it."""

    name: Literal["gptq"] = "gptq"
    backend: Literal["llmcompressor", "gptqmodel", "auto-gptq"] = "llmcompressor"
    damping: float = Field(default=0.01, gt=0, lt=1)
    """Added to the Hessian's diagonal, as a fraction of its mean."""
    block_size: int = Field(default=128, gt=0)
    """Columns worked on before the error is moved into all others."""
    activation_order: bool = True
    """Columns with the largest activations first, with groups as they lie (`static`: no index in the checkpoint)."""


class Awq(_Settings):
    """AWQ (Lin et al., MLSys 2024): columns with large activations are scaled up before rounding."""

    name: Literal["awq"] = "awq"
    backend: Literal["llmcompressor", "gptqmodel", "autoawq"] = "llmcompressor"
    grid_points: int = Field(default=20, gt=0)
    """Exponents that are tried for each set of scales."""
    duo_scaling: bool = True
    """Scales follow weights and activations; activations alone if not."""


class SmoothQuant(_Settings):
    """SmoothQuant (Xiao et al., ICML 2023): activations' range is moved into the weights before both are rounded."""

    name: Literal["smoothquant"] = "smoothquant"
    backend: Literal["llmcompressor"] = "llmcompressor"
    alpha: float = Field(default=0.5, ge=0, le=1)
    """How much of the activations' range is moved."""


class AutoRound(_Settings):
    """AutoRound (Cheng et al., EMNLP 2024 Findings): rounding and ranges are learnt by signed gradients, by block."""

    name: Literal["autoround"] = "autoround"
    backend: Literal["auto-round"] = "auto-round"
    iterations: int = Field(default=200, gt=0)
    batch_size: int = Field(default=8, gt=0)


MethodSettings = Rtn | Gptq | Awq | SmoothQuant | AutoRound


def _named(value: Any) -> Any:  # noqa: ANN401 - whatever a recipe holds
    return {"name": value} if isinstance(value, str) else value


Method = Annotated[
    Annotated[MethodSettings, Field(discriminator="name")],
    BeforeValidator(_named),
]
"""A method by name alone, or a mapping with `name`, perhaps `backend`, and settings."""

METHOD_SETTINGS: dict[MethodName, type[MethodSettings]] = {
    "rtn": Rtn,
    "gptq": Gptq,
    "awq": Awq,
    "smoothquant": SmoothQuant,
    "autoround": AutoRound,
}
