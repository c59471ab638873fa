"""Speed of one mixed-row linear: plain w4 and protected rows, against bfloat16 and torchao.

    OMP_NUM_THREADS=1 python benchmarks/linear.py

Every variant is a stack of equal layers with different weights, called one after the other on the same states: together
they are larger than the cache, so that weights come from memory as they do when a model generates. The variants take
turns round by round, and ratios are taken within a round. With one thread the clock is that of the thread, which
stands still while other programs have the core. torchao's variants appear where torchao is installed.
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
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
from torch import Tensor, nn

from mvquant.quant import MixedRowLinear, quantize_weight
from mvquant.quant.packing import unpack
from mvquant.scheme import WeightScheme

RESULTS = Path(__file__).parent / "results" / "linear.json"
PACKAGES = ("mvquant", "torch", "torchao")
BASE, PROTECTED = WeightScheme(bits=4, group_size=128), WeightScheme(bits=8, group_size=128)
EVERY_ROW = 1.0
FRACTIONS = {"w4a16": 0.0, "mixed 6 %": 0.0625, "mixed 12.5 %": 0.125, "mixed 25 %": 0.25, "all rows 8 bits": EVERY_ROW}
SMALL = 16
REFERENCE, PLAIN = "bfloat16", "w4a16"


@dataclass
class Variant:
    """One way to store a layer: a stack of layers, and what one of them weighs in bytes."""

    layers: Sequence[Callable[[Tensor], Tensor]]
    stored_bytes: int
    layout_bytes: int = 0


def main() -> None:
    """Run the benchmark, print its table and write its file."""
    options = _options()
    torch.manual_seed(0)
    with torch.no_grad():
        weights = [torch.randn(options.size, options.size, dtype=torch.bfloat16) for _ in range(options.stack)]
        variants = {**_our_variants(weights), **_torchao_variants(weights)}
        times = {rows: _race(variants, rows, options) for rows in options.rows}
        ways = _ways_for_protected_rows(weights)
        ways_times = {rows: _race(ways, rows, options) for rows in options.rows if rows <= SMALL}
        report = _report(options, variants, times)
        report["milliseconds_of_a_quarter_of_the_rows_at_8_bits"] = {
            name: {str(rows): round(median(of_rows[name]), 3) for rows, of_rows in ways_times.items()} for name in ways
        }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    _print_table(report)


def _our_variants(weights: Sequence[Tensor]) -> dict[str, Variant]:
    dense = [_dense(weight) for weight in weights]
    variants = {REFERENCE: Variant(dense, weights[0].nbytes)}
    for name, fraction in FRACTIONS.items():
        layers = [_mixed(weight, fraction) for weight in weights]
        states = torch.randn(1, weights[0].shape[1], dtype=torch.bfloat16)
        for layer in layers:
            layer(states)  # makes the layout
        layout = layers[0]._layout
        layout_bytes = layout.nibbles.nbytes + layout.scale_and_zero.nbytes if layout else 0
        stored = sum(tensor.nbytes for tensor in layers[0].weight_state.values())
        variants[name] = Variant(layers, stored, layout_bytes)
    return variants


def _dense(weight: Tensor) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=False)
    return linear


def _mixed(weight: Tensor, fraction: float) -> MixedRowLinear:
    rows = torch.randperm(len(weight))[: int(fraction * len(weight))].tolist()
    state = quantize_weight(weight, BASE, PROTECTED, rows)
    return MixedRowLinear((weight.shape[0], weight.shape[1]), state, BASE, PROTECTED)


def _torchao_variants(weights: Sequence[Tensor]) -> dict[str, Variant]:
    """int8 as released; int4 on the CPU is a prototype of theirs, on the same torch kernel as ours."""
    try:
        from torchao.prototype.quantization.int4.inference_workflow import PrototypeInt4WeightOnlyConfig
        from torchao.quantization import Int8WeightOnlyConfig, quantize_
    except ImportError:
        return {}
    configs = {
        "torchao int8": Int8WeightOnlyConfig(set_inductor_config=False),
        "torchao int4 (prototype)": PrototypeInt4WeightOnlyConfig(group_size=128, set_inductor_config=False),
    }
    variants = {}
    for name, config in configs.items():
        layers = [nn.Sequential(_dense(weight)) for weight in weights]
        for layer in layers:
            quantize_(layer, config)
        parts = [getattr(layers[0][0].weight, part, None) for part in ("qdata", "scale", "scale_and_zero")]
        variants[name] = Variant(layers, sum(part.nbytes for part in parts if part is not None))
    return variants


def _ways_for_protected_rows(weights: Sequence[Tensor]) -> dict[str, Variant]:
    """Ways to multiply by a quarter of the rows at 8 bits in groups, which torch has no kernel for; see kernels.py."""
    quarters = [weight[: len(weight) // 4] for weight in weights]
    return {
        "as two rows of 4 bits": Variant([_mixed(quarter, EVERY_ROW) for quarter in quarters], 0),
        "int8 kernel, group by group": Variant([_by_groups(quarter) for quarter in quarters], 0),
        "kept as bfloat16": Variant([_dense(quarter) for quarter in quarters], 0),
    }


def _by_groups(weight: Tensor) -> Callable[[Tensor], Tensor]:
    state, size = quantize_weight(weight, PROTECTED), PROTECTED.group_size
    groups = unpack(state["weight_packed"], 8, weight.shape[1]).split(size, dim=1)
    pairs = [(group.contiguous(), state["weight_scale"][:, i].contiguous()) for i, group in enumerate(groups)]
    kernel = torch.ops.aten._weight_int8pack_mm.default

    def multiply(states: Tensor) -> Tensor:
        parts = states.split(size, dim=1)
        products = [kernel(part.contiguous(), *pair) for part, pair in zip(parts, pairs, strict=True)]
        return torch.stack(products).sum(dim=0)

    return multiply


def _race(variants: dict[str, Variant], rows: int, options: argparse.Namespace) -> dict[str, list[float]]:
    """Return milliseconds of one layer, for each variant and round."""
    states = torch.randn(rows, options.size, dtype=torch.bfloat16)
    times: dict[str, list[float]] = {name: [] for name in variants}
    gc.disable()
    for turn in range(-1, _rounds(rows, options.rounds)):  # the first one warms up
        for name, variant in variants.items():
            start = _clock()()
            for layer in variant.layers:
                layer(states)
            if turn >= 0:
                times[name].append(1000 * (_clock()() - start) / len(variant.layers))
    gc.enable()
    return times


def _rounds(rows: int, rounds: int) -> int:
    """Fewer rounds of long products: a hundred decoding steps, or a handful of prompts."""
    return max(3, min(rounds, rounds * 32 // rows))


def _clock() -> Callable[[], float]:
    return time.thread_time if torch.get_num_threads() == 1 else time.perf_counter


def _report(
    options: argparse.Namespace, variants: dict[str, Variant], times: dict[int, dict[str, list[float]]]
) -> dict[str, Any]:
    return {
        "benchmark": "linear",
        "command": " ".join(["python benchmarks/linear.py", *_shown_arguments()]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": _machine(),
        "versions": {name: _version(name) for name in PACKAGES},
        "threads": torch.get_num_threads(),
        "clock": _clock().__name__,
        "shape": [options.size, options.size],
        "base": BASE.name,
        "protected": PROTECTED.name,
        "layers_in_stack": options.stack,
        "bytes": {
            name: {"stored": variant.stored_bytes, "layout": variant.layout_bytes} for name, variant in variants.items()
        },
        "results": [_result(name, rows, of_rows) for rows, of_rows in times.items() for name in variants],
    }


def _result(name: str, rows: int, times: dict[str, list[float]]) -> dict[str, Any]:
    quartiles = quantiles(times[name], n=4)
    return {
        "variant": name,
        "rows": rows,
        "rounds": len(times[name]),
        "milliseconds": round(median(times[name]), 3),
        "quartiles": [round(quartiles[0], 3), round(quartiles[2], 3)],
        "speed_to_bfloat16": _speed(times[REFERENCE], times[name]),
        "speed_to_w4a16": _speed(times[PLAIN], times[name]),
    }


def _speed(reference: Sequence[float], times: Sequence[float]) -> float:
    """Median over the rounds of how many times faster than the reference."""
    return round(median(theirs / ours for theirs, ours in zip(reference, times, strict=True)), 3)


def _print_table(report: dict[str, Any]) -> None:
    print(f"{report['shape'][0]} x {report['shape'][1]}, {report['threads']} thread(s), ms (times bfloat16, w4a16)")
    rows = sorted({result["rows"] for result in report["results"]})
    print(f"{'':26}" + "".join(f"{count:>23} rows" for count in rows))
    for name, size in report["bytes"].items():
        cells = [
            f"{result['milliseconds']:10.2f} ({result['speed_to_bfloat16']:5.2f} x, {result['speed_to_w4a16']:5.2f} x)"
            for count in rows
            for result in report["results"]
            if (result["variant"], result["rows"]) == (name, count)
        ]
        print(f"{name:26}" + " ".join(cells) + f"   {size['stored'] / 2**20:.1f} + {size['layout'] / 2**20:.1f} MiB")


def _machine() -> dict[str, Any]:
    models = {
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        if line.startswith("model name")
    }
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


def _shown_arguments() -> list[str]:
    """The arguments as given, without the place of the output."""
    return [argument for argument in sys.argv[1:] if not argument.startswith("-o") and ".json" not in argument]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 4, 16, 256, 2048], help="rows of states")
    parser.add_argument("--size", type=int, default=4096, help="rows and columns of the weight")
    parser.add_argument("--stack", type=int, default=4, help="layers called in turn")
    parser.add_argument("--rounds", type=int, default=50, help="rounds for few rows; fewer for many")
    parser.add_argument("-o", "--output", type=Path, default=RESULTS)
    return parser.parse_args()


if __name__ == "__main__":
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchao's, about itself
        main()
