"""From a comparison recipe to variants: all of them planned before any is answered."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

from mvquant.arch import ModelView
from mvquant.checkpoint.folder import CONFIG, Checkpoint
from mvquant.checkpoint.native import QUANT_METHOD, read_quantization_config
from mvquant.comparison.controls import Control, equal_bytes_controls
from mvquant.comparison.fingerprint import folder_hash
from mvquant.comparison.recipe import ComparisonRecipe, VariantEntry
from mvquant.comparison.results import Role
from mvquant.errors import CheckpointError, MvquantError
from mvquant.methods import require_plan_fit
from mvquant.named_schemes import MV_PROTECT, recipe_for_scheme
from mvquant.plan import FLOAT_BITS, Plan, load_plan
from mvquant.policies import make_plan, require_rope
from mvquant.recipe import Calibration, Recipe, load_recipe
from mvquant.stats import CalibrationStats

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
    """

    name: str
    checkpoint: Checkpoint
    view: ModelView
    hash: str
    measure: Measure

    @property
    def bytes(self) -> int:
        """Bytes of all parameters on disk."""
        return sum(prod(shape) for shape in self.view.parameters.values()) * FLOAT_BITS[self.checkpoint.dtype] // 8


@dataclass(frozen=True)
class Variant:
    """One model to be answered for.

    Attributes:
        folder: what is loaded.
        model_hash: of that folder.
        plan: as far as there is one.
        in_memory: whether the plan is applied after loading; False where the folder is quantized already.
        failure: why there is no plan, so that it cannot be answered for.
    """

    name: str
    role: Role
    summary: str
    folder: Path
    model_hash: str
    plan: Plan | None = None
    in_memory: bool = False
    control_of: tuple[str, ...] = ()
    failure: str | None = None

    def bytes(self, baseline: Baseline) -> int:
        """Bytes of all tensors on disk: from the plan, else the sizes of the files."""
        if self.plan is not None:
            return self.plan.bytes_after
        if self.role in ("baseline", "again"):
            return baseline.bytes
        return sum(path.stat().st_size for path in self.folder.glob("*.safetensors"))

    def bits_per_weight(self, baseline: Baseline) -> float | None:
        """Average bits of a weight in the planned modules; None for a checkpoint that says nothing of them."""
        if self.plan is not None:
            return self.plan.bits_per_weight
        return float(FLOAT_BITS[baseline.checkpoint.dtype]) if self.role in ("baseline", "again") else None

    def bits_per_cached_value(self, baseline: Baseline) -> float | None:
        """Average bits of a value of K or V in the cache; None for a checkpoint that says nothing of it."""
        if self.plan is not None and self.plan.cached_bits is not None:
            return self.plan.cached_bits.average
        known = self.plan is not None or self.role in ("baseline", "again")
        return float(FLOAT_BITS[baseline.checkpoint.dtype]) if known else None


def all_variants(recipe: ComparisonRecipe, baseline: Baseline) -> list[Variant]:
    """Plan every variant and control; the baseline comes first, controls after the variant that they are for.

    A variant that cannot be planned is there with its failure.

    Raises:
        UsageError: a recipe with mistakes, or an unknown name.
        CheckpointError: a folder that is no checkpoint.
    """
    whole = Variant(
        "full precision", "baseline", f"{baseline.name}, as it is", baseline.checkpoint.folder, baseline.hash
    )
    found = [whole]
    if recipe.noise_floor:
        found.append(replace(whole, name="full precision again", role="again", summary="the same, in other batches"))
    wanted = [_opened(entry) for entry in recipe.variants]  # every mistake in a file before any work
    planned = [_planned(entry, source, baseline) for entry, source in zip(recipe.variants, wanted, strict=True)]
    taken = {variant.name for variant in [*found, *planned]}
    controls: dict[str, Variant] = {}
    for variant in planned:
        found.append(variant)
        if recipe.equal_bytes and variant.in_memory and variant.plan is not None:
            found += _new_controls(variant, variant.plan, baseline, recipe.seed, controls, taken)
    return [controls.get(variant.name, variant) for variant in found]


def _new_controls(
    variant: Variant, plan: Plan, baseline: Baseline, seed: int, known: dict[str, Variant], taken: set[str]
) -> Iterator[Variant]:
    """Yield the controls of a variant that no earlier one has had; of the others, record whose they are too."""
    by_plan = {control.plan.hash: control for control in known.values() if control.plan is not None}
    suffix = variant.name.removeprefix(f"{MV_PROTECT}-")
    for control in equal_bytes_controls(plan, lambda recipe: _make_plan(recipe, baseline), seed):
        same = by_plan.get(control.plan.hash)
        if same is not None:
            known[same.name] = replace(same, control_of=(*same.control_of, variant.name))
            continue
        made = _control(control, f"{control.kind}-{suffix}", variant, baseline)
        if made.name in taken:
            made = replace(made, name=f"{control.kind}-{variant.name} (control)")
        taken.add(made.name)
        known[made.name] = made
        yield made


def _control(control: Control, name: str, variant: Variant, baseline: Baseline) -> Variant:
    return Variant(
        name=name,
        role="control",
        summary=control.summary,
        folder=baseline.checkpoint.folder,
        model_hash=baseline.hash,
        plan=control.plan,
        in_memory=True,
        control_of=(variant.name,),
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
        return _finished(entry, source)
    recipe = source.recipe if isinstance(source, Plan) else source
    variant = Variant(entry.name, "variant", recipe.summary, baseline.checkpoint.folder, baseline.hash, in_memory=True)
    try:
        plan = _fitting(source, baseline) if isinstance(source, Plan) else _make_plan(source, baseline)
    except MvquantError as error:
        return replace(variant, failure=str(error))
    return replace(variant, plan=plan)


def _fitting(plan: Plan, baseline: Baseline) -> Plan:
    require_plan_fit(plan, baseline.view)
    return plan


def _finished(entry: VariantEntry, folder: Path) -> Variant:
    config: dict[str, Any] = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    quantized = config.get("quantization_config") or {}
    method = quantized.get("quant_method", "nothing")
    ours = method == QUANT_METHOD
    return Variant(
        name=entry.name,
        role="variant",
        summary=f"checkpoint {folder}, quantized by {method}",
        folder=folder,
        model_hash=folder_hash(folder),
        plan=read_quantization_config(quantized) if ours else None,
    )


def _make_plan(recipe: Recipe, baseline: Baseline) -> Plan:
    require_rope(baseline.view, recipe)
    stats = baseline.measure(recipe.calibration) if recipe.needs_calibration else None
    return make_plan(baseline.view, recipe, model=baseline.name, dtype=baseline.checkpoint.dtype, stats=stats)
