"""How much rounding K changes attention: mvquant's plans against other quantizers, at equal bits and at equal bytes.

    OMP_NUM_THREADS=1 python -m benchmarks.attention DIR   # writes benchmarks/results/attention.json (two minutes)

DIR holds `llama-2-7b-chat.layer10.safetensors`: published Q and K of Llama-2-7B-chat, layer 10, after RoPE, all 32
heads, 66 tokens of one prompt (Jin et al., ICML 2025).

Whatever a quantizer chooses beforehand (bits, means, deviations) it chooses on tokens 0 to 32; keys 33 to 65 are then
rounded, and the causal attention of queries 33 to 65 over them is compared with that over the keys as they were: the
mean over queries and heads of the KL divergence. Keys before token 33 are left out on both sides. Groups of 32 tokens
leave the last key in full precision; only the last query sees it.

Table "bits": average bits of the integers alone. Table "bytes": everything counted over a context of 4096 tokens:
scales, zero points, norms, tables of means and deviations, and tokens that wait in full precision for their group to
fill; every quantizer gets the most bits that keep it within the budget. Table "window" is "bits", but every query
sees the 8 newest keys in full precision. Table "policies" is "bits" with the pairs chosen by rule.

Some settings of mvquant's formats (clipping, the size of 8-bit scales) were once compared on tokens 33 to 65. Tables
"bits, mirrored" and "bytes, mirrored" are the check: all is chosen on tokens 33 to 65 and judged on 0 to 32, on which
nothing was tried before. Token 0, the attention sink that no token of the calibration resembles, is in full precision
for every quantizer there; table "bits, mirrored, sink rounded" shows what happens if it is not.
"""

import argparse
import hashlib
import json
import math
import platform
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, get_args

import torch
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor

from benchmarks.attention_tables import BEFORE, MIRRORED, SINK_ROUNDED, aims, aims_markdown, table_markdown
from benchmarks.block_gtq import block_bits, block_gtq
from benchmarks.peers.transformers_cache import BACKEND_BITS, installed, quantized_cache
from benchmarks.peers.turboquant import turboquant
from benchmarks.peers.uniform import per_channel, per_token
from mvquant.attention_states import unrotate
from mvquant.folding import DEFAULT_STRENGTH
from mvquant.kvcache import KeyFormat, key_plan, roundtrip
from mvquant.kvcache.choose import KeyPolicy
from mvquant.kvcache.rotation import angles, rotate

RESULTS = Path(__file__).parent / "results" / "attention.json"
STATES = "llama-2-7b-chat.layer10.safetensors"
ROPE_BASE, CONTEXT, WINDOW = 10000.0, 4096, 8
BITS = (2.0, 2.5, 3.0, 4.0)
PACKAGES = ("mvquant", "torch", "transformers", "safetensors", "hqq", "optimum-quanto")
SEEDS = (0, 1, 2)
"""Of rotations and random pairs; their KL is averaged."""

Keys = Float[Tensor, "seq head head_dim"]
Rounding = Callable[[float, int], tuple[Keys, float]]
"""Average bits and seed -> judged keys rounded, bits per value with everything counted."""


class Bench:
    """The states of one layer, cut into calibration and judged tokens."""

    def __init__(self, path: Path, *, mirrored: bool = False, sinks: int = 0) -> None:
        states = load_file(path)
        self.hash = hashlib.sha256(path.read_bytes()).hexdigest()
        q, k = states["q"].float(), states["k"].float()
        half = len(k) // 2
        first, second = slice(0, half), slice(half, len(k))
        calibration, judged = (second, first) if mirrored else (first, second)
        self.q, self.k, self.start = q[calibration], k[calibration], calibration.start
        self.sinks, self.judged_start = k[judged][:sinks], judged.start + sinks
        self.judged_q, self.judged_k = q[judged][sinks:], k[judged][sinks:]
        self.inv_freq = tuple(float(ROPE_BASE ** (-2 * pair / k.shape[-1])) for pair in range(k.shape[-1] // 2))

    def losses(self, rounded: Keys, window: int = 0) -> Float[Tensor, " head"]:
        """KL of the attention of every head, mean over judged queries; sinks are read as they are."""
        exact, logits = self._logits(self.judged_k), self._logits(rounded)
        position = torch.arange(-len(self.sinks), len(self.judged_k))
        age = position[len(self.sinks) :, None] - position
        logits = torch.where(age < window, exact, logits)
        seen = age >= 0
        before, after = (each.masked_fill(~seen, -math.inf).log_softmax(-1) for each in (exact, logits))
        return (before.exp() * (before - after)).masked_fill(~seen, 0).sum(-1).mean(-1)

    def _logits(self, keys: Keys) -> Float[Tensor, "head query key"]:
        every = torch.cat([self.sinks, keys]).double()
        return torch.einsum("qhd,khd->hqk", self.judged_q.double(), every) / math.sqrt(keys.shape[-1])

    def before_rope(self, keys: Keys) -> Keys:
        """Judged keys turned back by their positions."""
        turns = angles(torch.tensor(self.inv_freq), self.judged_start, len(keys))
        return unrotate(keys.transpose(0, 1)[None], *turns, keys.shape[-1])[0].transpose(0, 1)

    def after_rope(self, keys: Keys) -> Keys:
        """Undo `before_rope`."""
        turns = angles(torch.tensor(self.inv_freq), self.judged_start, len(keys))
        return rotate(keys.transpose(0, 1)[None], *turns, keys.shape[-1])[0].transpose(0, 1)


def waiting(bits: float, group: int = 32) -> float:
    """Bits per value if half a group waits in full precision, of a context of 4096 tokens."""
    full = (group - 1) / 2
    return (full * 16 + (CONTEXT - full) * bits) / CONTEXT


def uniform_peers(bench: Bench) -> dict[str, Rounding]:
    """Quantizers that give all pairs the same bits, on even grids."""

    def channel(bits: float, _: int) -> tuple[Keys, float]:
        rounded, counted = per_channel(bench.judged_k, bits)
        return rounded, waiting(counted)

    def channel_before_rope(bits: float, _: int) -> tuple[Keys, float]:
        rounded, counted = per_channel(bench.before_rope(bench.judged_k), bits)
        return bench.after_rope(rounded), waiting(counted)

    def folded(bits: float, _: int) -> tuple[Keys, float]:
        half = bench.k.shape[-1] // 2
        scale = (bench.k[..., :half].square() + bench.k[..., half:].square()).mean(0).sqrt().repeat(1, 2)
        scale = scale**DEFAULT_STRENGTH
        rounded, counted = per_token(bench.judged_k / scale, bits)
        return rounded * scale, counted

    return {
        "uniform per token": lambda bits, _: per_token(bench.judged_k, bits),
        "uniform per token, scales folded into Q": folded,
        "uniform per channel, groups of 32 (KIVI)": channel,
        f"uniform per channel, groups of 32{BEFORE}": channel_before_rope,
    }


def other_peers(bench: Bench) -> dict[str, Rounding]:
    """Rotation with a scalar codebook, and the same with bits by energy."""
    return {
        "TurboQuant-like": lambda bits, seed: turboquant(bench.judged_k, bits, seed),
        "Block-GTQ's rule": lambda bits, seed: block_gtq(bench.judged_k, block_bits(bench.q, bench.k, bits), seed),
    }


def ours(bench: Bench, keys: KeyFormat, policy: KeyPolicy = "sensitivity", **options: Any) -> Rounding:  # noqa: ANN401
    """A plan chosen on the calibration tokens."""

    def rounding(bits: float, seed: int) -> tuple[Keys, float]:
        plan = key_plan(bench.q, bench.k, bits, policy, keys=keys, seed=seed, start=bench.start, **options)
        return roundtrip(bench.judged_k, plan, start=bench.judged_start), plan.key_bits_per_value(CONTEXT)

    return rounding


def our_formats(bench: Bench) -> dict[str, KeyFormat]:
    """Formats of `mvquant.kvcache`, by what is stored."""
    before = {"stage": "pre-rope", "inv_freq": bench.inv_freq}
    kinds: dict[str, dict[str, Any]] = {
        "per channel, chunks of 32, 8-bit scales": {"scales": "channel", "chunk": 32, "scale_bits": 8},
        "per channel, chunks of 32, 16-bit scales": {"scales": "channel", "chunk": 32},
        "static": {"scales": "static"},
    }
    formats: dict[str, KeyFormat] = {}
    for name, fields in kinds.items():
        formats[f"mvquant {name}"] = KeyFormat.model_validate(fields)
        formats[f"mvquant {name}{BEFORE}"] = KeyFormat.model_validate({**fields, **before})
    formats["mvquant per token and width"] = KeyFormat(scales="token")
    return formats


def measure(bench: Bench, rounding: Rounding, bits: float, seeds: tuple[int, ...], window: int = 0) -> dict[str, Any]:
    """Judge one quantizer at these average bits."""
    runs = [rounding(bits, seed) for seed in seeds]
    losses = torch.stack([bench.losses(rounded, window) for rounded, _ in runs]).mean(0)
    return {
        "average_bits": bits,
        "bits_per_value": round(runs[0][1], 4),
        "kl": float(f"{losses.mean():.5g}"),
        "stderr": float(f"{losses.std() / math.sqrt(len(losses)):.3g}"),
        "kl_by_head": [float(f"{loss:.4g}") for loss in losses.tolist()],
    }


def within_bytes(bench: Bench, rounding: Rounding, budget: float, seeds: tuple[int, ...]) -> dict[str, Any] | None:
    """Judge one quantizer at the most average bits (in 64ths) that cost no more than the budget, if any do."""
    low, high = 64, int(budget * 64)  # counted in 64ths; at least one bit
    if rounding(low / 64, 0)[1] > budget:
        return None
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if rounding(middle / 64, 0)[1] <= budget else (low, middle - 1)
    return measure(bench, rounding, low / 64, seeds)


def run(path: Path) -> list[dict[str, Any]]:
    """Fill all tables."""
    bench, mirror = Bench(path), Bench(path, mirrored=True, sinks=1)
    rows = [*quantized_cache_rows(bench), *quantizer_rows(bench, ("bits", "bytes", "window"))]
    rows += quantizer_rows(mirror, ("bits", "bytes"), MIRRORED)
    rows += quantizer_rows(Bench(path, mirrored=True), ("bits",), SINK_ROUNDED)
    default = our_formats(bench)["mvquant per channel, chunks of 32, 8-bit scales"]
    for policy in get_args(KeyPolicy):
        for bits in (2.0, 2.25, 2.5):
            row = measure(bench, ours(bench, default, policy), bits, SEEDS if policy == "random" else SEEDS[:1])
            rows.append({"table": "policies", "method": policy, "kind": "mvquant", "budget": bits, **row})
    return rows


def quantizer_rows(bench: Bench, tables: tuple[str, ...], ending: str = "") -> Iterator[dict[str, Any]]:
    """Judge every quantizer at every budget; `ending` is added to the names of tables."""
    uniform, other = uniform_peers(bench), other_peers(bench)
    rules = {**uniform, **other, **{name: ours(bench, keys) for name, keys in our_formats(bench).items()}}
    kinds = {name: "uniform" if name in uniform else "other" if name in other else "mvquant" for name in rules}
    for name, rounding in rules.items():
        seeds = SEEDS if name in other else SEEDS[:1]
        for bits in BITS:
            judges = {
                "bits": lambda r=rounding, b=bits, s=seeds: measure(bench, r, b, s),
                "bytes": lambda r=rounding, b=bits, s=seeds: within_bytes(bench, r, b, s),
                "window": lambda r=rounding, b=bits, s=seeds: measure(bench, r, b, s, WINDOW),
            }
            for table in tables:
                if (row := judges[table]()) is not None:
                    yield {"table": table + ending, "method": name, "kind": kinds[name], "budget": bits, **row}


def quantized_cache_rows(bench: Bench) -> list[dict[str, Any]]:
    """Judge transformers' QuantizedCache where its backends are installed, at the bits that they have."""
    rows: list[dict[str, Any]] = []
    for backend in filter(installed, BACKEND_BITS):
        for bits in BACKEND_BITS[backend]:

            def rounding(_: float, __: int, backend: str = backend, bits: int = bits) -> tuple[Keys, float]:
                return quantized_cache(bench.judged_k, bits, backend)

            for table, window in (("bits", 0), ("window", WINDOW)):
                row = measure(bench, rounding, float(bits), SEEDS[:1], window)
                name = f"transformers QuantizedCache, {backend}"
                rows.append({"table": table, "method": name, "kind": "uniform", "budget": float(bits), **row})
    return rows


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def main() -> None:
    """Measure, save, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    rows = run(arguments.folder / STATES)
    results = {
        "date": datetime.now(UTC).date().isoformat(),
        "command": "python -m benchmarks.attention DIR",
        "states": {
            "file": STATES,
            "sha256": Bench(arguments.folder / STATES).hash,
            "heads": 32,
            "calibration_tokens": 33,
            "judged_tokens": 33,
            "sinks_in_full_precision_if_mirrored": 1,
        },
        "context_for_bytes": CONTEXT,
        "window": WINDOW,
        "not_installed": [backend for backend in BACKEND_BITS if not installed(backend)],
        "seeds": SEEDS,
        "versions": {
            **{name: _version(name) for name in PACKAGES},
            "python": platform.python_version(),
        },
        "aims": aims(rows),
        "rows": rows,
    }
    arguments.output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    for table in dict.fromkeys(row["table"] for row in rows):
        print(f"\n{table}\n\n{table_markdown(results, table)}")
    print(f"\naims\n\n{aims_markdown(results)}")


if __name__ == "__main__":
    main()
