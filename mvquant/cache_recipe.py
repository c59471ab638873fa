"""What is wanted of the cache of keys and values, and of folding: two keys of a recipe. Pure data, no torch.

kv_cache:
  keys: {bits: 2.25, policy: sensitivity}
  values: {bits: 4, group_size: 64}
  sinks: 4
fold: {strength: 0.375}
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from mvquant.cache_formats import KeyFormat, KeyScales, ValueFormat

KeyPolicy = Literal["sensitivity", "massive", "slow-pairs", "random", "fast-pairs", "none"]
Scope = Literal["head", "layer", "model"]
Prefill = Literal["rounded", "exact"]
"""What a forward pass of several tokens reads of its own tokens; see `mvquant.kvcache.layers`."""

UNROUNDED = 16
"""Bits of what is cached as it comes."""

_CHANNEL_CHUNK = 32
"""Tokens that share the scales of a channel unless a recipe says otherwise."""


class _Data(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class KeyCache(_Data):
    """How many bits K gets, which RoPE pairs get more of them, and where scales come from.

    The default has one scale for each channel of 32 tokens, before RoPE, at half a bit a value: it holds tokens unlike
    the calibration text, as an attention sink in the middle of a text. `static` stores nothing but the integers, and
    does not (tables "mirrored" of `benchmarks/results/attention.json`).
    """

    bits: float = UNROUNDED
    """Average bits of a value, scales aside: 1 to 8, or 16 to cache K as it is."""
    policy: KeyPolicy = "sensitivity"
    scales: KeyScales = "channel"
    chunk: int | None = None
    """Tokens that are encoded together: 32 for scales per channel, else 1."""
    scale_bits: Literal[8, 16] | None = None
    """8 for scales per channel, else 16."""
    stage: Literal["post-rope", "pre-rope"] = "pre-rope"
    scope: Scope = "layer"
    """The pairs that compete for the bits."""
    protected: float = Field(default=0.125, gt=0, le=1)
    """Share of the pairs that policies which rank (all but `sensitivity`) protect together."""
    seed: int = 0

    @model_validator(mode="after")
    def _possible(self) -> "KeyCache":
        mistakes: list[str] = []
        if not 1 <= self.bits <= 8 and self.bits != UNROUNDED:
            what = "is below what one bit per pair needs" if self.bits < 1 else "is out of range"
            mistakes.append(f"bits: {self.bits:g} {what}; choose 1 to 8, or 16 to cache K as it is")
        try:
            _ = self.format
        except ValidationError as error:
            mistakes += [str(detail["msg"]).removeprefix("Value error, ") for detail in error.errors()]
        if mistakes:
            raise ValueError("; ".join(mistakes))
        return self

    @property
    def format(self) -> KeyFormat:
        """The number format."""
        by_channel = self.scales == "channel"
        return KeyFormat(
            scales=self.scales,
            chunk=self.chunk or (_CHANNEL_CHUNK if by_channel else 1),
            scale_bits=self.scale_bits or (8 if by_channel else 16),
            stage=self.stage,
        )


class KvCache(_Data):
    """How keys and values are cached."""

    keys: KeyCache = KeyCache()
    values: ValueFormat = ValueFormat()
    sinks: int = Field(default=0, ge=0)
    """First tokens that stay as they come."""
    window: int = Field(default=0, ge=0)
    """Newest tokens that stay as they come, at least."""
    prefill: Prefill = "rounded"
    round_queries: bool = False
    """Round queries too, per token, with the bits of their KV head's pairs: to study them, it saves nothing."""

    @model_validator(mode="after")
    def _rounds(self) -> "KvCache":
        if self.keys.bits == UNROUNDED and self.values.bits == UNROUNDED:
            raise ValueError("rounds nothing; give `keys` or `values` fewer than 16 bits, or leave it out")
        return self


class Fold(_Data):
    """Scale moved from K to Q, pair by pair, in the weights; see `mvquant.folding`."""

    strength: float = Field(gt=0, le=1)
    """1 makes all pairs of K alike."""
