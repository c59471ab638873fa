"""From a comparison recipe to variants: all of them planned before any is answered."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

from mvquant.arch import ModelView
from mvquant.checkpoint.folder import CONFIG, Checkpoint
from mvquant.checkpoint.native import QUANT_METHOD, read_quantization_config
from mvquant.comparison.answers import LOADING
from mvquant.comparison.cache_controls import equal_cache_controls
from mvquant.comparison.checkpoints import Quantize
from mvquant.comparison.controls import Control, equal_bytes_controls
from mvquant.comparison.fingerprint import folder_hash
from mvquant.comparison.foreign import (
    PACKAGES,
    measured_bits_per_weight,
    obstacle,
    quantization_of,
    stored_bytes,
)
from mvquant.comparison.recipe import RESERVED, ComparisonRecipe, VariantEntry
from mvquant.comparison.results import Failure, Role
from mvquant.errors import CheckpointError, MvquantError
from mvquant.methods import require_plan_fit
from mvquant.named_schemes import MV_PROTECT, recipe_for_scheme
from mvquant.plan import FLOAT_BITS, CachedBits, Plan, load_plan
from mvquant.policies import make_plan, require_rope
from mvquant.recipe import Calibration, Recipe, load_recipe
from mvquant.stats import CalibrationStats

PLANNING = "planning"

Measure = Callable[[Calibration], CalibrationStats]


@dataclass(frozen=True)
class Baseline:
    """The model that variants are made of and compared with.

    Attributes:
        name: what the user called it.
        checkpoint: its folder.
        view: its structure.
        hash: of its folder.
        measure: gives its calibration statistics; measures at most once for equal settings.
        quantize: writes it, quantized as a plan says, to a new folder.
    """

    name: str
    checkpoint: Checkpoint
    view: ModelView
    hash: str
    measure: Measure
    quantize: Quantize

    @property
    def bytes(self) -> int:
        """Bytes of all parameters on disk."""
        return sum(prod(shape) for shape in self.view.parameters.values()) * FLOAT_BITS[self.checkpoint.dtype] // 8


@dataclass(frozen=True)
class Size:
    """What a checkpoint takes: bytes of all tensors; bits of a weight where names tell which tensors are weights."""

    bytes: int
    bits_per_weight: float | None


@dataclass(frozen=True)
class Variant:
    """One model to be answered for.

    Attributes:
        folder: what is loaded.
        model_hash: of that folder.
        plan: as far as there is one.
        in_memory: whether the plan is still to be applied; False where the folder is quantized already.
        failure: why it cannot be answered for.
        size: what a finished checkpoint without a plan takes, counted from its files.
        packages: what is needed to load it, beside what every model needs.
    """

    name: str
    role: Role
    summary: str
    folder: Path
    model_hash: str
    plan: Plan | None = None
    in_memory: bool = False
    control_of: tuple[str, ...] = ()
    failure: Failure | None = None
    size: Size | None = None
    packages: tuple[str, ...] = ()

    @property
    def calibration_hash(self) -> str | None:
        """Of the tokens that it was calibrated on, as far as a plan says."""
        return None if self.plan is None or self.plan.calibration is None else self.plan.calibration.hash

    def bytes(self, baseline: Baseline) -> int | None:
        """Bytes of all tensors on disk: from the plan, else counted; None where it is not known."""
        if self.plan is not None:
            return self.plan.bytes_after
        if self.role in ("baseline", "again"):
            return baseline.bytes
        return None if self.size is None else self.size.bytes

    def bits_per_weight(self, baseline: Baseline) -> float | None:
        """Average bits of a weight in the planned modules, or in all of a finished checkpoint; None if not known."""
        if self.plan is not None:
            return self.plan.bits_per_weight
        if self.role in ("baseline", "again"):
            return float(FLOAT_BITS[baseline.checkpoint.dtype])
        return None if self.size is None else self.size.bits_per_weight

    def cached_bits(self, baseline: Baseline) -> CachedBits:
        """Bits of cached keys and values over the training context: those of the dtype where no plan rounds them."""
        if self.plan is not None and self.plan.cached_bits is not None:
            return self.plan.cached_bits
        unrounded = float(FLOAT_BITS[baseline.checkpoint.dtype])
        return CachedBits(keys=unrounded, values=unrounded)


def all_variants(recipe: ComparisonRecipe, baseline: Baseline) -> list[Variant]:
    """Plan every variant and control; the baseline comes first, controls after the variant that they are for.

    A variant that cannot be planned is there with its failure.

    Raises:
        UsageError: a recipe with mistakes, or an unknown name.
        CheckpointError: a folder that is no checkpoint.
    """
    whole = Variant(RESERVED[0], "baseline", f"{baseline.name}, as it is", baseline.checkpoint.folder, baseline.hash)
    found = [whole]
    if recipe.noise_floor:
        found.append(replace(whole, name=RESERVED[1], role="again", summary="the same, in other batches"))
    wanted = [_opened(entry) for entry in recipe.variants]  # every mistake in a file before any work
    planned = [_planned(entry, source, baseline) for entry, source in zip(recipe.variants, wanted, strict=True)]
    if not recipe.equal_bytes:
        return [*found, *planned]
    known = {variant.name: variant for variant in [*found, *planned]}
    order = [variant.name for variant in found]
    for variant in planned:
        order.append(variant.name)
        if variant.in_memory and variant.plan is not None:
            order += _add_controls(variant, variant.plan, baseline, recipe.seed, known)
    return [known[name] for name in order]


def _add_controls(variant: Variant, plan: Plan, baseline: Baseline, seed: int, known: dict[str, Variant]) -> list[str]:
    """Add the controls of a variant; what is there already with the same plan, asked for or not, is one of them too.

    Returns:
        The names of those that are new.
    """

    def make(recipe: Recipe) -> Plan:
        return _make_plan(recipe, baseline)

    suffix = variant.name.removeprefix(f"{MV_PROTECT}-")
    new: list[str] = []
    for control in [*equal_bytes_controls(plan, make, seed), *equal_cache_controls(plan, make, seed)]:
        same = next((each for each in known.values() if each is not variant and _has_plan(each, control.plan)), None)
        if same is None:
            name = f"{control.kind}-{suffix}"
            name = f"{control.kind}-{variant.name} (control)" if name in known else name
            same = _control(control, name, baseline)
            new.append(name)
        known[same.name] = replace(same, control_of=(*same.control_of, variant.name))
    return new


def _has_plan(variant: Variant, plan: Plan) -> bool:
    return variant.in_memory and variant.plan is not None and variant.plan.hash == plan.hash


def _control(control: Control, name: str, baseline: Baseline) -> Variant:
    return Variant(
        name=name,
        role="control",
        summary=control.summary,
        folder=baseline.checkpoint.folder,
        model_hash=baseline.hash,
        plan=control.plan,
        in_memory=True,
    )


def _opened(entry: VariantEntry) -> Recipe | Plan | Path:
    """Read what an entry names."""
    if entry.checkpoint is not None:
        if not (entry.checkpoint / CONFIG).is_file():
            raise CheckpointError(f"variant {entry.name}: {entry.checkpoint} is no checkpoint: it has no {CONFIG}")
        return entry.checkpoint
    if entry.plan is not None:
        return load_plan(entry.plan)
    if entry.quantize is not None:
        return entry.quantize
    return recipe_for_scheme(entry.scheme) if entry.scheme is not None else load_recipe(str(entry.recipe))


def _planned(entry: VariantEntry, source: Recipe | Plan | Path, baseline: Baseline) -> Variant:
    if isinstance(source, Path):
        return _finished(entry, source, baseline)
    recipe = source.recipe if isinstance(source, Plan) else source
    variant = Variant(entry.name, "variant", recipe.summary, baseline.checkpoint.folder, baseline.hash, in_memory=True)
    try:
        plan = _fitting(source, baseline) if isinstance(source, Plan) else _make_plan(source, baseline)
    except MvquantError as error:
        return replace(variant, failure=Failure(part=PLANNING, message=str(error)))
    return replace(variant, plan=plan)


def _fitting(plan: Plan, baseline: Baseline) -> Plan:
    require_plan_fit(plan, baseline.view)
    return plan


def _finished(entry: VariantEntry, folder: Path, baseline: Baseline) -> Variant:
    """A checkpoint as it lies there: ours with its plan, any other with what its files say."""
    variant = Variant(entry.name, "variant", f"checkpoint {folder}", folder, folder_hash(folder))
    try:
        quantized = quantization_of(folder)
        method = str(quantized.get("quant_method", "nothing"))
        variant = replace(variant, summary=f"checkpoint {folder}, quantized by {method}")
        stored = stored_bytes(folder)
        if method == QUANT_METHOD:
            return replace(variant, plan=read_quantization_config(quantized))
    except MvquantError as error:
        return replace(variant, failure=Failure(part=LOADING, message=str(error)))
    size = Size(sum(stored.values()), measured_bits_per_weight(stored, baseline.view))
    why = obstacle(method) if quantized else None
    failure = None if why is None else Failure(part=LOADING, message=why)
    return replace(variant, size=size, packages=PACKAGES.get(method, ()), failure=failure)


def _make_plan(recipe: Recipe, baseline: Baseline) -> Plan:
    require_rope(baseline.view, recipe)
    stats = baseline.measure(recipe.calibration) if recipe.needs_calibration else None
    return make_plan(baseline.view, recipe, model=baseline.name, dtype=baseline.checkpoint.dtype, stats=stats)
