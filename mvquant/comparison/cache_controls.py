"""Controls that spend the bytes of a variant's cached keys in another way; weights and cached values stay as they are.

random-keys      the widths of each head, given to its pairs at random
fast-keys        the widths of each head, the most bits to its fastest pairs
even-keys        the same format, no pair preferred, as many bits as the bytes allow
token-scales     a scale for each token (counted), no pair preferred, as many bits as the bytes allow
channel-scales   a scale for each channel of 32 tokens (counted), no pair preferred, as many bits as the bytes allow
...-up           the next bits up, where more than 1 % of the bytes would be left: it takes more than the same bytes

The bytes are those of `CachePlan.key_bits_per_value` over the training context: integers, scales, tables, tokens that
stay exact and those that wait for their chunk.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from mvquant.cache_formats import KeyScales
from mvquant.cache_plan import CachePlan
from mvquant.cache_recipe import UNROUNDED, KeyCache, KeyPolicy
from mvquant.comparison.controls import Control, Planner
from mvquant.errors import MvquantError
from mvquant.plan import Plan

EQUAL = 0.01
"""Relative difference of bytes up to which two caches are called equal: no control can share out parts of a byte."""

_MOST_BITS = 8

_KINDS: dict[KeyScales, str] = {"token": "token-scales", "channel": "channel-scales"}

Shuffle = Callable[[tuple[int, ...]], tuple[int, ...]]


def key_bits(plan: Plan) -> float:
    """Bits of a cached value of K over the training context, everything counted; those of the dtype without a cache."""
    return float(plan.float_bits) if plan.cached_bits is None else plan.cached_bits.keys


def price(bits: float, of: float) -> str:
    """Say how a cache's bits compare with another's.

    >>> price(2.42, 2.43), price(2.55, 2.43)
    ('the same bytes', '4.9 % more bytes')
    """
    share = bits / of - 1
    if abs(share) <= EQUAL:
        return "the same bytes"
    return f"{abs(share):.1%} ".replace("%", " %") + ("more bytes" if share > 0 else "fewer bytes")


def equal_cache_controls(plan: Plan, make: Planner, seed: int) -> Iterator[Control]:
    """Yield the controls of a plan that gives some pairs of K more bits than others; nothing for any other.

    Args:
        plan: of the variant.
        make: makes the plan of a recipe for the same model.
        seed: of random pairs.
    """
    keys = None if plan.recipe.kv_cache is None else plan.recipe.kv_cache.keys
    if plan.cache is None or keys is None or not _prefers_pairs(plan.cache, keys):
        return
    yield from _other_pairs(plan, plan.cache, keys, seed)
    yield from _alike(plan, keys, "even-keys", make)
    for scales, kind in _KINDS.items():
        if scales != keys.scales:
            other = KeyCache(bits=1.0, policy="none", scales=scales, stage=keys.stage)
            yield from _alike(plan, other, kind, make)


def _prefers_pairs(cache: CachePlan, keys: KeyCache) -> bool:
    differ = any(len(set(head.bits)) > 1 for layer in cache.layers for head in layer.heads)
    return differ and keys.policy != "none" and keys.bits != UNROUNDED


def _other_pairs(plan: Plan, cache: CachePlan, keys: KeyCache, seed: int) -> Iterator[Control]:
    """Yield the same widths at other pairs of the same heads: exactly the same bytes in any format."""
    draw = random.Random(seed)
    ways: dict[KeyPolicy, tuple[str, str, Shuffle]] = {
        "random": ("random-keys", "random pairs", lambda bits: tuple(draw.sample(bits, len(bits)))),
        "fast-pairs": ("fast-keys", "the fastest pairs", lambda bits: tuple(sorted(bits, reverse=True))),
    }
    for policy, (kind, words, shuffle) in ways.items():
        bits = [shuffle(head.bits) for layer in cache.layers for head in layer.heads]
        moved = _with_bits(cache, bits, f"the widths of {cache.policy or 'another plan'}, the most to {words}")
        made = _with_cache(plan, moved, keys.model_copy(update={"policy": policy, "seed": seed}))
        if policy != keys.policy and made.hash != plan.hash:
            yield Control(kind, f"control: keys with the same bits, most of them for {words}; the same bytes", made)


def _with_bits(cache: CachePlan, bits: Sequence[tuple[int, ...]], policy: str) -> CachePlan:
    """Give every head, layer by layer, these bits."""
    given = iter(bits)
    layers = tuple(
        layer.model_copy(update={"heads": tuple(head.model_copy(update={"bits": next(given)}) for head in layer.heads)})
        for layer in cache.layers
    )
    return cache.model_copy(update={"layers": layers, "policy": policy})


def _with_cache(plan: Plan, cache: CachePlan, keys: KeyCache) -> Plan:
    assert plan.recipe.kv_cache is not None, "only a plan with a cache has controls of it"
    wanted = plan.recipe.kv_cache.model_copy(update={"keys": keys})
    return plan.model_copy(update={"cache": cache, "recipe": plan.recipe.model_copy(update={"kv_cache": wanted})})


def _alike(plan: Plan, keys: KeyCache, kind: str, make: Planner) -> Iterator[Control]:
    """Yield the most bits that the bytes allow without preferring any pair, and the next step up if bytes are left."""
    assert plan.recipe.kv_cache is not None, "only a plan with a cache has controls of it"
    bare = keys.model_copy(update={"bits": 1.0, "policy": "none"})
    wanted = plan.recipe.kv_cache.model_copy(update={"keys": bare})
    try:
        cache = make(plan.recipe.model_copy(update={"kv_cache": wanted})).cache
    except MvquantError:  # a format that this model cannot have is no control of it
        return
    assert cache is not None, "the recipe asks for one"
    steps, target = _Steps(plan, cache, bare), key_bits(plan)
    for step in steps.nearest(target):
        made = steps.plan(step)
        up = "-up" if key_bits(made) > target * (1 + EQUAL) else ""
        summary = f"control: keys at {steps.average(step):.3g} bits, no pair preferred, {bare.format.name}"
        yield Control(f"{kind}{up}", f"{summary}; {price(key_bits(made), target)}", made)


@dataclass(frozen=True)
class _Steps:
    """Caches of one format that prefer no pair, from 1 bit on, each step a little more.

    A step is one pair more at the next bit, spread evenly over layers and heads; or a whole head, where a second width
    would cost a scale of its own.
    """

    variant: Plan
    cache: CachePlan
    keys: KeyCache

    @property
    def heads(self) -> int:
        """KV heads of all layers."""
        return sum(len(layer.heads) for layer in self.cache.layers)

    @property
    def per_bit(self) -> int:
        """Steps until everything has one bit more."""
        return self.heads if self.keys.scales == "token" else self.heads * self.cache.pairs

    def average(self, step: int) -> float:
        """Bits of a pair on average."""
        return 1 + step / self.per_bit

    def plan(self, step: int) -> Plan:
        """The variant's plan with the cache of a step."""
        base, extra = 1 + step // self.per_bit, step % self.per_bit
        pairs = self.cache.pairs
        if self.keys.scales == "token":
            more = [pairs * (index in _spread(extra, self.heads)) for index in range(self.heads)]
        else:
            more = [
                extra // self.heads + (index in _spread(extra % self.heads, self.heads)) for index in range(self.heads)
            ]
        bits = [tuple(base + (pair in _spread(count, pairs)) for pair in range(pairs)) for count in more]
        average = round(self.average(step), 4)
        cache = _with_bits(self.cache, bits, f"no pair preferred, {average:g} bits")
        return _with_cache(self.variant, cache, self.keys.model_copy(update={"bits": average}))

    def nearest(self, target: float) -> list[int]:
        """The one step that takes `target` bits of a cached value, or else the last below and the first above."""
        low, high = -1, (_MOST_BITS - 1) * self.per_bit  # the last below lies between the two, -1 is none
        while low < high:
            middle = (low + high + 1) // 2
            if key_bits(self.plan(middle)) <= target:
                low = middle
            else:
                high = middle - 1
        steps = [step for step in (low, low + 1) if step >= 0]
        equal = [step for step in steps if abs(key_bits(self.plan(step)) / target - 1) <= EQUAL]
        return equal[:1] or steps


def _spread(count: int, of: int) -> set[int]:
    """Choose so many of some places, evenly.

    >>> sorted(_spread(3, 8))
    [0, 2, 5]
    """
    return {index * of // count for index in range(count)}
