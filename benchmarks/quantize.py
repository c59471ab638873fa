"""Time and memory of quantizing a 1.1 B-parameter model without data: mvquant against llm-compressor.

    python -m benchmarks.quantize --llmcompressor-python /path/to/other/venv/bin/python

A random Llama-shaped model is saved as an ordinary folder. Each program then quantizes it in a process of its
own, imports and writing included, as a user would run it; the programs take turns. llm-compressor runs both of
its ways: `oneshot`, which loads the model, and `model_free_ptq`, which works on files. See benchmarks/README.md.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.measured_process import Run, machine, measured_run

# Linux counts the memory of the process that starts a child into the child's own maximum: nothing heavy is
# imported up here.

RESULTS = Path(__file__).parent / "results" / "quantize.json"
LLAMA_1B = {
    "num_hidden_layers": 22,
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "vocab_size": 32000,
}
SIZES = {"1b": LLAMA_1B, "tiny": {**LLAMA_1B, "num_hidden_layers": 2, "hidden_size": 256}}
RECIPE = """\
summary: 4-bit weights, groups of 128, symmetric; an eighth of the RoPE pairs of Q and K, slow pairs first, at 8 bits
weights: {scheme: w4a16}
protect: {policy: slow-pairs, pairs: 0.125, scheme: w8a16}
"""
OURS = "mvquant"
PACKAGES = ("python", "mvquant", "llmcompressor", "compressed-tensors", "torch", "transformers", "safetensors")
VERSIONS = """
import importlib.metadata, json, platform
found = {each.name: each.version for each in importlib.metadata.distributions()}
print(json.dumps({"python": platform.python_version(), **found}))
"""


@dataclass(frozen=True)
class Contender:
    """A program in the race: the command line that makes `out` of `model`."""

    name: str
    python: str
    command: Callable[[Path, Path], Sequence[str | Path]]


@dataclass
class Result:
    """All runs of one program."""

    versions: dict[str, str]
    command: str
    quantized_modules: int = 0
    runs: list[Run] = field(default_factory=list)

    def medians(self) -> dict[str, float]:
        """Median of every measure, by name."""
        return {name: median(getattr(run, name) for run in self.runs) for name in Run.__dataclass_fields__}


def main() -> None:
    """Make the model, let the programs take turns, save and print what they took."""
    options = _options()
    if options.make_model:
        make_model(options.make_model, SIZES[options.size], options.seed)
    elif options.oneshot:
        oneshot(*options.oneshot)
    elif options.model_free:
        model_free(*options.model_free)
    else:
        race(options)


def race(options: argparse.Namespace) -> None:
    """Run the whole benchmark."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(options.threads)}
    with tempfile.TemporaryDirectory(prefix="bench-quantize-", dir=options.work) as work:
        model, recipe, out = Path(work, "model"), Path(work, "recipe.yaml"), Path(work, "out")
        recipe.write_text(RECIPE, encoding="utf-8")
        make = ["-m", "benchmarks.quantize", "--make-model", model, "--size", options.size, "--seed", str(options.seed)]
        subprocess.run([sys.executable, *make], check=True, env=environment)
        contenders = _contenders(options.llmcompressor_python, recipe)
        results = {each.name: _prepared(each) for each in contenders}
        for repeat in range(options.repeats):
            for contender in contenders:
                command = [contender.python, *contender.command(model, out)]
                run = measured_run(contender.name, command, out, environment)
                result = results[contender.name]
                result.runs.append(run)
                result.quantized_modules = _count_packed(out)
                shutil.rmtree(out)
                print(f"{repeat + 1}  {contender.name:<26} {run.seconds:7.1f} s {run.peak_mib:8.0f} MiB", flush=True)
            report = _report(options, results, repeat + 1)
            options.output.parent.mkdir(parents=True, exist_ok=True)
            options.output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    _print_table(report)


def make_model(folder: Path, sizes: dict[str, int], seed: int) -> None:
    """Save a random bfloat16 Llama."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    torch.manual_seed(seed)
    config = LlamaConfig(**sizes, tie_word_embeddings=False, max_position_embeddings=2048)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)


def oneshot(model: Path, out: Path) -> None:
    """Quantize with llm-compressor, as its examples do for schemes that need no data."""
    from llmcompressor import oneshot as run_oneshot
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(model, dtype="auto")
    recipe = QuantizationModifier(scheme="W4A16", targets="Linear", ignore=["lm_head"])
    run_oneshot(model=loaded, recipe=recipe)
    loaded.save_pretrained(out, save_compressed=True)


def model_free(model: Path, out: Path) -> None:
    """Quantize with llm-compressor's other way, which needs no model, only files."""
    from llmcompressor import model_free_ptq

    model_free_ptq(model, out, scheme="W4A16", ignore=["lm_head", "re:.*embed_tokens"])


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llmcompressor-python", default=sys.executable, help="python that has llmcompressor")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", choices=SIZES, default="1b", help="`tiny` tries the script out in a minute")
    parser.add_argument("--work", type=Path, help="where the model and its copies go (4 GB); default: TMPDIR")
    parser.add_argument("--output", "-o", type=Path, default=RESULTS)
    parser.add_argument("--make-model", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--oneshot", type=Path, nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--model-free", type=Path, nargs=2, help=argparse.SUPPRESS)
    return parser.parse_args()


def _contenders(llmcompressor_python: str, recipe: Path) -> list[Contender]:
    def quantize(model: Path, out: Path) -> Sequence[str | Path]:
        return ["-m", "mvquant", "quantize", model, "--recipe", recipe, "-o", out]

    def this(flag: str) -> Callable[[Path, Path], Sequence[str | Path]]:
        return lambda model, out: ["-m", "benchmarks.quantize", flag, model, out]

    return [
        Contender(OURS, sys.executable, quantize),
        Contender("llm-compressor oneshot", llmcompressor_python, this("--oneshot")),
        Contender("llm-compressor model-free", llmcompressor_python, this("--model-free")),
    ]


def _prepared(contender: Contender) -> Result:
    """Ask for versions, which also warms up the file cache for the interpreter."""
    asked = subprocess.run([contender.python, "-c", VERSIONS], check=True, capture_output=True, text=True)
    command = ["python", *contender.command(Path("MODEL"), Path("OUT"))]
    versions = {name: version for name, version in json.loads(asked.stdout).items() if name in PACKAGES}
    return Result(versions, " ".join(part.name if isinstance(part, Path) else part for part in command))


def _count_packed(folder: Path) -> int:
    """Count the modules that were quantized, by the headers of the safetensors files."""
    names: list[str] = []
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            names += json.loads(stream.read(length))
    return sum(name.endswith(".weight_packed") for name in names)


def _report(options: argparse.Namespace, results: dict[str, Result], repeats: int) -> dict[str, Any]:
    counts = {result.quantized_modules for result in results.values()}
    if len(counts) > 1:
        sys.exit(f"not the same job: modules quantized were {counts}")
    medians = {name: result.medians() for name, result in results.items()}
    compared = [name for name in Run.__dataclass_fields__ if name != "other_cpu_seconds"]
    return {
        "benchmark": "quantize",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": "python -m benchmarks.quantize "
        + " ".join("PATH" if "/" in each else each for each in sys.argv[1:]),
        "machine": machine(),
        "threads": options.threads,
        "seed": options.seed,
        "repeats": repeats,
        "model": {"name": options.size, **SIZES[options.size], "dtype": "bfloat16"},
        "recipe": RECIPE,
        "programs": {name: {**asdict(result), "medians": medians[name]} for name, result in results.items()},
        "ratios": {
            f"{OURS} / {name}": {each: round(medians[OURS][each] / theirs[each], 3) for each in compared}
            for name, theirs in medians.items()
            if name != OURS
        },
    }


def _print_table(report: dict[str, Any]) -> None:
    columns = {"seconds": 1, "cpu_seconds": 1, "peak_mib": 0, "peak_anonymous_mib": 0, "disk_bytes": 0}
    print("\n" + " " * 36 + "".join(f"{name:>20}" for name in columns))
    for name, program in report["programs"].items():
        print(f"{name:<36}" + "".join(f"{program['medians'][each]:>20,.{columns[each]}f}" for each in columns))
    for name, ratios in report["ratios"].items():
        print(f"{name:<36}" + "".join(f"{ratios[each]:>20.3f}" for each in columns))


if __name__ == "__main__":
    main()
