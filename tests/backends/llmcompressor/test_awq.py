import copy
from math import prod

import pytest
import torch

from mvquant.arch import model_view
from mvquant.backends.llmcompressor import AwqBackend
from mvquant.backends.llmcompressor.mappings import AWQ_ENTRIES, awq_mappings
from mvquant.backends.llmcompressor.package import package
from mvquant.errors import CalibrationError, UnsupportedModelError, UsageError
from mvquant.layerwise.preflight import _searches
from mvquant.method_settings import Awq
from mvquant.methods.apply import apply_plan
from mvquant.quant import round_to_nearest
from mvquant.recipe import Protect
from mvquant.scheme import WeightScheme
from tests.backends.llmcompressor.layer_driver import (
    LENGTH,
    calibrated_layer,
    calibration,
    eager_model,
    planned,
    quantized,
)
from tests.backends.llmcompressor.package_run import config_groups, oneshot, reloaded, saved, saved_integers
from tests.backends.llmcompressor.scaling import FLOAT_ROWS, scaled_without_rounding
from tests.backends.llmcompressor.two_processes import in_two_processes
from tests.tiny_models import FAMILY_NAMES, tiny_model, tiny_tokens

FEW = Awq(grid_points=6)


def awq_recipe(model, scheme: str, settings: Awq):
    """The package's own mappings, but for the families that it has none for."""
    own = model.config.model_type in ("olmo2", "opt", "gpt_neox", "mixtral")
    experts = model.config.model_type in ("mixtral", "qwen3_moe")
    groups = config_groups(WeightScheme.model_validate(scheme))
    return [
        package("modifiers.transform.awq").AWQModifier(
            mappings=awq_mappings(model.config, experts=experts) if own else None,
            n_grid=settings.grid_points,
            duo_scaling=settings.duo_scaling,
            offload_device=None,
        ),
        package("modifiers.quantization").QuantizationModifier(config_groups=groups, ignore=["lm_head"]),
    ]


@pytest.mark.parametrize(
    ("family", "scheme", "settings"),
    [
        ("llama", "w4a16-g32", Awq()),
        ("qwen2", "w3a16-g32-asym", FEW),
        ("gemma2", "w4a16-row", FEW),
        ("cohere", "w4a16-g32", Awq(grid_points=6, duo_scaling=False)),
        ("phi3", "w2a16-g64", FEW),
        ("opt", "w4a16-g32", FEW),
        ("qwen3_moe", "w4a16-g32", FEW),
        ("mixtral", "w4a16-g32-asym", FEW),
    ],
)
def test_integers_and_norms_are_those_of_the_package(family, scheme, settings, tmp_path):
    model, batches = eager_model(family), calibration()
    plan = planned(model, scheme, settings)
    oneshot(model, tmp_path, batches, awq_recipe(model, scheme, settings))
    results = quantized(copy.deepcopy(model), plan, AwqBackend(settings), batches, seen_as_left=True)
    integers, tensors = saved_integers(tmp_path, plan), saved(tmp_path)
    for name, module in results.modules.items():
        assert torch.equal(module.base.integers, integers[name]), name
    compared = [name for name in results.changed if name in tensors]
    assert compared
    for name in compared:
        torch.testing.assert_close(results.parameter(name), tensors[name], rtol=0, atol=1e-6)
    if family == "mixtral":  # transformers does not read what the package saves of it
        return
    tokens = tiny_tokens(2, 40, seed=9)
    with torch.no_grad():
        theirs, ours = reloaded(tmp_path)(tokens).logits, apply_plan(model, plan, results)(tokens).logits
    torch.testing.assert_close(ours, theirs)


def test_one_sequence_needs_no_exact_sums_to_be_as_in_the_package(tmp_path):
    model, batches = eager_model("llama"), calibration(1)
    plan = planned(model, "w4a16-g32", FEW)
    oneshot(model, tmp_path, batches, awq_recipe(model, "w4a16-g32", FEW), exact_sums=False)
    results = quantized(copy.deepcopy(model), plan, AwqBackend(FEW), batches, seen_as_left=True)
    theirs = saved_integers(tmp_path, plan)
    for name, integers in results.integers().items():
        assert torch.equal(integers, theirs[name]), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", [name for name in FAMILY_NAMES if name.removesuffix("_partial") in AWQ_ENTRIES])
def test_scales_alone_change_nothing(family, dtype):
    model, batches = eager_model(family, dtype), calibration(2)
    tokens = tiny_tokens(2, 40, seed=9)
    with torch.no_grad():
        before = model(tokens).logits
    results, scaled = scaled_without_rounding(model, AwqBackend(FEW), FEW, "w4a16-g32", batches)
    assert any(record.error is not None for record in results.records.values())
    with torch.no_grad():
        after = scaled(tokens).logits
    tolerance = 1e-4 if dtype == torch.float32 else 0.05
    assert (after - before).norm() < tolerance * before.norm()
    assert not torch.equal(after, before)


@pytest.mark.parametrize("protect", [FLOAT_ROWS, Protect(policy="slow-pairs", pairs=0.25)])
@pytest.mark.parametrize("family", ["llama", "phi3"])
def test_protecting_rows_leaves_all_other_rows_as_they_are(family, protect):
    model, batches = eager_model(family), calibration(2)
    without = quantized(copy.deepcopy(model), planned(model, "w3a16-g32", FEW), AwqBackend(FEW), batches)
    protecting = planned(model, "w3a16-g32", FEW, protect=protect)
    with_rows = quantized(copy.deepcopy(model), protecting, AwqBackend(FEW), batches)
    for name, integers in without.integers().items():
        assert torch.equal(with_rows.integers()[name], integers), name
    for name in without.changed:
        assert torch.equal(with_rows.parameter(name), without.parameter(name))


def test_protected_rows_are_rounded_to_nearest_after_scaling():
    model, batches = eager_model("llama"), calibration(2)
    name = "model.layers.0.self_attn.q_proj"
    floats = quantized(
        copy.deepcopy(model), planned(model, "w3a16-g32", FEW, protect=FLOAT_ROWS), AwqBackend(FEW), batches
    ).modules[name]
    protecting = planned(model, "w3a16-g32", FEW, protect=Protect(policy="slow-pairs", pairs=0.25))
    kept = quantized(copy.deepcopy(model), protecting, AwqBackend(FEW), batches).modules[name].kept
    assert torch.equal(kept.integers, round_to_nearest(floats.kept, WeightScheme(bits=8, group_size=32)).integers)
    assert not torch.equal(floats.kept, model.get_submodule(name).weight)


def test_the_layer_loses_less_than_by_rounding_to_nearest():
    model, batches = eager_model("llama"), calibration()
    with torch.no_grad():  # a channel as massive as those that AWQ is for
        model.model.layers[0].input_layernorm.weight[7] *= 30
        model.model.layers[0].post_attention_layernorm.weight[9] *= 30
    plan = planned(model, "w3a16-g32", Awq())
    awq = quantized(copy.deepcopy(model), plan, AwqBackend(Awq()), batches)
    tokens = torch.cat(batches)
    with torch.no_grad():
        exact = model(tokens).logits
        lost_by_awq = (apply_plan(copy.deepcopy(model), plan, awq)(tokens).logits - exact).norm()
        for module in plan.modules:
            weight = model.get_submodule(module.name).weight
            weight.copy_(round_to_nearest(weight, module.scheme).dequantize(module.scheme, weight.dtype))
        lost_by_rounding = (model(tokens).logits - exact).norm()
    assert lost_by_awq < 0.95 * lost_by_rounding


def test_modules_left_out_get_scales_all_the_same():
    model, batches = eager_model("llama"), calibration(2)
    plan = planned(model, "w4a16-g32", FEW, ignore=("*.k_proj", "*.v_proj"))
    results = quantized(copy.deepcopy(model), plan, AwqBackend(FEW), batches)
    for layer in (0, 1):
        prefix = f"model.layers.{layer}.self_attn"
        assert {f"{prefix}.k_proj.weight", f"{prefix}.v_proj.weight"} <= set(results.changed)
        assert f"{prefix}.q_proj.weight" not in results.changed


def test_scales_between_a_planned_weight_and_one_left_out_are_not_searched_for():
    model, batches = eager_model("llama"), calibration(2)
    plan = planned(model, "w4a16-g32", FEW, ignore=("*.down_proj", "*.o_proj"))
    results = quantized(copy.deepcopy(model), plan, AwqBackend(FEW), batches)
    assert set(results.changed) == {
        f"model.layers.{layer}.{norm}.weight"
        for layer in (0, 1)
        for norm in ("input_layernorm", "post_attention_layernorm")
    }


def test_weights_that_no_scale_reaches_are_said_to_be_rounded_as_they_are():
    model = eager_model("gpt_neox")
    results = quantized(model, planned(model, "w4a16-g32", FEW), AwqBackend(FEW), calibration(2))
    record = results.records["gpt_neox.layers.0.mlp.dense_4h_to_h"]
    assert (record.error, record.note) == (None, "rounded to nearest: AWQ scales no input of it in this family")
    scaled = results.records["gpt_neox.layers.0.mlp.dense_h_to_4h"]
    assert scaled.error is not None
    assert (scaled.tokens, scaled.note) == (2 * 48, None)


def test_gpt2_is_refused_with_the_way_out():
    model = eager_model("gpt2")
    with pytest.raises(UnsupportedModelError, match=r"AWQ by llmcompressor .* gpt2.*Conv1D.*use method gptq"):
        quantized(model, planned(model, "w4a16-g32", FEW), AwqBackend(FEW), calibration(1))


def test_too_few_exponents_are_refused():
    with pytest.raises(UsageError, match="at least 3 exponents, not 2: raise grid_points"):
        AwqBackend(Awq(grid_points=2))


def test_values_that_are_no_numbers_are_named():
    model = eager_model("llama")
    with torch.no_grad():
        model.model.layers[1].input_layernorm.weight[3] = float("inf")
    plan = planned(model, "w4a16-g32", FEW)
    with pytest.raises(CalibrationError, match=r"what model\.layers\.1\.input_layernorm gives has NaN or infinite"):
        quantized(model, plan, AwqBackend(FEW), calibration(1))


def test_outputs_that_are_no_numbers_are_named_where_inputs_are_finite():
    model = eager_model("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[0, 0] = float("inf")
    plan = planned(model, "w4a16-g32", FEW, ignore=("*.down_proj",))
    with pytest.raises(CalibrationError, match=r"model\.layers\.1\.mlp gives NaN or infinite values"):
        quantized(model, plan, AwqBackend(FEW), calibration(1))


def test_a_layer_is_left_without_anything_of_the_package():
    model = eager_model("qwen3_moe")
    layer = calibrated_layer(model, planned(model, "w4a16-g32", FEW), 0, calibration(1))
    before = {name: type(module) for name, module in layer.module.named_modules()}
    AwqBackend(FEW).quantize(layer)
    assert {name: type(module) for name, module in layer.module.named_modules()} == before
    for module in layer.module.modules():
        assert not any(name.startswith(("quantization_", "weight_")) for name in vars(module))
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


def test_two_processes_give_the_integers_of_one():
    model, batches = eager_model("llama"), calibration(5)
    plan = planned(model, "w4a16-g32", FEW)
    alone = AwqBackend(FEW).quantize(calibrated_layer(copy.deepcopy(model), plan, 0, batches))

    def work(processes):
        layer = calibrated_layer(model, plan, 0, batches[processes.rank :: 2], processes)
        made = AwqBackend(FEW).quantize(layer)
        return {name: module.base.integers for name, module in made.modules.items()} | dict(made.parameters)

    for made in in_two_processes(work):
        for name, module in alone.modules.items():
            assert torch.equal(made[name], module.base.integers), name
        for name, value in alone.parameters.items():
            assert torch.equal(made[name], value), name


class Counting:
    """Counts what the package keeps and holds when it searches, and the multiplications of linears, by token."""

    def __init__(self, monkeypatch, tokens):
        self.kept, self.outputs, self.multiplied, self.waits_on = 0, 0, 0.0, None
        self._tokens, search = tokens, package("modifiers.transform.awq.base").AWQModifier
        smooth, run = search._apply_smoothing, search._run_samples

        def smoothing(modifier, root):
            caches = list(modifier._parent_args_cache.values())
            first = [next(iter(call.values())).value for cache in caches for call in cache.batch_intermediates]
            self.kept = sum(states.numel() for states in first) / tokens
            (self.waits_on,) = {str(cache.offload_device) for cache in caches}
            smooth(modifier, root)

        def samples(modifier, module):
            outputs = run(modifier, module)
            self.outputs = max(self.outputs, sum(output.numel() for output in outputs) / tokens)
            return outputs

        monkeypatch.setattr(search, "_apply_smoothing", smoothing)
        monkeypatch.setattr(search, "_run_samples", samples)

    def __enter__(self):
        self._hook = torch.nn.modules.module.register_module_forward_hook(self._count)
        return self

    def __exit__(self, *_error):
        self._hook.remove()

    def _count(self, module, _inputs, output):
        if isinstance(module, torch.nn.Linear):
            self.multiplied += output.numel() * module.in_features / self._tokens


OWN_VALUES = [("llama", {"num_key_value_heads": 4}), ("phi3", {"num_key_value_heads": 4})]


@pytest.mark.parametrize(("family", "changes"), [*((family, {}) for family in AWQ_ENTRIES), *OWN_VALUES])
def test_a_search_keeps_and_runs_what_is_predicted_of_it(family, changes, monkeypatch):
    model, settings = tiny_model(family, **changes), Awq(grid_points=3)
    plan, view = planned(model, "w4a16-g32", settings), model_view(model.config)
    layer = calibrated_layer(model, plan, 0, calibration(2))
    with Counting(monkeypatch, 2 * LENGTH) as counted:
        AwqBackend(settings).quantize(layer)
    searches = _searches(plan, view, 0)
    # attention and MLP of cohere have one input, which is predicted for each
    twice = model.config.hidden_size if family == "cohere" else 0
    assert sum(search.columns for search in searches) == counted.kept + twice
    assert max(search.rows for search in searches) == counted.outputs
    observed = sum(prod(weight.shape) for weight in view.weights if weight.layer == 0)
    assert observed + (3 + 1) * sum(search.run for search in searches) == pytest.approx(counted.multiplied)
    assert counted.waits_on == "cpu"
