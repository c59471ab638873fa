"""What was decided: for each module its scheme, and for each protected row of Q and K why it is protected.

A plan is made before any weight moves. It can be printed, diffed, edited by hand, and is obeyed to the
row: quantizing reads nothing else. It is pure data, so it can be read without torch.
"""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, FiniteFloat, model_validator

from mvquant.cache_plan import CachePlan
from mvquant.cache_recipe import Prefill
from mvquant.data_files import load_saved
from mvquant.errors import PlanError
from mvquant.heads import HeadRows
from mvquant.readable_json import numbers_in_a_row
from mvquant.recipe import Recipe
from mvquant.scheme import WeightScheme

PLAN_VERSION = 1
ROW_INDEX_BYTES = 4
FLOAT_BITS = {"float32": 32, "bfloat16": 16, "float16": 16}


class _Data(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Protection(_Data):
    """Protected rows of one role (Q or K) in one module: RoPE pairs of each head, or single dims.

    >>> heads = HeadRows(module="k_proj", role="k", heads=2, head_dim=8, rotary_dim=8)
    >>> Protection(heads=heads, pairs={1: (3,)}).rows
    (11, 15)
    """

    heads: HeadRows
    pairs: dict[int, tuple[int, ...]] = {}
    """Head -> RoPE pairs, fastest first; both rows of a pair are protected."""
    dims: dict[int, tuple[int, ...]] = {}
    """Head -> single dims, for policies that do not follow pairs."""

    @model_validator(mode="after")
    def _inside(self) -> "Protection":
        try:
            repeated = len(self.rows) != len(set(self.rows))
        except IndexError as error:
            raise ValueError(f"{self.heads.module}, role {self.heads.role}: {error}") from None
        if repeated:
            raise ValueError(f"{self.heads.module}, role {self.heads.role}: a row is protected twice")
        return self

    @property
    def rows(self) -> tuple[int, ...]:
        """Rows of the module, in rising order."""
        by_pair = [
            row for head, pairs in self.pairs.items() for pair in pairs for row in self.heads.pair_rows(pair, head)
        ]
        by_dim = [self.heads.row(head, dim) for head, dims in self.dims.items() for dim in dims]
        return tuple(sorted(by_pair + by_dim))


class ModulePlan(_Data):
    """What becomes of one weight: `shape` is (rows, columns), or (experts, rows, columns)."""

    name: str
    kind: Literal["linear", "experts"] = "linear"
    layer: int
    shape: tuple[int, ...]
    scheme: WeightScheme
    protected_scheme: WeightScheme | None = None
    protected: tuple[Protection, ...] = ()
    reason: str = ""

    @model_validator(mode="after")
    def _consistent(self) -> "ModulePlan":
        mistakes = [*self._group_mistakes(), *self._protection_mistakes(), *self._activation_mistakes()]
        if mistakes:
            raise ValueError("; ".join(mistakes))
        return self

    @property
    def rows(self) -> int:
        """Rows of the weight; those of all experts together."""
        return self.weights // self.columns

    @property
    def columns(self) -> int:
        """Columns (input features) of the weight."""
        return self.shape[-1]

    @property
    def weights(self) -> int:
        """Number of weights."""
        count = 1
        for size in self.shape:
            count *= size
        return count

    @property
    def protected_rows(self) -> tuple[int, ...]:
        """Protected rows, in rising order."""
        return tuple(sorted(row for protection in self.protected for row in protection.rows))

    def bytes_after(self, float_bits: int) -> int:
        """Bytes on disk with everything counted: integers, scales, zero points, row indices; no bias."""
        protected = len(self.protected_rows)
        base = self.scheme.matrix_bytes(self.rows - protected, self.columns, float_bits)
        if self.scheme.activations == "tensor":
            base += float_bits // 8
        if self.protected_scheme is None:
            return base
        kept = self.protected_scheme.matrix_bytes(protected, self.columns, float_bits)
        return base + kept + ROW_INDEX_BYTES * protected

    def _group_mistakes(self) -> Iterable[str]:
        for scheme in (self.scheme, self.protected_scheme):
            if scheme and scheme.is_quantized and scheme.group_size > 0 and self.columns % scheme.group_size:
                fitting = [str(size) for size in (128, 64, 32) if self.columns % size == 0]
                way_out = " or ".join([*fitting, "-1 (the whole row)"])
                where = f"{self.name}: group_size {scheme.group_size} does not divide its {self.columns} columns"
                yield f"{where}; use {way_out}"

    def _protection_mistakes(self) -> Iterable[str]:
        rows = self.protected_rows
        if bool(rows) != (self.protected_scheme is not None):
            yield f"{self.name}: protected rows and protected_scheme go together, one is missing"
        if rows and (rows[-1] >= self.rows or len(set(rows)) != len(rows)):
            yield f"{self.name}: protected row {rows[-1]} is outside its {self.rows} rows, or one is repeated"
        base, kept = self.scheme, self.protected_scheme
        if kept and (kept.bits, not kept.activations) <= (base.bits, not base.activations):
            yield f"{self.name}: protected rows get {kept.bits} bits, not more than the others"
        if any(protection.heads.module != self.name for protection in self.protected):
            yield f"{self.name}: protects rows of another module"

    def _activation_mistakes(self) -> Iterable[str]:
        if self.kind == "experts" and self.scheme.activations:
            yield f'{self.name}: activations of experts cannot be rounded; leave out experts: `ignore: ["*.experts.*"]`'
        if self.protected_scheme and self.protected_scheme.activations:
            yield f"{self.name}: protected rows see activations as they come, not as w8a8; use w8a16-row or bf16"


class CalibrationRecord(_Data):
    """What the statistics behind a plan were measured on; `hash` is over the token ids."""

    source: str
    sequences: int
    length: int
    seed: int
    hash: str


class CachedBits(_Data):
    """Bits of a cached value with everything counted: integers, scales, tables, and tokens that stay as they come."""

    keys: float
    values: float

    @property
    def average(self) -> float:
        """Of a value of K or V."""
        return (self.keys + self.values) / 2


class Plan(_Data):
    """The decision for a whole model.

    `kept_parameters` counts what stays in the model's dtype (embeddings, norms, biases, ignored
    modules); `dtype` is the model's, in which scales are stored too. `prefill` and `round_queries` say how the
    cache is used, see `mvquant.kvcache.quantized_cache`. `fold` holds by layer, KV head and RoPE pair what K is
    divided and Q multiplied by, in the weights, before anything is rounded; it is empty where nothing is folded.
    """

    version: Literal[1] = PLAN_VERSION
    model: str
    family: str
    dtype: Literal["float32", "bfloat16", "float16"]
    recipe: Recipe
    modules: tuple[ModulePlan, ...]
    kept_parameters: int
    fold: tuple[tuple[tuple[FiniteFloat, ...], ...], ...] = ()
    cache: CachePlan | None = None
    prefill: Prefill = "rounded"
    round_queries: bool = False
    training_context: int | None = None
    calibration: CalibrationRecord | None = None
    made_with: dict[str, str] = {}

    @model_validator(mode="after")
    def _decides(self) -> "Plan":
        if not self.modules and self.cache is None:
            raise ValueError("neither `modules` nor `cache`: the plan quantizes nothing")
        if self.cache is None and (self.prefill, self.round_queries) != ("rounded", False):
            raise ValueError("prefill and round_queries say how a cache is used, and the plan has no `cache`")
        if self.recipe.calibrates_weights and self.calibration is None:
            raise ValueError(f"{self.recipe.method.name} needs text, and `calibration` does not say which")
        return self

    @property
    def float_bits(self) -> int:
        """Bits of the model's dtype."""
        return FLOAT_BITS[self.dtype]

    @property
    def weights(self) -> int:
        """Number of weights in the planned modules."""
        return sum(module.weights for module in self.modules)

    @property
    def bytes_before(self) -> int:
        """Bytes of all parameters in the model's dtype."""
        return (self.weights + self.kept_parameters) * self.float_bits // 8

    @property
    def bytes_after(self) -> int:
        """Bytes of all tensors once quantized, file headers aside."""
        quantized = sum(module.bytes_after(self.float_bits) for module in self.modules)
        return quantized + self.kept_parameters * self.float_bits // 8

    @property
    def bits_per_weight(self) -> float:
        """Average bits of a weight in the planned modules; scales, zero points and indices included."""
        if not self.modules:
            return float(self.float_bits)
        return sum(module.bytes_after(self.float_bits) for module in self.modules) * 8 / self.weights

    @property
    def hash(self) -> str:
        """SHA-256 of what was decided, whoever decided it: modules, schemes, rows, dtype, method, fold and cache."""
        decision = self.model_dump(mode="json", include={"version", "dtype", "modules"})
        for module in decision["modules"]:
            del module["reason"]
        if self.recipe.calibrates_weights and self.calibration is not None:
            decision["method"] = [self.recipe.method.model_dump(), self.calibration.hash]
        if self.fold:
            decision["fold"] = self.fold
        if self.cache is not None:
            decision["cache"] = [self.cache.hash, self.prefill, self.round_queries]
        return hashlib.sha256(json.dumps(decision, sort_keys=True).encode()).hexdigest()

    @property
    def cached_bits(self) -> CachedBits | None:
        """Bits of cached values over the training context; None without a plan for the cache."""
        if self.cache is None:
            return None
        context = self.training_context
        return CachedBits(keys=self.cache.key_bits_per_value(context), values=self.cache.value_bits_per_value(context))

    def to_json(self) -> str:
        """The plan as JSON to be read and edited: one line per entry, numbers in a row together."""
        return numbers_in_a_row(self.model_dump_json(indent=1, exclude_defaults=True)) + "\n"

    def save(self, path: Path) -> None:
        """Write the plan as JSON."""
        path.write_text(self.to_json(), encoding="utf-8")


def load_plan(path: Path) -> Plan:
    """Read a plan, perhaps edited by hand.

    Raises:
        PlanError: there is no such file.
        ConfigError: with every mistake at once.
    """
    return load_saved(Plan, path, "plan", "; make one with `mvquant plan`")


def check_plan_fits(plan: Plan, shapes: dict[str, tuple[int, ...]]) -> None:
    """Refuse a plan made for another model.

    Args:
        plan: the plan.
        shapes: shape of every weight of the model that can be quantized, by module name.

    Raises:
        PlanError: no module matches, a module is unknown, repeated, or has another shape.
    """
    if not plan.modules:
        return
    names = [module.name for module in plan.modules]
    if not set(names) & set(shapes):
        raise PlanError(
            f"the plan matches no module of the model: it names {names[:2]}, the model has {list(shapes)[:2]}"
        )
    unknown = sorted(set(names) - set(shapes))
    if unknown or len(names) != len(set(names)):
        raise PlanError(f"the plan names modules that the model lacks, or names one twice: {unknown[:5] or names}")
    for module in plan.modules:
        if module.shape != shapes[module.name]:
            raise PlanError(f"{module.name} is {shapes[module.name]} in the model, {module.shape} in the plan")
