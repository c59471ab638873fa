import copy

import pytest
import torch

from mvquant.backends.llmcompressor import SmoothQuantBackend
from mvquant.backends.llmcompressor.mappings import SMOOTHQUANT_ENTRIES, smoothquant_mappings
from mvquant.backends.llmcompressor.package import package
from mvquant.errors import CalibrationError, UnsupportedModelError
from mvquant.method_settings import Rtn, SmoothQuant
from mvquant.methods.apply import apply_plan
from mvquant.scheme import WeightScheme
from tests.backends.llmcompressor.layer_driver import calibrated_layer, calibration, eager_model, planned, quantized
from tests.backends.llmcompressor.package_run import config_groups, oneshot, reloaded, saved, saved_integers
from tests.backends.llmcompressor.scaling import FLOAT_ROWS, scaled_without_rounding
from tests.backends.llmcompressor.two_processes import in_two_processes
from tests.tiny_models import FAMILY_NAMES, tiny_tokens

HALF = SmoothQuant()
WITH_EXPERTS = ("mixtral", "qwen3_moe")


def smoothquant_recipe(model, scheme: str, settings: SmoothQuant, *, own: bool = False):
    groups = config_groups(WeightScheme.model_validate(scheme))
    return [
        package("modifiers.transform.smoothquant").SmoothQuantModifier(
            smoothing_strength=settings.alpha,
            mappings=smoothquant_mappings(model.config, experts=False) if own else None,
        ),
        package("modifiers.quantization").QuantizationModifier(config_groups=groups, ignore=["lm_head"]),
    ]


@pytest.mark.parametrize(
    ("family", "scheme", "settings", "own"),
    [
        ("llama", "w8a8-static", HALF, False),
        ("qwen2", "w8a8", SmoothQuant(alpha=0.8), False),
        ("cohere", "w8a8", HALF, False),
        ("phi3", "w8a8", HALF, False),
        ("gemma2", "w8a8-static", HALF, True),
        ("gpt_neox", "w8a8", HALF, True),
    ],
)
def test_integers_norms_and_input_scales_are_those_of_the_package(family, scheme, settings, own, tmp_path):
    # the package's norms are 1 + weight from layer to layer, ours the weight: the last bit differs after one of Gemma's
    layers = {"num_hidden_layers": 1} if family == "gemma2" else {}
    model, batches = eager_model(family, **layers), calibration()
    plan = planned(model, scheme, settings)
    oneshot(model, tmp_path, batches, smoothquant_recipe(model, scheme, settings, own=own))
    results = quantized(copy.deepcopy(model), plan, SmoothQuantBackend(settings), batches, seen_as_left=True)
    integers, tensors = saved_integers(tmp_path, plan), saved(tmp_path)
    for name, module in results.modules.items():
        assert torch.equal(module.base.integers, integers[name]), name
        if scheme == "w8a8-static":
            torch.testing.assert_close(module.input_scale, tensors[f"{name}.input_scale"], rtol=1e-6, atol=0)
    for name in results.changed:
        torch.testing.assert_close(results.parameter(name), tensors[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize(("family", "scheme"), [("llama", "w8a8-static"), ("cohere", "w8a8")])
def test_logits_are_those_of_what_the_package_saves(family, scheme, tmp_path):
    model, batches = eager_model(family), calibration()
    plan = planned(model, scheme, HALF)
    oneshot(model, tmp_path, batches, smoothquant_recipe(model, scheme, HALF))
    results = quantized(copy.deepcopy(model), plan, SmoothQuantBackend(HALF), batches, seen_as_left=True)
    tokens = tiny_tokens(2, 40, seed=9)
    with torch.no_grad():
        exact = model(tokens).logits
        theirs, ours = reloaded(tmp_path)(tokens).logits, apply_plan(model, plan, results)(tokens).logits
    # An activation half way between two integers goes where the last bit of a sum sends it, which depends on the CPU;
    # it changes logits by far less than rounding does.
    assert (ours - theirs).norm() < 0.05 * (theirs - exact).norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", [n for n in FAMILY_NAMES if n.removesuffix("_partial") in SMOOTHQUANT_ENTRIES])
def test_scales_alone_change_nothing(family, dtype):
    model, batches = eager_model(family, dtype), calibration(2)
    tokens = tiny_tokens(2, 40, seed=9)
    with torch.no_grad():
        before = model(tokens).logits
    ignore = ("*.experts.*",) if family in WITH_EXPERTS else ()
    results, scaled = scaled_without_rounding(model, SmoothQuantBackend(HALF), HALF, "w8a8", batches, ignore=ignore)
    assert results.changed
    with torch.no_grad():
        after = scaled(tokens).logits
    tolerance = 1e-4 if dtype == torch.float32 else 0.05
    assert (after - before).norm() < tolerance * before.norm()
    assert not torch.equal(after, before)


def test_the_package_breaks_gemma_where_ours_does_not(tmp_path):
    """Its table has the norm after attention feed the MLP, which in Gemma another norm does."""
    model, batches = eager_model("gemma2"), calibration()
    tokens = tiny_tokens(2, 40, seed=9)
    with torch.no_grad():
        exact = model(tokens).logits
    oneshot(model, tmp_path, batches, smoothquant_recipe(model, "w8a8", HALF))
    results = quantized(copy.deepcopy(model), planned(model, "w8a8", HALF), SmoothQuantBackend(HALF), batches)
    with torch.no_grad():
        theirs = (reloaded(tmp_path)(tokens).logits - exact).norm() / exact.norm()
        ours = (apply_plan(model, planned(model, "w8a8", HALF), results)(tokens).logits - exact).norm() / exact.norm()
    assert ours < 0.05
    assert theirs > 0.3


def test_protecting_rows_leaves_all_other_rows_as_they_are():
    model, batches = eager_model("llama"), calibration(2)
    plain, protecting = planned(model, "w8a8-static", HALF), planned(model, "w8a8-static", HALF, protect=FLOAT_ROWS)
    without = quantized(copy.deepcopy(model), plain, SmoothQuantBackend(HALF), batches)
    with_rows = quantized(copy.deepcopy(model), protecting, SmoothQuantBackend(HALF), batches)
    for name, module in without.modules.items():
        assert torch.equal(with_rows.integers()[name], module.base.integers), name
        assert torch.equal(with_rows.modules[name].input_scale, module.input_scale), name


def test_records_say_what_was_seen_and_what_rounding_took():
    model = eager_model("llama")
    results = quantized(model, planned(model, "w8a8", HALF), SmoothQuantBackend(HALF), calibration(3))
    for record in results.records.values():
        assert record.tokens == 3 * 48
        assert 0 < record.error < 1e-3


def test_smoothing_helps_where_a_channel_is_massive():
    model, batches = eager_model("llama"), calibration()
    with torch.no_grad():
        for layer in model.model.layers:
            layer.input_layernorm.weight[7] *= 200
            layer.post_attention_layernorm.weight[9] *= 200
    plan, tokens = planned(model, "w8a8", HALF), torch.cat(batches)
    with torch.no_grad():
        exact = model(tokens).logits
    lost = {}
    for alpha in (0.5, 1.0):
        settings = SmoothQuant(alpha=alpha)
        results = quantized(copy.deepcopy(model), plan, SmoothQuantBackend(settings), batches)
        with torch.no_grad():
            lost[alpha] = (apply_plan(copy.deepcopy(model), plan, results)(tokens).logits - exact).norm()
    rtn = planned(model, "w8a8", Rtn())
    with torch.no_grad():
        plain = (apply_plan(copy.deepcopy(model), rtn)(tokens).logits - exact).norm()
    assert lost[0.5] < 0.7 * plain
    assert lost[0.5] < lost[1.0]


@pytest.mark.parametrize(("family", "why"), [("gpt2", "Conv1D"), ("olmo2", "norms come after")])
def test_families_without_a_place_for_scales_are_refused_with_the_way_out(family, why):
    model = eager_model(family)
    with pytest.raises(
        UnsupportedModelError, match=rf"SmoothQuant by llmcompressor .* {family}.*{why}.*use method gptq"
    ):
        quantized(model, planned(model, "w8a8", HALF), SmoothQuantBackend(HALF), calibration(1))


def test_infinite_values_are_named():
    model = eager_model("llama")
    with torch.no_grad():
        model.model.layers[1].input_layernorm.weight[3] = float("inf")
    with pytest.raises(CalibrationError, match=r"what model\.layers\.1\.input_layernorm gives has NaN or infinite"):
        quantized(model, planned(model, "w8a8", HALF), SmoothQuantBackend(HALF), calibration(1))


def test_two_processes_give_the_integers_of_one():
    model, batches = eager_model("llama"), calibration(5)
    plan = planned(model, "w8a8-static", HALF)
    alone = SmoothQuantBackend(HALF).quantize(calibrated_layer(copy.deepcopy(model), plan, 0, batches))

    def work(processes):
        made = SmoothQuantBackend(HALF).quantize(
            calibrated_layer(model, plan, 0, batches[processes.rank :: 2], processes)
        )
        scales = {f"{name}.input_scale": module.input_scale for name, module in made.modules.items()}
        return {name: module.base.integers for name, module in made.modules.items()} | scales

    for made in in_two_processes(work):
        for name, module in alone.modules.items():
            assert torch.equal(made[name], module.base.integers), name
            assert torch.equal(made[f"{name}.input_scale"], module.input_scale), name
