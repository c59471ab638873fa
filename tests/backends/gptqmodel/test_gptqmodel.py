import re
import shutil
import sys
from dataclasses import replace
from functools import partial

import pytest
import torch
from transformers import AutoModelForCausalLM

from mvquant.backends.folder.job import Job
from mvquant.backends.folder.run import DONE, FOLDER_BACKENDS, run_folder_backend
from mvquant.backends.gptqmodel.quantize import _records
from mvquant.errors import BackendError
from mvquant.method_settings import Gptq, Rtn
from mvquant.methods import apply_plan
from mvquant.quant import round_to_nearest
from mvquant.scheme import WeightScheme
from tests.backends.folder.packages import (
    Runs,
    assert_whole_modules_are_rounded_here,
    bases_equal,
    calibration_tokens,
    run_package,
)
from tests.tiny_models import tiny_tokens

GPTQ = "method: {name: gptq, backend: gptqmodel}"
AWQ = "method: {name: awq, backend: gptqmodel}"
NONE = "{policy: none}"
SOME = "{policy: slow-pairs, pairs: 0.25}"
WHOLE = "{policy: whole-module}"

CASES = {
    "gptq": (f"scheme: w4a16-g64, {GPTQ}", NONE),
    "gptq protected": (f"scheme: w4a16-g64, {GPTQ}", SOME),
    "gptq 3 bits": (f"scheme: w3a16-g32-asym, {GPTQ}", NONE),
    "gptq in order": (
        "scheme: w8a16-row-asym, method: {name: gptq, backend: gptqmodel, activation_order: false}",
        NONE,
    ),
    "gptq mixed": (f"scheme: w2a16-g64, {GPTQ}, ignore: ['*.0.mlp.down_proj']", WHOLE),
    "awq": (f"scheme: w4a16-g64-asym, {AWQ}", NONE),
    "awq protected": (f"scheme: w4a16-g64-asym, {AWQ}", SOME),
    "awq whole": (f"scheme: w4a16-g64-asym, {AWQ}", WHOLE),
    "awq 3 bits": (f"scheme: w3a16-g32, {AWQ}, ignore: ['*.1.self_attn.o_proj']", NONE),
}
RELOADS = {case: ("gptqmodel",) for case in CASES if "protected" not in case and case != "awq whole"}
RELOADS["gptq"] = ("gptqmodel", "transformers", "transformers, torch kernel")


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Runs:
    return run_package(tmp_path_factory, CASES, RELOADS)


@pytest.mark.parametrize("case", RELOADS)
def test_logits_are_those_of_the_package(runs, case):
    assert torch.equal(runs.logits(case), runs.reloaded(case, "gptqmodel"))


def test_logits_are_those_of_transformers(runs):
    ours = runs.logits("gptq")
    assert torch.equal(ours, runs.reloaded("gptq", "transformers, torch kernel"))
    theirs = runs.reloaded("gptq", "transformers")  # its default kernel multiplies in another way
    assert (ours - theirs).float().norm() < 0.02 * ours.float().norm()


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_protecting_rows_leaves_the_others_as_they_are(runs, method):
    plain, protected = runs.results(method), runs.results(f"{method} protected")
    names = [module.name for module in runs.plans[method].modules]
    assert bases_equal(plain, protected, names)
    assert plain.changed == protected.changed
    assert all(torch.equal(plain.parameter(name), protected.parameter(name)) for name in plain.changed)


def test_protected_rows_of_gptq_are_the_models_own(runs):
    plan = runs.plans["gptq protected"]
    module = next(each for each in plan.modules if each.protected_rows)
    kept = runs.results("gptq protected").module(module.name).kept
    own = runs.opened.checkpoint.read([f"{module.name}.weight"])[f"{module.name}.weight"]
    expected = round_to_nearest(own, module.protected_scheme)
    assert torch.equal(kept.integers, expected.integers)
    assert torch.equal(kept.grid.scale, expected.grid.scale)


def test_protected_rows_of_awq_are_scaled_as_the_others(runs):
    """The norm before Q and K is divided by what their columns are multiplied with."""
    plan, results = runs.plans["awq protected"], runs.results("awq protected")
    for module in (each for each in plan.modules if each.protected_rows):
        norm = f"model.layers.{module.layer}.input_layernorm.weight"
        own = runs.opened.checkpoint.read([f"{module.name}.weight", norm])
        scaled = own[f"{module.name}.weight"].float() * (own[norm].float() / results.parameter(norm).float())
        rounded = results.module(module.name)
        kept = rounded.kept.dequantize(module.protected_scheme, torch.float32)
        base = rounded.base.dequantize(module.scheme, torch.float32)
        rows = list(module.protected_rows)
        assert (kept - scaled)[rows].abs().mean() < 0.01 * scaled[rows].abs().mean()
        assert (kept - scaled)[rows].abs().mean() < 0.2 * (base - scaled)[rows].abs().mean()


def test_gptq_is_nearer_to_the_model_than_rounding(runs):
    own = runs.opened.checkpoint.folder
    exact = AutoModelForCausalLM.from_pretrained(own)
    rounded = AutoModelForCausalLM.from_pretrained(own)
    plan = runs.plans["gptq"]
    nearest = plan.recipe.model_copy(update={"weights": plan.recipe.weights.model_copy(update={"method": Rtn()})})
    apply_plan(rounded, plan.model_copy(update={"recipe": nearest}))
    with torch.no_grad():
        truth = exact(tiny_tokens()).logits.float()
        by_rounding = (rounded(tiny_tokens()).logits.float() - truth).norm()
    assert (runs.logits("gptq").float() - truth).norm() < by_rounding


def test_modules_left_out_are_untouched_and_whole_modules_have_8_bits(runs):
    results, plan = runs.results("gptq mixed"), runs.plans["gptq mixed"]
    assert results.changed == frozenset()
    schemes = {module.name.rpartition(".")[2]: module.scheme.bits for module in plan.modules}
    assert (schemes["q_proj"], schemes["v_proj"]) == (8, 2)
    spread = {name: results.module(f"model.layers.0.self_attn.{name}").base.integers for name in ("q_proj", "v_proj")}
    assert spread["q_proj"].unique().numel() > 200
    assert spread["v_proj"].unique().numel() <= 4
    assert "model.layers.0.mlp.down_proj" not in {module.name for module in plan.modules}


def test_every_module_is_in_the_log(runs):
    for case in ("gptq", "awq"):
        records = {record.module: record for record in runs.results(case).records}
        assert set(records) == {module.name for module in runs.plans[case].modules}
    assert all(record.tokens == 256 and record.damping == 0.01 for record in runs.results("gptq").records)


def test_every_layer_is_reported(runs):
    log = (runs.folder / "package.log").read_text(encoding="utf-8")
    told = re.findall(r"^mvquant-progress 2 2 model\.layers\.1(?: loss ([\d.e-]+))?$", log, re.MULTILINE)
    assert len(told) == sum(module.layer == 1 for plan in runs.plans.values() for module in plan.modules)
    assert told.count("") == 3  # three cases of AWQ round an output projection, whose input it does not scale here
    assert all(0 < float(loss) < 1 for loss in told if loss)


def test_the_disk_is_not_timed(runs):
    log = (runs.folder / "package.log").read_text(encoding="utf-8")
    assert "Quantizing" in log
    assert "write throughput" not in log  # the package says so after writing 100 MB to TMPDIR


def test_what_the_package_does_with_a_singular_hessian_is_said(tmp_path):
    """It only writes numbers into its table: another damping, or the loss of a matrix that it could not do."""
    files = {name: tmp_path / name for name in ("source", "tokens", "out", "seen", "records")}
    method, layers = Gptq(backend="gptqmodel", damping=0.0123456), ("layers.0",)
    job = Job(**files, dtype="bfloat16", method=method, scheme=WeightScheme(bits=4), layers=layers)
    told = [("0.0020", "0.01235"), ("0.0020", "0.06235"), ("999999999.0000000000", "1.00000")]
    rows = [
        {"layer": 0, "module": f"m{number}", "loss": loss, "samples": "256", "damp": damping, "time": "0.1"}
        for number, (loss, damping) in enumerate(told)
    ]
    fine, raised, failed = (record.note for record in _records(job, {"gptq": rows}))
    assert fine is None
    assert raised == "damping raised from 0.0123456 to 0.06235 to invert its Hessian"
    assert failed == "rounded to nearest: its Hessian cannot be inverted, whatever the damping"


def test_what_a_package_has_done_is_taken_up(runs, tmp_path, monkeypatch):
    plan, opened = runs.plans["gptq"], runs.opened
    failing = replace(FOLDER_BACKENDS["gptqmodel"], command=lambda *_jobs: [sys.executable, "-c", "exit(3)"])
    monkeypatch.setitem(FOLDER_BACKENDS, "gptqmodel", failing)
    place = tmp_path / "package"
    again = partial(run_folder_backend, opened.checkpoint, opened.view, plan, calibration_tokens(), place)
    shutil.copytree(runs.folder / "gptq", place)
    (place / DONE).touch()
    assert bases_equal(again(), runs.results("gptq"), [module.name for module in plan.modules])
    (place / DONE).unlink()
    with pytest.raises(BackendError, match="exit code 3"):
        again()
    assert not place.exists()


def test_modules_protected_whole_are_8_bits_of_the_weights_as_awq_scaled_them(runs):
    assert_whole_modules_are_rounded_here(runs, "awq whole", "awq")
