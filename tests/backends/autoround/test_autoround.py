import re

import pytest
import torch

from mvquant.backends.nearest import lost_share
from mvquant.quant import round_to_nearest
from tests.backends.folder.packages import Runs, bases_equal, run_package

METHOD = "method: {name: autoround, iterations: 2, batch_size: 4}"
CASES = {
    "plain": (f"scheme: w4a16-g64, {METHOD}", "{policy: none}"),
    "protected": (f"scheme: w4a16-g64, {METHOD}", "{policy: slow-pairs, pairs: 0.25}"),
    "mixed": (f"scheme: w3a16-g32-asym, {METHOD}, ignore: ['*.0.mlp.down_proj']", "{policy: whole-module}"),
}
RELOADS = {"plain": ("transformers",), "mixed": ("transformers",)}


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Runs:
    return run_package(tmp_path_factory, CASES, RELOADS)


def test_logits_are_those_of_the_package(runs):
    assert torch.equal(runs.logits("plain"), runs.reloaded("plain", "transformers"))
    mixed = runs.logits("mixed")  # 3 and 8 bits: its kernel rounds products to float16 first, and then to bfloat16
    difference = (mixed - runs.reloaded("mixed", "transformers")).float().norm()
    assert difference < 0.02 * mixed.float().norm()


def test_a_second_run_with_protected_rows_gives_the_same_integers(runs):
    names = [module.name for module in runs.plans["plain"].modules]
    assert bases_equal(runs.results("plain"), runs.results("protected"), names)


def test_rounding_was_learnt(runs):
    """Not one module is as rounding to nearest would have left it."""
    plan, results = runs.plans["plain"], runs.results("plain")
    for module in plan.modules:
        own = runs.opened.checkpoint.read([f"{module.name}.weight"])[f"{module.name}.weight"]
        assert not torch.equal(results.module(module.name).base.integers, round_to_nearest(own, module.scheme).integers)


def test_protected_rows_are_the_models_own(runs):
    plan = runs.plans["protected"]
    for module in (each for each in plan.modules if each.protected_rows):
        kept = runs.results("protected").module(module.name).kept
        own = runs.opened.checkpoint.read([f"{module.name}.weight"])[f"{module.name}.weight"]
        assert torch.equal(kept.integers, round_to_nearest(own, module.protected_scheme).integers)


def test_no_other_parameter_changes(runs):
    assert all(runs.results(case).changed == frozenset() for case in CASES)


def test_whole_modules_have_8_bits(runs):
    results = runs.results("mixed")
    assert results.module("model.layers.0.self_attn.k_proj").base.integers.unique().numel() > 200
    assert results.module("model.layers.0.self_attn.v_proj").base.integers.unique().numel() <= 8


def test_every_layer_is_in_the_log(runs):
    records = {record.module: record for record in runs.results("plain").records}
    layers = ["model.layers.0", "model.layers.1"]
    assert set(records) == {*layers, *(module.name for module in runs.plans["plain"].modules)}
    assert all(record.error > 0 and record.seconds > 0 for record in records.values())
    assert len({record.error for record in records.values()}) == len(records)
    log = (runs.folder / "package.log").read_text(encoding="utf-8")
    for number, layer in enumerate(layers, start=1):
        assert re.search(rf"^mvquant-progress {number} 2 {layer} loss [\d.e-]+$", log, re.MULTILINE)


def test_the_error_of_a_module_is_what_its_integers_lose(runs):
    results = runs.results("plain")
    records = {record.module: record for record in results.records}
    for module in runs.plans["plain"].modules:
        exact = runs.opened.checkpoint.read([f"{module.name}.weight"])[f"{module.name}.weight"]
        assert records[module.name].error == pytest.approx(
            lost_share(module, exact, results.module(module.name)), rel=0.01
        )
