"""Speed and bytes of a quantized cache while text is generated, against bfloat16 and transformers' QuantizedCache.

    OMP_NUM_THREADS=1 python benchmarks/kvcache.py

One decoder layer of Llama-3-8B's shape with random weights generates, token by token, with caches that were filled with
random keys and values. The caches take turns round by round, and ratios are taken within a round. With one thread the
clock is that of the thread, which stands still while other programs have the core. transformers' caches appear where
hqq and optimum-quanto are installed (the latter compiles for minutes when it is first used). They quantize everything
anew each time that 128 new tokens are full; what that takes is spread over those tokens.
"""

import argparse
import gc
import importlib.metadata
import json
import os
import platform
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.cache_utils import Cache, DynamicCache, QuantizedCache
from transformers.utils import is_hqq_available, is_optimum_quanto_available

from mvquant.cache_formats import KeyFormat, ValueFormat
from mvquant.cache_plan import CachePlan, HeadKeys, LayerKeys
from mvquant.kvcache.cache import QuantizedKVCache, quantized_kv_cache

RESULTS = Path(__file__).parent / "results" / "kvcache.json"
PACKAGES = ("mvquant", "torch", "transformers", "hqq", "optimum-quanto")
REFERENCE = "bfloat16"
HEAD_DIM, KV_HEADS = 128, 8
LOW_BITS = 2
PROTECTED = tuple(range(48, 64))
"""A quarter of the pairs, at twice the bits of the others; where they lie makes no difference to speed."""

FORMATS = {
    "channel pre-RoPE": KeyFormat(scales="channel", chunk=32, scale_bits=8, stage="pre-rope"),
    "channel": KeyFormat(scales="channel", chunk=32, scale_bits=8),
    "token": KeyFormat(scales="token"),
    "static pre-RoPE": KeyFormat(scales="static", stage="pre-rope"),
}


def main() -> None:
    """Run the benchmark, print its table and write its file."""
    options = _options()
    torch.manual_seed(0)
    model = _model(options)
    with torch.inference_mode():
        results = [result for context in options.contexts for result in _race(model, context, options)]
    report = _report(options, results)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    _print_table(report)


def _model(options: argparse.Namespace) -> LlamaForCausalLM:
    config = LlamaConfig(
        hidden_size=options.hidden_size,
        intermediate_size=options.hidden_size * 7 // 2,
        num_attention_heads=options.hidden_size // HEAD_DIM,
        num_key_value_heads=KV_HEADS,
        head_dim=HEAD_DIM,
        num_hidden_layers=1,
        vocab_size=256,
        max_position_embeddings=max(options.contexts) + 1024,
        rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
        dtype=torch.bfloat16,
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    model = model.to(torch.bfloat16).to_empty(device="cpu")
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    model.model.rotary_emb = type(model.model.rotary_emb)(config)
    return model.eval()


def _plan(keys: KeyFormat, bits: float, values: ValueFormat) -> CachePlan:
    """A plan whose K has 2 bits, or 2.5 with a quarter of the pairs at 4."""
    protected = PROTECTED if bits > LOW_BITS else ()
    head = tuple(2 * LOW_BITS if pair in protected else LOW_BITS for pair in range(HEAD_DIM // 2))
    tables = {"center": (0.0,) * HEAD_DIM, "spread": (1.0,) * HEAD_DIM} if keys.measured else {}
    heads = tuple(HeadKeys(bits=head, **tables) for _ in range(KV_HEADS))
    layers = (LayerKeys(layer=0, heads=heads),)
    return CachePlan(head_dim=HEAD_DIM, rotary_dim=HEAD_DIM, keys=keys, layers=layers, values=values)


def _caches(config: LlamaConfig) -> dict[str, Callable[[], Cache]]:
    def ours(keys: KeyFormat, bits: float, value_bits: int) -> Callable[[], Cache]:
        plan = _plan(keys, bits, ValueFormat.model_validate({"bits": value_bits, "group_size": 64}))
        return lambda: quantized_kv_cache(config, plan, dtype=torch.bfloat16)

    def theirs(backend: str, bits: int, axis: int) -> Callable[[], Cache]:
        return lambda: QuantizedCache(backend, config, nbits=bits, axis_key=axis, axis_value=axis)

    caches: dict[str, Callable[[], Cache]] = {REFERENCE: lambda: DynamicCache(config=config)}
    caches |= {f"mvquant K 2.5 {name}, V 4": ours(keys, 2.5, 4) for name, keys in FORMATS.items()}
    caches["mvquant K 2 static pre-RoPE, V 2"] = ours(FORMATS["static pre-RoPE"], 2.0, 2)
    if is_hqq_available():
        caches |= {f"transformers hqq, {bits} bits": theirs("hqq", bits, 1) for bits in (2, 4)}
    if is_optimum_quanto_available():
        caches |= {f"transformers quanto, {bits} bits": theirs("quanto", bits, 0) for bits in (2, 4)}
    return caches


def _race(model: LlamaForCausalLM, context: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Time one decoding step of every cache, round by round."""
    caches: dict[str, Cache] = {}
    filling: dict[str, float] = {}
    for name, make in _caches(model.config).items():
        caches[name] = make()
        filling[name] = _timed(lambda cache=caches[name]: _fill(cache, context))
    held = {name: _bytes_held(cache) for name, cache in caches.items()}
    steps: dict[str, list[float]] = {name: [] for name in caches}
    token = torch.zeros(1, 1, dtype=torch.long)
    gc.disable()
    for turn in range(-1, options.rounds):  # the first one warms up
        for name, cache in caches.items():
            seconds = _timed(lambda cache=cache: model(token, past_key_values=cache))
            if turn >= 0:
                steps[name].append(1000 * seconds)
    gc.enable()
    results: list[dict[str, Any]] = []
    for name, cache in caches.items():
        again = _seconds_of_packing_again(cache)
        spread = [step + 1000 * again[0] / again[1] for step in steps[name]] if again else steps[name]
        results.append(
            {
                "cache": name,
                "context": context,
                "milliseconds_per_token": round(median(steps[name]), 2),
                "milliseconds_per_token_with_packing": round(median(spread), 2),
                "tokens_per_second": round(1000 / median(spread), 2),
                "speed_to_bfloat16": _ratio(steps[REFERENCE], spread),
                "bytes_per_token": round(held[name] / context, 1),
                "bits_per_value": round(8 * held[name] / context / (2 * KV_HEADS * HEAD_DIM), 3),
                "bytes_to_bfloat16": round(held[name] / held[REFERENCE], 4),
                "fill_milliseconds_per_token": round(1000 * filling[name] / context, 4),
                **_phases(cache),
            }
        )
        print(json.dumps(results[-1]), file=sys.stderr)
    return results


def _fill(cache: Cache, context: int) -> None:
    """Give the cache a prompt's keys and values."""
    generator = torch.Generator().manual_seed(context)
    states = torch.randn(2, 1, KV_HEADS, context, HEAD_DIM, generator=generator, dtype=torch.bfloat16)
    cache.update(states[0], states[1], 0)


def _phases(cache: Cache) -> dict[str, float]:
    """Milliseconds of reading everything, and of adding a token (its share of packing a chunk included)."""
    if not isinstance(cache, QuantizedKVCache):
        return {}
    layer = cache.quantized_layers[0]
    tokens = 64
    states = torch.randn(tokens, 1, KV_HEADS, 1, HEAD_DIM, dtype=torch.bfloat16)
    starts = layer._row_starts(states[0])

    def add(token: Tensor) -> None:
        for held in (layer.keys_held, layer.values_held):
            held.append(token, starts)
            held.pack()

    adding = _timed(lambda: [add(token) for token in states])
    reading = median(_timed(lambda: (layer.keys_held.read(0), layer.values_held.read(0))) for _ in range(3))
    return {"read_milliseconds": round(1000 * reading, 2), "add_milliseconds": round(1000 * adding / tokens, 3)}


def _seconds_of_packing_again(cache: Cache) -> tuple[float, int] | None:
    """Seconds that transformers' cache takes to pack everything anew, and how many tokens lie between two times."""
    if not isinstance(cache, QuantizedCache):
        return None
    layer = cache.layers[0]
    token = torch.randn(1, KV_HEADS, 1, HEAD_DIM, dtype=torch.bfloat16)
    plain = _timed(lambda: layer.update(token, token))
    missing = layer.residual_length - 1 - layer.keys.shape[-2]
    some = token.expand(-1, -1, missing, -1)
    layer.keys, layer.values = (torch.cat([kept, some], dim=-2) for kept in (layer.keys, layer.values))
    return max(_timed(lambda: layer.update(token, token)) - plain, 0.0), layer.residual_length


def _bytes_held(cache: Cache) -> int:
    if isinstance(cache, QuantizedKVCache):
        return cache.nbytes().total
    layer = cache.layers[0]
    kept = [layer.keys, layer.values]
    if isinstance(cache, QuantizedCache):
        kept += [*_tensors(layer._quantized_keys), *_tensors(layer._quantized_values)]
    return sum(tensor.nbytes for tensor in kept)


def _tensors(packed: Any) -> list[Tensor]:  # noqa: ANN401
    """The tensors that hqq and quanto keep of one K or V."""
    if isinstance(packed, tuple):
        return [packed[0], *(value for value in packed[1].values() if isinstance(value, Tensor))]
    return [packed._data._data, packed._scale, packed._shift]


def _timed(work: Callable[[], object]) -> float:
    clock = _clock()
    start = clock()
    work()
    return clock() - start


def _clock() -> Callable[[], float]:
    return time.thread_time if torch.get_num_threads() == 1 else time.perf_counter


def _ratio(reference: Sequence[float], times: Sequence[float]) -> float:
    """Median over the rounds of how many times faster than the reference."""
    return round(median(theirs / ours for theirs, ours in zip(reference, times, strict=True)), 3)


def _report(options: argparse.Namespace, results: list[dict[str, Any]]) -> dict[str, Any]:
    shown = [argument for argument in sys.argv[1:] if not argument.startswith("-o") and ".json" not in argument]
    return {
        "benchmark": "kvcache",
        "command": " ".join(["python benchmarks/kvcache.py", *shown]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": _machine(),
        "versions": {name: _version(name) for name in PACKAGES},
        "threads": torch.get_num_threads(),
        "clock": _clock().__name__,
        "seeds": {"weights": 0, "keys and values": "the context"},
        "layers": 1,
        "hidden_size": options.hidden_size,
        "heads": options.hidden_size // HEAD_DIM,
        "batch": 1,
        "dtype": "bfloat16",
        "kv_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "rounds": options.rounds,
        "results": results,
    }


def _print_table(report: dict[str, Any]) -> None:
    print(f"{'cache':34} {'context':>8} {'tokens/s':>10} {'speed':>7} {'bytes/token':>12} {'bytes':>7}")
    for result in report["results"]:
        print(
            f"{result['cache']:34} {result['context']:8} {result['tokens_per_second']:10.1f} "
            f"{result['speed_to_bfloat16']:7.2f} {result['bytes_per_token']:12.1f} {result['bytes_to_bfloat16']:7.3f}"
        )


def _machine() -> dict[str, Any]:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    models = {line.partition(":")[2].strip() for line in lines if line.startswith("model name")}
    return {
        "cpu": ", ".join(sorted(models)),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "load_average": round(os.getloadavg()[0], 1),
        "system": platform.platform(),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--contexts", type=int, nargs="+", default=[512, 4096, 32768], help="tokens that are cached")
    parser.add_argument("--hidden-size", type=int, default=4096, help="of the layer; heads have 128 dims")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("-o", "--output", type=Path, default=RESULTS)
    return parser.parse_args()


if __name__ == "__main__":
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the peers', about themselves
        main()
