"""What the wrapped quantizers cost through mvquant, in time and memory, against calling each package directly.

    python -m benchmarks.backends --model reference
    python -m benchmarks.backends --model 1b --package llmcompressor-gptq

Both quantize the same model on the same 32 sequences of 512 tokens, each in a process of its own, imports and writing
included, taking turns. Aims: at most 1.1 of the package's time, at most 1.0 of its memory. Pairs that are not asked
for stay in the file as they were measured. See benchmarks/README.md.
"""

import argparse
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.measured_process import Run, machine, measured_run

# Linux counts the memory of the process that starts a child into the child's own maximum: nothing heavy is
# imported up here.

RESULTS = Path(__file__).parent / "results" / "backends.json"
SEQUENCES, LENGTH, SEED = 32, 512, 0
COMPARED = ("seconds", "cpu_seconds", "peak_mib", "peak_anonymous_mib")
WEIGHTS = {
    "llmcompressor-gptq": "{scheme: w4a16, method: gptq}",
    "llmcompressor-awq": "{scheme: w4a16, method: {name: awq, grid_points: GRID_POINTS}}",
    "llmcompressor-smoothquant": "{scheme: w8a8, method: smoothquant}",
    "gptqmodel-gptq": "{scheme: w4a16, method: {name: gptq, backend: gptqmodel, activation_order: false}}",
    "gptqmodel-awq": "{scheme: w4a16-asym, method: {name: awq, backend: gptqmodel}}",
    "auto-round": "{scheme: w4a16, method: {name: autoround, iterations: ITERATIONS}}",
}
"""Package and method, and what a recipe of mvquant says to get the same."""

SEARCHES = {
    "reference": {"GRID_POINTS": 20, "ITERATIONS": 200},
    "1b": {"GRID_POINTS": 3, "ITERATIONS": 2},
}
"""Models, and how long a package searches, on both sides: its defaults, or what two cores can do. The shorter the
search, the more weighs what mvquant adds."""

PREPARE = f"""
import sys, torch
from pathlib import Path
from safetensors.torch import save_file
from transformers import AutoTokenizer
from benchmarks.quantize import SIZES, make_model
from mvquant.calibration import calibration_batches
from mvquant.reference import reference_path, reference_texts
name, folder, tokens = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
tokenizer = AutoTokenizer.from_pretrained(reference_path())
if name == "reference":
    import shutil
    shutil.copytree(reference_path(), folder)
else:
    make_model(folder, SIZES[name], {SEED})
    tokenizer.save_pretrained(folder)
batches = calibration_batches(tokenizer, reference_texts(), {SEQUENCES}, {LENGTH}, {SEED})
save_file({{"tokens": torch.cat(batches)}}, tokens)
"""

VERSIONS = """
import importlib.metadata, json, platform
names = ("mvquant", "llmcompressor", "gptqmodel", "auto-round", "compressed-tensors", "torch", "transformers")
print(json.dumps({"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in names}}))
"""


@dataclass(frozen=True)
class Pair:
    """One package and method on one model, through mvquant and directly."""

    model: str
    package: str
    ours: list[Run]
    theirs: list[Run]

    def report(self) -> dict[str, Any]:
        """Return medians, runs and ratios; below 1, mvquant needs less."""
        medians = {
            side: {name: median(getattr(run, name) for run in runs) for name in COMPARED}
            for side, runs in (("mvquant", self.ours), ("package", self.theirs))
        }
        return {
            "model": self.model,
            "package": self.package,
            "weights": _weights(self.model, self.package),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "medians": medians,
            "ratios": {name: round(medians["mvquant"][name] / medians["package"][name], 3) for name in COMPARED},
            "runs": {"mvquant": [asdict(run) for run in self.ours], "package": [asdict(run) for run in self.theirs]},
        }


def main() -> None:
    """Race all pairs, saving after each."""
    options = _options()
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(options.threads)}
    environment["GPTQMODEL_CPU_WORKERS"] = str(options.threads)
    with tempfile.TemporaryDirectory(prefix="bench-backends-", dir=options.work) as work:
        for model in options.model or SEARCHES:
            folder, tokens = Path(work, model), Path(work, f"{model}.safetensors")
            prepare = [sys.executable, "-c", PREPARE, model, folder, tokens]
            subprocess.run(prepare, check=True, env=environment)
            for package in options.package or WEIGHTS:
                pair = _race(model, package, folder, tokens, options.repeats, environment).report()
                _save(options, pair)
                _print(pair)


def _race(model: str, package: str, folder: Path, tokens: Path, repeats: int, environment: Mapping[str, str]) -> Pair:
    recipe, out = folder.with_suffix(".yaml"), folder.with_name("out")
    calibration = f"{{source: reference, sequences: {SEQUENCES}, length: {LENGTH}, seed: {SEED}}}"
    weights = _weights(model, package)
    recipe.write_text(f"summary: benchmark\nweights: {weights}\ncalibration: {calibration}\n", encoding="utf-8")
    search = [f"--{name.lower().replace('_', '-')}={number}" for name, number in SEARCHES[model].items()]
    commands: dict[str, Sequence[str | Path]] = {
        "mvquant": ["-m", "mvquant", "quantize", folder, "--recipe", recipe, "-o", out],
        "package": ["-m", "benchmarks.packages", package, folder, tokens, out, *search],
    }
    runs: dict[str, list[Run]] = {side: [] for side in commands}
    for _ in range(repeats):
        for side, command in commands.items():
            runs[side].append(measured_run(f"{package} ({side})", [sys.executable, *command], out, environment))
            shutil.rmtree(out)
    return Pair(model, package, runs["mvquant"], runs["package"])


def _weights(model: str, package: str) -> str:
    """What the recipe says."""
    weights = WEIGHTS[package]
    for name, number in SEARCHES[model].items():
        weights = weights.replace(name, str(number))
    return weights


def _save(options: argparse.Namespace, pair: Mapping[str, Any]) -> None:
    """Put one pair into the file, in the place of an older measurement of the same."""
    asked = subprocess.run([sys.executable, "-c", VERSIONS], check=True, capture_output=True, text=True)
    how = {
        "command": f"python -m benchmarks.backends --model {pair['model']} --package {pair['package']}"
        + (f" --repeats {options.repeats}" if options.repeats > 1 else ""),
        "machine": machine(),
        "threads": options.threads,
        "versions": json.loads(asked.stdout),
    }
    pairs = json.loads(options.output.read_text(encoding="utf-8"))["pairs"] if options.output.exists() else []
    by_name = {(each["model"], each["package"]): each for each in [*pairs, {**pair, **how}]}
    report = {
        "benchmark": "backends",
        "calibration": {"source": "reference", "sequences": SEQUENCES, "length": LENGTH, "seed": SEED},
        "pairs": [by_name[key] for key in itertools.product(SEARCHES, WEIGHTS) if key in by_name],
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def _print(pair: Mapping[str, Any]) -> None:
    print(f"{pair['model']:<10} {pair['package']:<26}", end="")
    for name in ("seconds", "peak_mib"):
        ours, theirs = (pair["medians"][side][name] for side in ("mvquant", "package"))
        print(f" {name} {ours:8.1f} / {theirs:8.1f} = {pair['ratios'][name]:5.2f}", end="")
    print(flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", choices=SEARCHES, help="may be given twice; both by default")
    parser.add_argument("--package", action="append", choices=WEIGHTS, help="may be repeated; all by default")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--work", type=Path, help="where the model and its copies go (5 GB); default: TMPDIR")
    parser.add_argument("--output", "-o", type=Path, default=RESULTS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
