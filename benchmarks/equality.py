"""Whether what mvquant makes of a package's work is what the package itself reloads, on the reference model.

    python -m benchmarks.equality

Packages that take a whole model folder (GPTQModel, AutoAWQ, AutoRound): mvquant has the package quantize and save, and
reads what it saved into its own modules. The package's own loader reads the same folder in a process of its own. Both
get the same tokens, and their logits have to be equal bit for bit: if any is not, the exit status is 1.

llm-compressor: mvquant runs its algorithms layer by layer, so that two runs are compared: mvquant's, and `oneshot`
called directly, unpatched. What the second saves is reloaded through transformers and compressed-tensors, and put into
mvquant's modules too. The runs need not be equal, for these reasons:

- In bfloat16 AWQ and SmoothQuant of the package round weights twice: a quotient of weight and scale has the weight's
  dtype, so that it is rounded to bfloat16 first, and then to an integer. mvquant's quotients are float32
  (`mvquant.quant.grid`), which loses less. Where a value lies near the middle of two integers they differ, by one step.
- The package adds up Hessians and activations in float32, mvquant in float64, so that the last bits differ.
- The package computes attention by `eager` while it calibrates, mvquant by what the model itself would use (`sdpa`).
- In AWQ and SmoothQuant the package calibrates later layers on what a layer gives with its scales moved into the
  weights, mvquant on what it gave before: the same but for rounding.

What differs in the last bits does not stay there: in GPTQ an integer that flips moves its error into the columns after
it, and all layers after it are calibrated on other inputs; in AWQ the best of several scales can be another one.

So every run is done once more (`alike`) without the second and third reason: the package's sums begin as float64, and
mvquant computes attention by `eager`. The fourth is none in the first decoder layer, which is shown apart. Without all
four, tests find equality on tiny models (`tests/backends/llmcompressor`), and `tests/backends/test_nearest.py` finds
the package's integers when it rounds mvquant's scaled bfloat16 weights as it does. See benchmarks/README.md.
"""

import argparse
import importlib.metadata
import itertools
import json
import math
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from benchmarks.equality_counts import CompressedFolder, compared
from benchmarks.equality_processes import logits_of
from benchmarks.measured_process import machine
from mvquant.backends.folder.programs import child_environment
from mvquant.backends.folder.run import run_folder_backend
from mvquant.calibrated import calibrated_weights, record_of
from mvquant.calibration import calibration_batches
from mvquant.evaluation.divergence import kl_by_token
from mvquant.methods import WeightResults, apply_plan
from mvquant.plan import Plan
from mvquant.policies import make_plan
from mvquant.quant import MixedRowLinear
from mvquant.quantizing import OpenModel, open_model
from mvquant.recipe import parse_recipe
from mvquant.reference import reference_path, reference_texts

RESULTS = Path(__file__).parent / "results" / "equality.json"
SEQUENCES, LENGTH, SEED = 8, 256, 0
"""Calibration."""
ASKED_SEQUENCES, ASKED_SEED = 4, 1
"""Tokens whose logits are compared, from texts of another seed."""
ITERATIONS, GRID_POINTS = 20, 6
"""Of AutoRound and of llm-compressor's AWQ: fewer than by default, on both sides."""
PACKAGES = (
    "mvquant",
    "llmcompressor",
    "compressed-tensors",
    "gptqmodel",
    "optimum",
    "autoawq",
    "auto-round",
    "torch",
    "transformers",
)

_GPTQ = "{name: gptq, backend: gptqmodel}"
_AWQ = "{name: awq, backend: gptqmodel}"
_AUTOROUND = f"{{name: autoround, iterations: {ITERATIONS}}}"

FOLDER_CASES: dict[str, tuple[str, tuple[str, ...]]] = {
    "gptqmodel-gptq-4": (f"{{scheme: w4a16, method: {_GPTQ}}}", ("gptqmodel", "optimum")),
    "gptqmodel-gptq-3": (f"{{scheme: w3a16, method: {_GPTQ}}}", ("gptqmodel",)),
    "gptqmodel-awq-4": (f"{{scheme: w4a16-asym, method: {_AWQ}}}", ("gptqmodel",)),
    "gptqmodel-awq-3": (f"{{scheme: w3a16-asym, method: {_AWQ}}}", ("gptqmodel",)),
    "auto-round-4": (f"{{scheme: w4a16, method: {_AUTOROUND}}}", ("transformers",)),
    "auto-round-3": (f"{{scheme: w3a16, method: {_AUTOROUND}}}", ("transformers",)),
    "autoawq-4": ("{scheme: w4a16-asym, method: {name: awq, backend: autoawq}}", ("gptqmodel",)),
}
"""What a recipe says, and who reloads. AutoAWQ knows 4 bits alone, and its own loader needs a GPU or IPEX."""

COMPRESSOR_CASES: dict[str, str] = {
    "llmcompressor-gptq": "{scheme: w4a16, method: gptq}",
    "llmcompressor-awq": f"{{scheme: w4a16, method: {{name: awq, grid_points: {GRID_POINTS}}}}}",
    "llmcompressor-smoothquant": "{scheme: w8a8, method: smoothquant}",
}
"""By the name that `benchmarks.packages` has for the direct call."""

DTYPES = ("bfloat16", "float32")
"""The reference model's own, and one in which nothing is rounded twice."""
RUNS = ("own", "alike")
"""As a user runs them, or with sums and attention alike."""


def main() -> None:
    """Compare every case, print the tables and write the file; the exit status says whether folders are equal."""
    options = _options()
    transformers_logging.disable_progress_bar()
    torch.set_num_threads(options.threads)
    chosen = options.case or [*FOLDER_CASES, *COMPRESSOR_CASES]
    with tempfile.TemporaryDirectory(prefix="bench-equality-", dir=options.work) as work:
        bench = prepare(Path(work))
        print(f"{'saved by a package':<20} {'reloaded by':<14} {'largest':>9} {'equal':>6} {'KL':>9}", flush=True)
        folders = [row for case in chosen if case in FOLDER_CASES for row in compare_folder(bench, case)]
        print(f"\n{'llm-compressor':<22} {'int =':>7} {'step':>4} {'scale =':>7}", end="")
        print(f" {'layer 0':>7} {'KL apart':>8} {'mvquant':>8} {'package':>8}", flush=True)
        wanted = [case for case in chosen if case in COMPRESSOR_CASES]
        pairs = [compare_runs(bench, *each) for each in itertools.product(wanted, options.dtype, RUNS)]
        alike = sum(row["package_integers_in_mvquant_modules"]["equal"] for row in pairs)
        print(f"Package's integers in mvquant's modules: its reload's logits in {alike} of {len(pairs)} runs")
        report = _report(options, bench, folders, pairs)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    if unequal := [f"{row['case']} ({row['reloaded_by']})" for row in folders if not row["equal"]]:
        sys.exit(f"not equal bit for bit to the package's own reload: {', '.join(unequal)}")


@dataclass(frozen=True)
class Bench:
    """What all cases share.

    Attributes:
        work: folder for models and what becomes of them.
        batches: calibration sequences, `[1, length]`.
        asked: tokens whose logits are compared, `[sequences, length]`.
    """

    work: Path
    batches: list[Tensor]
    asked: Tensor

    @property
    def calibration_file(self) -> Path:
        """Calibration tokens for `benchmarks.packages`."""
        return self.work / "calibration.safetensors"

    @property
    def asked_file(self) -> Path:
        """Tokens for reloading processes."""
        return self.work / "asked.safetensors"

    def model(self, dtype: str) -> Path:
        """Return the folder of the reference model in a dtype."""
        return self.work / dtype


def prepare(work: Path) -> Bench:
    """Write the model and the tokens."""
    tokenizer = AutoTokenizer.from_pretrained(reference_path())
    batches = calibration_batches(tokenizer, reference_texts(), SEQUENCES, LENGTH, SEED)
    texts = reference_texts(seed=ASKED_SEED)
    asked = torch.cat(calibration_batches(tokenizer, texts, ASKED_SEQUENCES, LENGTH, ASKED_SEED))
    bench = Bench(work, batches, asked)
    save_file({"tokens": torch.cat(batches)}, bench.calibration_file)
    save_file({"tokens": asked}, bench.asked_file)
    for dtype in DTYPES:
        model = AutoModelForCausalLM.from_pretrained(reference_path(), dtype=getattr(torch, dtype))
        model.save_pretrained(bench.model(dtype))
        tokenizer.save_pretrained(bench.model(dtype))
    return bench


def compare_folder(bench: Bench, case: str) -> Iterator[dict[str, Any]]:
    """Have a package quantize through mvquant, reload its folder as every loader does, and yield how they compare."""
    weights, loaders = FOLDER_CASES[case]
    opened = open_model(str(bench.model("bfloat16")))
    place = bench.work / case
    plan = _plan(bench, opened, weights)
    results = run_folder_backend(opened.checkpoint, opened.view, plan, bench.batches, place)
    ours = logits_of(_quantized(opened, plan, results), bench.asked)
    loss = _kl(_full_precision(bench, "bfloat16"), ours)
    for how in loaders:
        theirs = _reloaded(bench, how, place / "quantized")
        row = {
            "case": case,
            "weights": weights,
            "modules": len(plan.modules),
            "reloaded_by": how,
            **_difference(ours, theirs),
            "kl_from_full_precision": loss,
        }
        print(
            f"{case:<20} {how:<14} {row['largest_difference']:9.3g} {'yes' if row['equal'] else 'NO':>6} {loss:9.2e}",
            flush=True,
        )
        yield row
    shutil.rmtree(place)


def compare_runs(bench: Bench, case: str, dtype: str, run: str) -> dict[str, Any]:
    """Run llm-compressor through mvquant and directly, and say how the two compare."""
    weights, out = COMPRESSOR_CASES[case], bench.work / f"{case}-{dtype}"
    opened = open_model(str(bench.model(dtype)))
    plan = _plan(bench, opened, weights)
    if run == "alike":
        # its public switch takes whole models
        opened.checkpoint.config._attn_implementation = "eager"  # pyright: ignore[reportPrivateUsage]
    _call_package(bench, case, dtype, run, out)
    theirs = CompressedFolder(out, plan)
    full, reloaded = _full_precision(bench, dtype), _reloaded(bench, "transformers", out)
    with calibrated_weights(opened.checkpoint, opened.view, plan, bench.batches, bench.work / "ours") as made:
        counted = compared(plan, made.results, theirs)
        ours = logits_of(_quantized(opened, plan, made.results), bench.asked)
    same = _difference(logits_of(_quantized(opened, plan, theirs), bench.asked), reloaded)
    shutil.rmtree(out)
    row = {
        "case": case,
        "weights": weights,
        "dtype": dtype,
        "run": run,
        "modules": len(plan.modules),
        **counted,
        "kl_between": _kl(reloaded, ours),
        "kl_mvquant_from_full_precision": _kl(full, ours),
        "kl_package_from_full_precision": _kl(full, reloaded),
        "package_integers_in_mvquant_modules": same,
    }
    _print_runs(row)
    return row


def _print_runs(row: Mapping[str, Any]) -> None:
    method, dtype = row["case"].removeprefix("llmcompressor-"), {"bfloat16": "bf16", "float32": "fp32"}[row["dtype"]]
    print(f"{method:<11} {dtype} {row['run']:<5} {_percent(row, 'integers'):>7} {row['largest_step']:>4}", end="")
    print(f" {_percent(row, 'scales'):>7} {_percent(row['by_layer'][0], 'integers'):>7}", end="")
    for kind in ("kl_between", "kl_mvquant_from_full_precision", "kl_package_from_full_precision"):
        print(f" {row[kind]:8.2e}", end="")
    print(flush=True)


def _call_package(bench: Bench, case: str, dtype: str, run: str, out: Path) -> None:
    """Call llm-compressor in a process of its own."""
    files = [bench.model(dtype), bench.calibration_file, out]
    if run == "alike":
        _run(bench, ["benchmarks.equality_processes", case, *files, str(GRID_POINTS)])
    else:
        _run(bench, ["benchmarks.packages", case, *files, f"--grid-points={GRID_POINTS}"])


def _plan(bench: Bench, opened: OpenModel, weights: str) -> Plan:
    recipe = parse_recipe(f"summary: equality\nweights: {weights}\nprotect: {{policy: none}}", "benchmarks.equality")
    record = record_of(bench.batches, "reference", SEED)
    return make_plan(opened.view, recipe, model="reference", dtype=opened.checkpoint.dtype, calibration=record)


def _quantized(opened: OpenModel, plan: Plan, results: WeightResults) -> nn.Module:
    """The model in mvquant's modules, which multiply as the format is defined: kernels for integers round elsewhere."""
    model = apply_plan(AutoModelForCausalLM.from_pretrained(opened.checkpoint.folder), plan, results)
    for module in model.modules():
        if isinstance(module, MixedRowLinear):
            module.path = "definition"
    return model


def _full_precision(bench: Bench, dtype: str) -> Tensor:
    return logits_of(AutoModelForCausalLM.from_pretrained(bench.model(dtype)), bench.asked)


def _difference(ours: Tensor, theirs: Tensor) -> dict[str, Any]:
    return {
        "largest_difference": float((ours.double() - theirs.double()).abs().max()),
        "equal": ours.dtype == theirs.dtype and torch.equal(ours, theirs),
    }


def _kl(reference: Tensor, logits: Tensor) -> float:
    """Mean over tokens, in nats."""
    return float(kl_by_token(reference.flatten(0, 1), logits.flatten(0, 1)).mean())


def _reloaded(bench: Bench, how: str, folder: Path) -> Tensor:
    """Logits of what a process of its own loads."""
    out = bench.work / "reloaded.safetensors"
    _run(bench, ["benchmarks.equality_processes", how, folder, bench.asked_file, out])
    return load_file(out)["logits"]


def _run(bench: Bench, module_and_arguments: Sequence[str | Path]) -> None:
    """Run a module in the work folder, as some packages write logs where they are started; exit with what it said."""
    environment = {
        **os.environ,
        **child_environment(torch.get_num_threads()),
        "PYTHONPATH": str(Path(__file__).parent.parent),
        "GPTQMODEL_CPU_WORKERS": "2",  # it asks for more workers than a small machine has
        "TORCHDYNAMO_DISABLE": "1",  # what is compiled rounds elsewhere
    }
    command = [sys.executable, "-m", *module_and_arguments]
    done = subprocess.run(command, env=environment, cwd=bench.work, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, module_and_arguments[:3]))} failed:\n{done.stdout[-1000:]}{done.stderr[-3000:]}")


def _percent(row: Mapping[str, Any], kind: str) -> str:
    """Say a share so that only all of them are 100 %."""
    share = row[f"share_of_equal_{kind}"]
    return "100%" if share == 1 else f"{math.floor(share * 10000) / 100:.2f}%"


def _report(
    options: argparse.Namespace, bench: Bench, folders: list[dict[str, Any]], pairs: list[dict[str, Any]]
) -> dict[str, Any]:
    cases = "".join(f" --case {case}" for case in options.case or [])
    dtypes = "".join(f" --dtype {dtype}" for dtype in options.dtype) if options.dtype != list(DTYPES) else ""
    calibration = record_of(bench.batches, "reference", SEED).model_dump()
    asked = record_of(bench.asked.split(1), "reference", ASKED_SEED).model_dump()
    return {
        "benchmark": "equality",
        "command": f"python -m benchmarks.equality{cases}{dtypes} --threads {options.threads}",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in PACKAGES},
        "model": "reference",
        "calibration": calibration,
        "compared_on": asked,
        "iterations": ITERATIONS,
        "grid_points": GRID_POINTS,
        "folder_packages": folders,
        "llmcompressor": pairs,
    }


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cases = [*FOLDER_CASES, *COMPRESSOR_CASES]
    parser.add_argument("--case", action="append", choices=cases, help="may be repeated; the file then holds no other")
    parser.add_argument("--dtype", action="append", choices=DTYPES, help="of llm-compressor's cases; both by default")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--work", type=Path, help="where the models go (100 MB); default: TMPDIR")
    parser.add_argument("--output", "-o", type=Path, default=RESULTS)
    options = parser.parse_args()
    options.dtype = options.dtype or list(DTYPES)
    return options


if __name__ == "__main__":
    main()
