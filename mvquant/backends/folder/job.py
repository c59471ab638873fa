"""What a program is told: one JSON file, and the calibration tokens beside it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from jaxtyping import Int64
from pydantic import BaseModel, ConfigDict
from safetensors.torch import load_file, save_file
from torch import Tensor

from mvquant.method_settings import Method
from mvquant.plan import ModulePlan, Plan
from mvquant.scheme import WeightScheme


class Job(BaseModel):
    """One model to quantize.

    Attributes:
        source: folder of the model, folded if the plan folds, with a stand-in for its tokenizer.
        tokens: safetensors file of calibration sequences; see `save_tokens`.
        out: folder that the package saves to.
        seen: safetensors file for `kept` rows, as they were when the others were rounded.
        records: file for what the package says of every module, JSON.
        dtype: of the model, in which scales are stored.
        method: with its settings.
        scheme: of all modules but those in `other_schemes`.
        other_schemes: of modules with another scheme, by full name.
        ignored: full names of linears of decoder layers that stay floats.
        kept: protected rows, by the full name of their module; all rows of those that are rounded by mvquant.
        layers: decoder layers of the model, in order.
        seed: of the calibration, for methods that draw.
        device: that layers are run on, such as `cuda:0`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: Path
    tokens: Path
    out: Path
    seen: Path
    records: Path
    dtype: Literal["float32", "bfloat16", "float16"]
    method: Method
    scheme: WeightScheme
    other_schemes: dict[str, WeightScheme] = {}
    ignored: tuple[str, ...] = ()
    kept: dict[str, tuple[int, ...]] = {}
    layers: tuple[str, ...] = ()
    seed: int = 0
    device: str = "cpu"


def save_tokens(batches: Sequence[Int64[Tensor, "1 length"]], file: Path) -> None:
    """Write calibration sequences, by number."""
    save_file({str(number): batch.contiguous() for number, batch in enumerate(batches)}, file)


def load_tokens(file: Path) -> list[Int64[Tensor, "1 length"]]:
    """Read what `save_tokens` wrote, in its order."""
    saved = load_file(file)
    return [saved[str(number)] for number in range(len(saved))]


def only_scheme(plan: Plan) -> WeightScheme:
    """The scheme of a package that rounds all modules in one: the recipe's, unless the plan has it nowhere."""
    wanted = None if plan.recipe.weights is None else plan.recipe.weights.scheme
    return wanted if wanted is not None and any(each.scheme == wanted for each in plan.modules) else main_scheme(plan)


def apart(plan: Plan) -> tuple[ModulePlan, ...]:
    """Modules with more bits than `only_scheme`, as those protected whole: mvquant rounds them, to nearest."""
    bits = only_scheme(plan).bits
    return tuple(
        each
        for each in plan.modules
        if each.scheme.is_quantized and each.scheme.bits > bits and each.scheme.activations is None
    )


def beyond_one_scheme(plan: Plan) -> tuple[ModulePlan, ...]:
    """Modules that neither `only_scheme` nor rounding to nearest with more bits does justice to."""
    done = {each.name for each in apart(plan)}
    base = only_scheme(plan)
    return tuple(
        each for each in plan.modules if each.scheme.is_quantized and each.scheme != base and each.name not in done
    )


def main_scheme(plan: Plan) -> WeightScheme:
    """The scheme that most modules of a plan have: the base scheme, unless nearly all modules are protected whole."""
    schemes = [module.scheme for module in plan.modules if module.scheme.is_quantized]
    return max(schemes, key=schemes.count)


def other_schemes(plan: Plan) -> dict[str, WeightScheme]:
    """Schemes of the modules that have another than `main_scheme`, such as those protected whole."""
    usual = main_scheme(plan)
    quantized = (module for module in plan.modules if module.scheme.is_quantized)
    return {module.name: module.scheme for module in quantized if module.scheme != usual}
