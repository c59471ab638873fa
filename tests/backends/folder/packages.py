"""Runs of the real packages on one tiny model, each done once however many workers ask for it."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from mvquant.backends.folder.programs import child_environment
from mvquant.backends.folder.results import FolderResults
from mvquant.backends.folder.run import FOLDER_BACKENDS, LOG, read_results, require_backend_fit, run_jobs, write_job
from mvquant.methods import apply_plan
from mvquant.pipeline import OpenModel, open_model
from mvquant.plan import CalibrationRecord, Plan
from mvquant.policies import make_plan
from mvquant.quant import MixedRowLinear, round_to_nearest
from mvquant.recipe import parse_recipe
from tests.tiny_models import tiny_model, tiny_tokens

WIDE = {"hidden_size": 128, "intermediate_size": 256, "head_dim": 32}
SEQUENCES, LENGTH = 4, 64
RELOAD = Path(__file__).parent / "reload_packages.py"


def calibration_tokens() -> list[Tensor]:
    return [tiny_tokens(1, LENGTH, seed=number) for number in range(SEQUENCES)]


def save_model(folder: Path, dtype: torch.dtype = torch.bfloat16, **changes: object) -> OpenModel:
    if not folder.exists():
        tiny_model("llama", dtype=dtype, **{**WIDE, **changes}).save_pretrained(folder)
    return open_model(str(folder))


def plan_of(opened: OpenModel, weights: str, protect: str = "{policy: none}") -> Plan:
    recipe = parse_recipe(f"summary: a test\nweights: {{{weights}}}\nprotect: {protect}", "a test")
    return make_plan(
        opened.view,
        recipe,
        model="tiny",
        dtype=opened.checkpoint.dtype,
        calibration=CalibrationRecord(source="random", sequences=SEQUENCES, length=LENGTH, seed=7, hash="0" * 64),
    )


@dataclass(frozen=True)
class Runs:
    """One model, and what a package made of it by different plans."""

    opened: OpenModel
    plans: dict[str, Plan]
    folder: Path

    def results(self, case: str) -> FolderResults:
        return read_results(self.opened.checkpoint, self.opened.view, self.plans[case], self.folder / case)

    def saved(self, case: str) -> Path:
        return self.folder / case / "quantized"

    def model(self, case: str) -> torch.nn.Module:
        model = AutoModelForCausalLM.from_pretrained(self.opened.checkpoint.folder)
        return apply_plan(model, self.plans[case], self.results(case))

    def logits(self, case: str) -> Tensor:
        """Logits by the definition: kernels for integers round elsewhere, and are tested against it."""
        model = self.model(case)
        for module in model.modules():
            if isinstance(module, MixedRowLinear):
                module.path = "definition"
        with torch.no_grad():
            return model(tiny_tokens()).logits

    def reloaded(self, case: str, how: str) -> Tensor:
        """Logits of the package's own reload."""
        return load_file(self.folder / "reloaded.safetensors")[f"{case} {how}"]


def run_package(
    factory: pytest.TempPathFactory, cases: dict[str, tuple[str, str]], reloads: dict[str, tuple[str, ...]]
) -> Runs:
    """Have one child process do all cases (weights, protect), and one load what it saved."""
    backend = FOLDER_BACKENDS[_backend_of(cases)]
    base = factory.getbasetemp()
    folder = (base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base) / f"package-{backend.name}"
    with FileLock(f"{folder}.lock"):
        opened = save_model(folder / "model")
        plans = {case: plan_of(opened, *recipe) for case, recipe in cases.items()}
        if not (folder / "done").exists():
            _run(folder, opened, plans)
            reload_all(folder, {case: (folder / case / "quantized", hows) for case, hows in reloads.items()})
            (folder / "done").touch()
    return Runs(opened, plans, folder)


def _backend_of(cases: dict[str, tuple[str, str]]) -> str:
    weights = next(iter(cases.values()))[0]
    return parse_recipe(f"summary: a test\nweights: {{{weights}}}", "a test").method.backend


def _run(folder: Path, opened: OpenModel, plans: dict[str, Plan]) -> None:
    backend = FOLDER_BACKENDS[next(iter(plans.values())).recipe.method.backend]
    for case, plan in plans.items():
        require_backend_fit(plan, opened.view)
        (folder / case).mkdir()
        write_job(backend, opened.checkpoint, opened.view, plan, calibration_tokens(), folder / case)
    run_jobs(backend, [folder / case / "job.json" for case in plans], folder / LOG)


def reload_all(folder: Path, wanted: dict[str, tuple[Path, tuple[str, ...]]]) -> None:
    """Have another process load folders as each package does, and save the logits that they give."""
    save_file({"tokens": tiny_tokens()}, folder / "asked.safetensors")
    spec = [[case, how, str(saved)] for case, (saved, hows) in wanted.items() for how in hows]
    (folder / "reload.json").write_text(json.dumps(spec), encoding="utf-8")
    environment = {**os.environ, **child_environment(1), "GPTQMODEL_CPU_WORKERS": "2", "TORCHDYNAMO_DISABLE": "1"}
    done = subprocess.run(
        [sys.executable, RELOAD, folder], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]


def bases_equal(one: FolderResults, other: FolderResults, names: list[str]) -> bool:
    def same(name: str) -> bool:
        a, b = one.module(name).base, other.module(name).base
        zeros = a.grid.zero_point is None or torch.equal(a.grid.zero_point, b.grid.zero_point)
        return torch.equal(a.integers, b.integers) and torch.equal(a.grid.scale, b.grid.scale) and zeros

    return all(same(name) for name in names)


def assert_whole_modules_are_rounded_here(runs: Runs, case: str, without: str) -> None:
    """Modules protected whole are 8 bits of the weights as AWQ scaled them; all others as without protection."""
    plan, results, plain = runs.plans[case], runs.results(case), runs.results(without)
    whole = [module for module in plan.modules if module.scheme.bits == 8]
    assert {module.name.rpartition(".")[2] for module in whole} == {"q_proj", "k_proj"}
    scaled = load_file(runs.folder / case / "seen.safetensors")
    notes = {record.module: record.note for record in results.records}
    for module in whole:
        expected = round_to_nearest(scaled[module.name], module.scheme)
        made = results.module(module.name)
        assert torch.equal(made.base.integers, expected.integers)
        assert torch.equal(made.base.grid.scale, expected.grid.scale)
        assert made.kept is None
        own = runs.opened.checkpoint.read([f"{module.name}.weight"])[f"{module.name}.weight"]
        assert not torch.equal(own, scaled[module.name])
        assert "rounded to nearest in w8a16" in notes[module.name]
    others = [module.name for module in plan.modules if module.scheme.bits == 4]
    assert bases_equal(results, plain, others)
