import copy

import pytest
import torch
from transformers.pytorch_utils import Conv1D

from mvquant.backends.llmcompressor import GptqBackend
from mvquant.backends.llmcompressor.package import package
from mvquant.errors import CalibrationError
from mvquant.method_settings import Gptq
from mvquant.methods.apply import apply_plan
from mvquant.quant import round_to_nearest
from mvquant.recipe import Protect
from mvquant.scheme import WeightScheme
from tests.backends.llmcompressor.layer_driver import calibrated_layer, calibration, eager_model, planned, quantized
from tests.backends.llmcompressor.package_run import config_groups, oneshot, reloaded, saved, saved_integers
from tests.backends.llmcompressor.two_processes import in_two_processes
from tests.tiny_models import FAMILY_NAMES, tiny_tokens

FLOAT_ROWS = Protect(policy="slow-pairs", pairs=0.25, scheme=WeightScheme(bits=16))
BYTE_ROWS = Protect(policy="slow-pairs", pairs=0.25)


def gptq_modifier(scheme: str, settings: Gptq | None = None):
    settings = settings or Gptq()
    return package("modifiers.gptq").GPTQModifier(
        config_groups=config_groups(WeightScheme.model_validate(scheme)),
        ignore=["lm_head"],
        block_size=settings.block_size,
        dampening_frac=settings.damping,
        actorder="static" if settings.activation_order else None,
    )


def logits(model, tokens):
    with torch.no_grad():
        return model(tokens).logits


@pytest.mark.parametrize(
    ("family", "scheme"),
    [
        ("llama", "w4a16-g32"),
        ("qwen2", "w3a16-g32-asym"),
        ("gemma2", "w4a16-row"),
        ("phi3", "w2a16-g64"),
        ("gpt_neox", "w8a16-row-asym"),
        ("olmo2", "w4a16-g32-asym"),
        ("qwen3_moe", "w4a16-g32"),
    ],
)
def test_integers_and_logits_are_those_of_the_package(family, scheme, tmp_path):
    model, batches = eager_model(family), calibration()
    plan = planned(model, scheme, Gptq())
    oneshot(model, tmp_path, batches, [gptq_modifier(scheme)])
    results = quantized(copy.deepcopy(model), plan, GptqBackend(Gptq()), batches)
    theirs = saved_integers(tmp_path, plan)
    for name, integers in results.integers().items():
        assert torch.equal(integers, theirs[name]), name
    tokens = tiny_tokens(2, 40, seed=9)
    torch.testing.assert_close(logits(apply_plan(model, plan, results), tokens), logits(reloaded(tmp_path), tokens))


@pytest.mark.parametrize("scheme", ["w8a8", "w8a8-static"])
def test_rounded_activations_are_those_of_the_package(scheme, tmp_path):
    model, batches = eager_model("qwen2"), calibration()
    plan = planned(model, scheme, Gptq())
    oneshot(model, tmp_path, batches, [gptq_modifier(scheme)])
    results = quantized(copy.deepcopy(model), plan, GptqBackend(Gptq()), batches)
    theirs = saved_integers(tmp_path, plan)
    for name, module in results.modules.items():
        assert torch.equal(module.base.integers, theirs[name]), name
        if scheme == "w8a8-static":
            assert torch.equal(module.input_scale, saved(tmp_path)[f"{name}.input_scale"]), name
    tokens = tiny_tokens(2, 40, seed=9)
    torch.testing.assert_close(logits(apply_plan(model, plan, results), tokens), logits(reloaded(tmp_path), tokens))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_sequence_needs_no_exact_sums_to_be_as_in_the_package(dtype, tmp_path):
    model, batches = eager_model("llama", dtype), calibration(1)
    settings = Gptq(damping=0.05, block_size=32, activation_order=False)
    plan = planned(model, "w4a16-g32", settings)
    oneshot(model, tmp_path, batches, [gptq_modifier("w4a16-g32", settings)], exact_sums=False)
    results = quantized(copy.deepcopy(model), plan, GptqBackend(settings), batches)
    theirs = saved_integers(tmp_path, plan)
    for name, integers in results.integers().items():
        assert torch.equal(integers, theirs[name]), name


def test_mixtral_is_taken_apart_as_in_the_package(tmp_path):
    model, batches = eager_model("mixtral"), calibration()
    plan = planned(model, "w4a16-g32", Gptq())
    oneshot(model, tmp_path, batches, [gptq_modifier("w4a16-g32")])
    results = quantized(copy.deepcopy(model), plan, GptqBackend(Gptq()), batches)
    theirs = saved_integers(tmp_path, plan)
    for name, integers in results.integers().items():
        assert torch.equal(integers, theirs[name]), name


@pytest.mark.parametrize("protect", [FLOAT_ROWS, BYTE_ROWS])
@pytest.mark.parametrize("family", ["llama", "phi3", "gpt_neox"])
def test_protecting_rows_leaves_all_other_rows_as_they_are(family, protect):
    model, batches = eager_model(family), calibration()
    plain = planned(model, "w3a16-g32", Gptq())
    protecting = planned(model, "w3a16-g32", Gptq(), protect=protect)
    assert any(module.protected_rows for module in protecting.modules)
    without = quantized(copy.deepcopy(model), plain, GptqBackend(Gptq()), batches)
    with_rows = quantized(copy.deepcopy(model), protecting, GptqBackend(Gptq()), batches)
    for name, integers in without.integers().items():
        assert torch.equal(with_rows.integers()[name], integers), name
        assert torch.equal(with_rows.modules[name].base.grid.scale, without.modules[name].base.grid.scale)


def test_protected_rows_are_rounded_by_the_same_hessian_at_eight_bits():
    model, batches = eager_model("llama"), calibration()
    protecting = planned(model, "w3a16-g32", Gptq(), protect=BYTE_ROWS)
    at_eight = planned(model, "w8a16-g32", Gptq())
    kept = quantized(copy.deepcopy(model), protecting, GptqBackend(Gptq()), batches).layers[0].modules
    eight = quantized(copy.deepcopy(model), at_eight, GptqBackend(Gptq()), batches).layers[0].modules
    for name in ("model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.k_proj"):
        assert torch.equal(kept[name].kept.integers, eight[name].base.integers)
        assert not torch.equal(kept[name].kept.integers, round_to_nearest(_weight(model, name), _BYTES).integers)
    assert kept["model.layers.0.self_attn.v_proj"].kept is None


_BYTES = WeightScheme(bits=8, group_size=32)


def _weight(model, name):
    return model.get_submodule(name).weight.detach()


def test_protected_floats_are_the_weights_themselves():
    model, batches = eager_model("phi3"), calibration(2)
    plan = planned(model, "w3a16-g32", Gptq(), protect=FLOAT_ROWS)
    results = quantized(copy.deepcopy(model), plan, GptqBackend(Gptq()), batches)
    for module in plan.modules:
        kept = results.modules[module.name].kept
        if module.protected_rows:
            assert torch.equal(kept, _weight(model, module.name))
        else:
            assert kept is None


def test_protecting_all_rows_is_the_method_at_eight_bits():
    model, batches = eager_model("llama"), calibration()
    every_row = planned(model, "w3a16-g32", Gptq(), protect=Protect(policy="slow-pairs", pairs=1.0))
    at_eight = planned(model, "w8a16-g32", Gptq())
    ours = quantized(copy.deepcopy(model), every_row, GptqBackend(Gptq()), batches)
    eight = quantized(copy.deepcopy(model), at_eight, GptqBackend(Gptq()), batches)
    for role in ("q_proj", "k_proj"):
        name = f"model.layers.0.self_attn.{role}"
        assert torch.equal(ours.integers()[name], eight.integers()[name])


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_every_family_loses_less_than_rounding_to_nearest(family):
    model, batches = eager_model(family), calibration(6)
    plan = planned(model, "w3a16-g32", Gptq())
    layer = calibrated_layer(model, plan, 0, batches)
    inputs: dict[str, list[torch.Tensor]] = {}
    linears = [module for module in layer.modules if module.kind == "linear"]
    hooks = [_recorded(layer, module.name, inputs) for module in linears]
    for _ in layer.run():
        pass
    for hook in hooks:
        hook.remove()
    weights = {module.name: _oriented(layer, module) for module in linears}
    result = GptqBackend(Gptq()).quantize(layer)
    assert set(result.modules) == {module.name for module in layer.modules}
    for module in linears:
        seen, weight = torch.cat(inputs[module.name]), weights[module.name]
        gptq = (seen @ (result.modules[module.name].base.dequantize(module.scheme, seen.dtype) - weight).T).norm()
        nearest = (
            seen @ (round_to_nearest(weight, module.scheme).dequantize(module.scheme, seen.dtype) - weight).T
        ).norm()
        assert gptq < 0.9 * nearest, module.name


def _recorded(layer, name, inputs):
    def see(_module, arguments):
        inputs.setdefault(name, []).append(arguments[0].detach().flatten(0, -2))

    return layer.module.get_submodule(layer.local(name)).register_forward_pre_hook(see)


def _oriented(layer, module):
    linear = layer.module.get_submodule(layer.local(module.name))
    weight = linear.weight.detach().clone()
    return weight.T.contiguous() if isinstance(linear, Conv1D) else weight


def test_damping_is_raised_where_a_hessian_cannot_be_inverted():
    settings = Gptq(damping=1e-12)
    model, batches = eager_model("llama"), [tiny_tokens(1, 4)]  # 4 tokens, 64 columns: a Hessian of rank 4
    results = quantized(model, planned(model, "w4a16-g32", settings), GptqBackend(settings), batches)
    record = results.records["model.layers.0.mlp.down_proj"]
    assert 1e-12 < record.damping <= 1
    assert record.note == f"damping raised from 1e-12 to {record.damping:g} to invert its Hessian"
    assert record.error is not None
    assert record.tokens == 4


def test_nan_inputs_are_named():
    model = eager_model("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 4] = float("nan")
    plan = planned(model, "w4a16-g32", Gptq(), ignore=("*.up_proj",))
    with pytest.raises(CalibrationError, match=r"model\.layers\.1\.mlp\.down_proj: its inputs have NaN"):
        quantized(model, plan, GptqBackend(Gptq()), calibration(1))


def test_experts_that_the_router_passes_over_are_named():
    model = eager_model("qwen3_moe")
    with torch.no_grad():
        model.model.layers[0].mlp.gate.weight[1:].copy_(model.model.layers[0].mlp.gate.weight[:1])
        model.model.layers[0].mlp.gate.weight[2] *= 0
    results = quantized(model, planned(model, "w4a16-g32", Gptq()), GptqBackend(Gptq()), calibration())
    record = results.records["model.layers.0.mlp.experts.down_proj"]
    assert record.note is not None
    assert "the router sent fewer than 128 tokens to experts" in record.note
    assert f"({record.tokens})" in record.note
    dense = results.records["model.layers.0.self_attn.q_proj"]
    assert (dense.tokens, dense.note) == (4 * 48, None)


def test_hessians_beyond_what_is_held_at_once_take_more_runs(monkeypatch):
    model, batches = eager_model("mixtral"), calibration(2)
    plan = planned(model, "w4a16-g32", Gptq())
    at_once = GptqBackend(Gptq()).quantize(calibrated_layer(model, plan, 0, batches))
    monkeypatch.setattr("mvquant.backends.llmcompressor.gptq.HESSIAN_BYTES", 8 * 128**2)  # one, of the widest input
    one_by_one = GptqBackend(Gptq()).quantize(calibrated_layer(model, plan, 0, batches))
    for name, module in at_once.modules.items():
        assert torch.equal(one_by_one.modules[name].base.integers, module.base.integers), name
    before, after = ({record.module: record for record in made.records} for made in (at_once, one_by_one))
    for name, record in before.items():
        assert (after[name].tokens, after[name].error, after[name].note) == (record.tokens, record.error, record.note)


def test_two_processes_give_the_integers_of_one():
    model, batches = eager_model("qwen3_moe"), calibration(5)
    plan = planned(model, "w4a16-g32", Gptq())
    alone = GptqBackend(Gptq()).quantize(calibrated_layer(model, plan, 0, batches))

    def work(processes):
        layer = calibrated_layer(model, plan, 0, batches[processes.rank :: 2], processes)
        made = GptqBackend(Gptq()).quantize(layer)
        return {name: module.base.integers for name, module in made.modules.items()}

    for made in in_two_processes(work):
        for name, module in alone.modules.items():
            assert torch.equal(made[name], module.base.integers), name
