"""What a scheme's name stands for: `mv-protect-w4a16-g64-k2.25v4` is a recipe.

[mv-protect-] then a method (gptq-, awq-, smoothquant-, autoround-; without one, rounding to nearest), a weight scheme
of `mvquant.scheme`, then -kN: N bits a value of K, on average; vM: M bits of V
"""

import re
from collections.abc import Iterator
from typing import Literal, NamedTuple

from mvquant.cache_formats import ValueFormat
from mvquant.cache_recipe import KeyCache, KeyPolicy, KvCache
from mvquant.errors import ConfigError, UnknownNameError
from mvquant.method_settings import METHOD_SETTINGS, MethodName
from mvquant.recipe import Protect, Recipe, Weights, impossible
from mvquant.scheme import SCHEME_NAMES, WeightScheme

MV_PROTECT = "mv-protect"
"""Name of our own scheme, alone (on `w4a16`) or before weights, a cache, or both."""

MV_PROTECT_DEFAULT = f"{MV_PROTECT}-w4a16"

COMMON_SCHEMES = (
    MV_PROTECT,
    *(f"{prefix}w{bits}a16" for prefix in ("", f"{MV_PROTECT}-") for bits in (8, 4, 3, 2)),
    *(
        f"{prefix}{name}"
        for prefix in ("", f"{MV_PROTECT}-")
        for name in ("gptq-w4a16", "awq-w4a16", "autoround-w4a16")
    ),
    "w8a8",
    "smoothquant-w8a8",
    f"{MV_PROTECT}-smoothquant-w8a8",
    *(f"{prefix}k2" for prefix in ("", f"{MV_PROTECT}-", f"{MV_PROTECT_DEFAULT}-")),
)
"""Scheme names shown in errors; each weight scheme of `mvquant.scheme` works too, and each cache, as `k2.25v4`."""

CACHE_SINKS = 4
"""First tokens that schemes leave as they come: all tokens look at them, and their keys are like no others."""

_METHOD_OF: dict[str, MethodName] = {str(name): name for name in METHOD_SETTINGS}
_METHODS = "|".join(name for name in METHOD_SETTINGS if name != "rtn")
_SCHEME = re.compile(
    rf"(?P<protects>mv-protect)?-?(?P<method>{_METHODS})?-?(?P<weights>w.*?)?-?"
    r"(?P<cache>k(?P<k>\d(\.\d+)?)(v(?P<v>[2348]))?)?"
)


def recipe_for_scheme(name: str) -> Recipe:
    """Make the recipe that a scheme's name stands for.

    Raises:
        UnknownNameError: not a scheme.
        ConfigError: a scheme that its method cannot do.

    >>> recipe_for_scheme("mv-protect-w2a16").protect.pairs
    0.125
    >>> recipe_for_scheme("mv-protect-k2.25").kv_cache.keys.policy
    'sensitivity'
    """
    parts = _parts(name)
    if parts is None:
        raise UnknownNameError("scheme", name, COMMON_SCHEMES)
    if mistake := _impossible(parts):
        raise ConfigError(f"scheme {name}", [mistake])
    weights, protect = None, Protect(policy="none")
    if parts.weights is not None:
        weights = Weights(scheme=parts.weights, method=METHOD_SETTINGS[parts.method]())
        if parts.protects:
            kept = WeightScheme(bits=16) if parts.weights.bits == 8 else None
            protect = Protect(policy="massive", pairs=0.125, scheme=kept)
    return Recipe(summary=_summary(parts), weights=weights, protect=protect, kv_cache=_kv_cache(parts))


def is_scheme(name: str) -> bool:
    """Whether `recipe_for_scheme` knows a name.

    >>> is_scheme("w4a16-k2.5v4"), is_scheme("w4a16-k9")
    (True, False)
    """
    parts = _parts(name)
    return parts is not None and _impossible(parts) is None


class _Parts(NamedTuple):
    """What the name of a scheme is made of: `mv-protect-w4a16-k2.25v4`."""

    protects: bool
    method: MethodName
    weights: WeightScheme | None
    key_bits: float | None
    value_bits: Literal[2, 3, 4, 8, 16]


def _parts(name: str) -> _Parts | None:
    """Take a name apart; None if it is none."""
    found = _SCHEME.fullmatch(MV_PROTECT_DEFAULT if name == MV_PROTECT else name)
    if found is None:
        return None
    protects, named, weights, cache = found["protects"], found["method"], found["weights"], found["cache"]
    key_bits = None if cache is None else float(found["k"])
    known = weights is None or (weights in SCHEME_NAMES and weights != "bf16")
    if "-".join(part for part in (protects, named, weights, cache) if part) != found.string or not known:
        return None
    if (weights is None and (cache is None or named)) or (key_bits is not None and not 1 <= key_bits <= 8):
        return None
    scheme = None if weights is None else WeightScheme.model_validate(weights)
    method = _METHOD_OF[named or "rtn"]
    value_bits = ValueFormat.model_validate({"bits": int(found["v"] or 16)}).bits
    return _Parts(protects is not None, method, scheme, key_bits, value_bits)


def _impossible(parts: _Parts) -> str | None:
    """What a method cannot do; None where it can."""
    return None if parts.weights is None else impossible(parts.weights, METHOD_SETTINGS[parts.method]())


def _kv_cache(parts: _Parts) -> KvCache | None:
    if parts.key_bits is None:
        return None
    policy: KeyPolicy = "sensitivity" if parts.protects else "none"
    values = ValueFormat(bits=parts.value_bits, group_size=32 if parts.value_bits in (2, 3) else -1)
    return KvCache(keys=KeyCache(bits=parts.key_bits, policy=policy), values=values, sinks=CACHE_SINKS)


_METHOD_EXAMPLES = ("gptq-w4a16", "gptq-w3a16", "awq-w4a16", "autoround-w4a16", "smoothquant-w8a8")


def scheme_summaries() -> dict[str, str]:
    """Schemes of weights, and examples of cached K and V: name and one line about it."""
    plain = [name for name in SCHEME_NAMES if name != "bf16"]
    caches = ("k2", "k2.25", "k2v4")
    names = [f"{MV_PROTECT}-{name}" for name in plain] + plain
    names += [f"{MV_PROTECT}-{name}" for name in (*caches, *(f"w4a16-{cache}" for cache in caches))] + list(caches)
    names += [f"{MV_PROTECT}-{name}" for name in _METHOD_EXAMPLES] + list(_METHOD_EXAMPLES)
    parts = {name: _parts(name) for name in names}
    known = {name: _summary(each) for name, each in parts.items() if each is not None}
    return {MV_PROTECT: f"the default: {MV_PROTECT_DEFAULT}", **known}


def _summary(parts: _Parts) -> str:
    return "; ".join(_said(parts))


def _said(parts: _Parts) -> Iterator[str]:
    if parts.weights is not None:
        by = "" if parts.method == "rtn" else f", by {METHOD_TITLES[parts.method]}"
        yield _protected_summary(parts.weights, by) if parts.protects else f"{_grid_summary(parts.weights)}{by}"
    if parts.key_bits is not None:
        share = "most to the RoPE pairs that attention feels most" if parts.protects else "all RoPE pairs alike"
        values = "V as it is" if parts.value_bits == 16 else f"V at {parts.value_bits}"
        yield f"K cached at {parts.key_bits:g} bits on average, {share}, {values}"
    if not parts.protects:
        yield "nothing is protected"


METHOD_TITLES: dict[MethodName, str] = {
    "rtn": "rounding to nearest",
    "gptq": "GPTQ",
    "awq": "AWQ",
    "smoothquant": "SmoothQuant",
    "autoround": "AutoRound",
}


def _protected_summary(scheme: WeightScheme, by: str) -> str:
    kept = "in the model's dtype" if scheme.bits == 8 else "at 8 bits"
    return f"{_grid_summary(scheme)}{by}; an eighth of the RoPE pairs of Q and K, massive slow ones first, {kept}"


def _grid_summary(scheme: WeightScheme) -> str:
    groups = "one group a row" if scheme.group_size == -1 else f"groups of {scheme.group_size}"
    if scheme.activations:
        scales = "a scale per token" if scheme.activations == "token" else "one scale"
        return f"8-bit weights, one group a row, and 8-bit activations, {scales}"
    return f"{scheme.bits}-bit weights, {groups}, {'' if scheme.symmetric else 'a'}symmetric"
