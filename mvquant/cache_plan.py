"""How K and V are cached: bits of every RoPE pair, kind of scales, and what it all costs. Pure data, no torch.

A *pair* here is two dims of a head that share their bits: the RoPE pairs, fastest first, then the dims that RoPE
does not turn, two by two. A *chunk* is the tokens that are encoded together.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, model_validator

from mvquant.cache_formats import KEY_BITS, SCALE_BYTES, KeyFormat, ValueFormat, packed_bytes
from mvquant.data_files import load_saved
from mvquant.errors import PlanError
from mvquant.heads import HeadRows, RotaryLayout, pair_dims

CACHE_PLAN_VERSION = 1


class _Data(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class HeadKeys(_Data):
    """One KV head: bits of its pairs; mean and deviation of its dims where the format wants them."""

    bits: tuple[int, ...]
    center: tuple[FiniteFloat, ...] = ()
    spread: tuple[FiniteFloat, ...] = ()


class LayerKeys(_Data):
    """The KV heads of one decoder layer."""

    layer: int
    heads: tuple[HeadKeys, ...] = Field(min_length=1)


class CachePlan(_Data):
    """What becomes of K and V of every layer while text is generated.

    `sinks` first tokens and at least `window` most recent ones stay in full precision; so do those that do not
    fill a chunk yet. `float_bits` is the size of the model's numbers.
    """

    version: Literal[1] = CACHE_PLAN_VERSION
    head_dim: int = Field(gt=0)
    rotary_dim: int = Field(ge=0)
    layout: RotaryLayout = "half-split"
    keys: KeyFormat = KeyFormat(chunk=32)
    layers: tuple[LayerKeys, ...] = Field(min_length=1)
    values: ValueFormat = ValueFormat()
    sinks: int = Field(default=0, ge=0)
    window: int = Field(default=0, ge=0)
    float_bits: Literal[16, 32] = 16
    policy: str = ""
    """How the bits were chosen, for people."""

    @model_validator(mode="after")
    def _consistent(self) -> "CachePlan":
        mistakes = [*self._shape_mistakes(), *(m for layer in self.layers for m in self._head_mistakes(layer))]
        if mistakes:
            raise ValueError("; ".join(mistakes))
        return self

    @property
    def pairs(self) -> int:
        """Pairs in one head, those without RoPE included."""
        return self.head_dim // 2

    @property
    def average_bits(self) -> float:
        """Average bits of a cached K value without scales, tables, sinks and windows."""
        heads = [head for layer in self.layers for head in layer.heads]
        return sum(sum(head.bits) for head in heads) / (len(heads) * self.pairs)

    @property
    def hash(self) -> str:
        """SHA-256 of what was decided, whoever decided it."""
        decision = self.model_dump(mode="json", exclude={"policy"})
        return hashlib.sha256(json.dumps(decision, sort_keys=True).encode()).hexdigest()

    def dims_of(self, pair: int) -> tuple[int, int]:
        """The two dims of a head that pair `pair` is made of.

        >>> plan = CachePlan(head_dim=8, rotary_dim=4, layers=(LayerKeys(layer=0, heads=(HeadKeys(bits=(2,) * 4),)),))
        >>> [plan.dims_of(pair) for pair in range(4)]
        [(0, 2), (1, 3), (4, 5), (6, 7)]
        """
        if pair < self.rotary_dim // 2:
            return pair_dims(pair, self.rotary_dim, self.layout)
        return 2 * pair, 2 * pair + 1

    def dim_bits(self, head: HeadKeys) -> list[int]:
        """Bits of every dim of a head."""
        bits = [0] * self.head_dim
        for pair, width in enumerate(head.bits):
            for dim in self.dims_of(pair):
                bits[dim] = width
        return bits

    def key_chunk_bytes(self, layer: LayerKeys) -> int:
        """Bytes of one chunk of K of one sequence in a layer: integers, scales, and pairs kept as they are."""
        widths = Counter(width for head in layer.heads for width in self.dim_bits(head))
        kept = widths.pop(16, 0) * self.keys.chunk * self.float_bits // 8
        return packed_bytes(widths, self.keys.chunk) + kept + self._scale_bytes(layer)

    def key_bits_per_value(self, context: int | None = None) -> float:
        """Bits of a cached K value with everything counted.

        Args:
            context: tokens that are cached. Without it: a token that is encoded, so no sinks and window, and no
                tables of measured means and deviations, which are there once. With it: the average over the
                context, half a chunk that waits for its last token included.
        """
        packed = [self.key_chunk_bytes(layer) / self.keys.chunk for layer in self.layers]
        rounded = [any(width < 16 for head in layer.heads for width in head.bits) for layer in self.layers]
        waiting = (self.keys.chunk - 1) / 2
        return self._per_value(packed, rounded, context, waiting, self.table_bytes)

    def value_bits_per_value(self, context: int | None = None) -> float:
        """Bits of a cached V value with everything counted; V waits for no chunk. See `key_bits_per_value`."""
        packed = [self.values.token_bytes(len(layer.heads), self.head_dim, self.float_bits) for layer in self.layers]
        rounded = [self.values.bits < 16] * len(self.layers)
        return self._per_value(packed, rounded, context, waiting=0, tables=0)

    @property
    def table_bytes(self) -> int:
        """Bytes of measured means and deviations, there once however long the text."""
        return 2 * SCALE_BYTES * sum(len(head.center) for layer in self.layers for head in layer.heads)

    def save(self, path: Path) -> None:
        """Write the plan as JSON."""
        path.write_text(self.model_dump_json(exclude_defaults=True) + "\n", encoding="utf-8")

    def _per_value(
        self,
        packed: Sequence[float | int],
        rounded: Sequence[bool],
        context: int | None,
        waiting: float | int,
        tables: int,
    ) -> float:
        """Bits of a value, from the bytes of a packed token in every layer, and whether the layer rounds at all."""
        values = [len(layer.heads) * self.head_dim for layer in self.layers]
        if context is None:
            return sum(packed) * 8 / sum(values)
        exact = min(float(context), self.window + waiting)
        held = float(tables)
        for size, token_bytes, rounds in zip(values, packed, rounded, strict=True):
            # sinks lie in chunks like all others, and beside them as they came
            unrounded = exact + self.sinks if rounds else 0
            held += unrounded * size * self.float_bits / 8 + (context - (exact if rounds else 0)) * token_bytes
        return held * 8 / (context * sum(values))

    def _scale_bytes(self, layer: LayerKeys) -> int:
        quantized = [[width for width in self.dim_bits(head) if width < 16] for head in layer.heads]
        if self.keys.scales == "channel":
            return 2 * self.keys.scale_bits // 8 * sum(map(len, quantized))
        if self.keys.scales == "token":
            return 2 * SCALE_BYTES * sum(len(set(widths)) for widths in quantized)
        return 0

    def _shape_mistakes(self) -> Iterator[str]:
        if self.head_dim % 2 or self.rotary_dim % 2 or self.rotary_dim > self.head_dim:
            yield f"rotary_dim {self.rotary_dim} and head_dim {self.head_dim} must be even, and the first not larger"
        group = self.values.group_size
        if self.values.bits < 16 and group != -1 and (group < 1 or self.head_dim % group):
            yield f"values.group_size {group} does not divide head_dim {self.head_dim}; use a divisor, or -1"
        if self.keys.inv_freq and len(self.keys.inv_freq) != self.rotary_dim // 2:
            yield f"keys.inv_freq has {len(self.keys.inv_freq)} entries for {self.rotary_dim // 2} RoPE pairs"
        numbers = [layer.layer for layer in self.layers]
        if len(set(numbers)) != len(numbers):
            yield f"layers: a number is there twice in {numbers}"

    def _head_mistakes(self, layer: LayerKeys) -> Iterator[str]:
        for index, head in enumerate(layer.heads):
            where = f"layer {layer.layer}, head {index}"
            if len(head.bits) != self.pairs:
                yield f"{where}: bits for {len(head.bits)} pairs, a head of {self.head_dim} dims has {self.pairs}"
            if wrong := sorted(set(head.bits) - set(KEY_BITS)):
                yield f"{where}: {wrong} bits are out of range; use 1 to 8, or 16 to keep a pair as it is"
            tables = {len(head.center), len(head.spread)}
            if tables != {self.head_dim if self.keys.measured else 0} and (
                self.keys.measured or tables != {self.head_dim}
            ):
                yield f"{where}: center and spread must have {self.head_dim} entries each for {self.keys.name}"


def load_cache_plan(path: Path) -> CachePlan:
    """Read a cache plan, perhaps edited by hand.

    Raises:
        PlanError: there is no such file.
        ConfigError: with every mistake at once.
    """
    return load_saved(CachePlan, path, "cache plan")


def check_cache_plan_fits(plan: CachePlan, keys: Sequence[HeadRows]) -> None:
    """Refuse a cache plan made for another model.

    Args:
        plan: the plan.
        keys: where K lies in every decoder layer of the model, as `[attention.k for attention in view.attentions]`.

    Raises:
        PlanError: with every difference.
    """
    if mistakes := list(_differences(plan, keys)):
        raise PlanError(f"the cache plan is for another model: {'; '.join(mistakes)}")


def _differences(plan: CachePlan, keys: Sequence[HeadRows]) -> Iterable[str]:
    numbers = [layer.layer for layer in plan.layers]
    if numbers != list(range(len(keys))):
        yield f"it has layers {numbers[:4]} ({len(numbers)}), the model has {len(keys)}"
        return
    for layer, rows in zip(plan.layers, keys, strict=True):
        if rows.rotary_dim == 0:
            yield f"{rows.module} does not use RoPE, so it has no pairs"
        elif (plan.head_dim, plan.rotary_dim, plan.layout) != (rows.head_dim, rows.rotary_dim, rows.layout):
            found = f"head_dim {rows.head_dim}, rotary_dim {rows.rotary_dim}, {rows.layout}"
            yield f"{rows.module} has {found}, the plan {plan.head_dim}, {plan.rotary_dim}, {plan.layout}"
        if len(layer.heads) != rows.heads:
            yield f"{rows.module} has {rows.heads} KV heads, the plan {len(layer.heads)}"
