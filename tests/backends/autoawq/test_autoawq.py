import re

import pytest
import torch

from tests.backends.folder.packages import Runs, assert_whole_modules_are_rounded_here, bases_equal, run_package

CASES = {
    "protected": (
        "scheme: w4a16-g64-asym, method: {name: awq, backend: autoawq}",
        "{policy: slow-pairs, pairs: 0.25}",
    ),
    "plain": ("scheme: w4a16-g64-asym, method: {name: awq, backend: autoawq}", "{policy: none}"),
    "whole": ("scheme: w4a16-g64-asym, method: {name: awq, backend: autoawq}", "{policy: whole-module}"),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Runs:
    return run_package(tmp_path_factory, CASES, {"plain": ("gptqmodel", "transformers")})


def test_logits_are_those_of_a_reload(runs):
    """AutoAWQ's own loader needs a GPU or IPEX; GPTQModel and transformers read its folders."""
    ours = runs.logits("plain")
    assert torch.equal(ours, runs.reloaded("plain", "gptqmodel"))
    theirs = runs.reloaded("plain", "transformers")  # its default kernel multiplies in another way
    assert (ours - theirs).float().norm() < 0.02 * ours.float().norm()


def test_protecting_rows_leaves_the_others_as_they_are(runs):
    names = [module.name for module in runs.plans["plain"].modules]
    plain, protected = runs.results("plain"), runs.results("protected")
    assert bases_equal(plain, protected, names)
    assert plain.changed == protected.changed


def test_protected_rows_are_scaled_as_the_others(runs):
    plan, results = runs.plans["protected"], runs.results("protected")
    for module in (each for each in plan.modules if each.protected_rows):
        norm = f"model.layers.{module.layer}.input_layernorm.weight"
        own = runs.opened.checkpoint.read([f"{module.name}.weight", norm])
        scaled = own[f"{module.name}.weight"].float() * (own[norm].float() / results.parameter(norm).float())
        rounded = results.module(module.name)
        kept = rounded.kept.dequantize(module.protected_scheme, torch.float32)
        base = rounded.base.dequantize(module.scheme, torch.float32)
        rows = list(module.protected_rows)
        assert (kept - scaled)[rows].abs().mean() < 0.2 * (base - scaled)[rows].abs().mean()


def test_every_module_is_in_the_log(runs):
    for case in ("plain", "protected"):
        records = {record.module: record for record in runs.results(case).records}
        assert set(records) == {module.name for module in runs.plans[case].modules}
        scaled = [record for record in records.values() if record.note is None]
        assert all(record.tokens == 256 and record.error > 0 and record.seconds > 0 for record in scaled)
        assert {name.rpartition(".")[2] for name in set(records) - {each.module for each in scaled}} <= {"o_proj"}


def test_progress_and_noise(runs):
    """What it prints is in its log, of which only progress is read."""
    log = (runs.folder / "package.log").read_text(encoding="utf-8")
    told = re.findall(r"^mvquant-progress 2 2 model\.layers\.1 loss ([\d.e-]+)$", log, re.MULTILINE)
    assert len(told) == len(CASES)
    assert all(float(loss) > 0 for loss in told)


def test_modules_protected_whole_are_8_bits_of_the_weights_as_awq_scaled_them(runs):
    assert_whole_modules_are_rounded_here(runs, "whole", "plain")
