import pytest
import torch

from mvquant.backends.input_ranges import InputRanges
from mvquant.backends.llmcompressor.inputs import InputSums, input_scale, static_linears
from mvquant.backends.llmcompressor.linears import taken_apart
from mvquant.errors import BackendError, CalibrationError
from mvquant.method_settings import Gptq
from tests.backends.llmcompressor.layer_driver import OneProcess, calibrated_layer, calibration, eager_model, planned

ATTENTION = "model.layers.0.self_attn"


@pytest.fixture
def layer():
    model = eager_model("llama")
    return calibrated_layer(model, planned(model, "w8a8-static", Gptq()), 0, calibration(3))


def recorded(layer, name):
    inputs = []
    hook = layer.module.get_submodule(layer.local(name)).register_forward_pre_hook(
        lambda _module, arguments: inputs.append(arguments[0].detach().flatten(0, -2))
    )
    for _ in layer.run():
        pass
    hook.remove()
    return inputs


def test_hessians_are_twice_the_mean_of_products_and_shared_between_equal_inputs(layer):
    sums = InputSums()
    with taken_apart(layer) as linears:
        linears.run([sums.watch(linear) for _, linear in linears.planned()], after=sums.next_sequence)
    sums.share(OneProcess())
    for name in (f"{ATTENTION}.v_proj", f"{ATTENTION}.o_proj", "model.layers.0.mlp.down_proj"):
        inputs = recorded(layer, name)
        expected = 2 * sum((each.double().T @ each.double()) for each in inputs) / len(inputs)
        torch.testing.assert_close(sums[name].mean_hessian.double(), expected, rtol=1e-5, atol=1e-4)
        assert int(sums[name].tokens) == 3 * 48
    assert sums[f"{ATTENTION}.q_proj"] is sums[f"{ATTENTION}.k_proj"] is sums[f"{ATTENTION}.v_proj"]
    assert sums["model.layers.0.mlp.gate_proj"] is sums["model.layers.0.mlp.up_proj"]
    assert sums[f"{ATTENTION}.q_proj"] is not sums[f"{ATTENTION}.o_proj"]
    with pytest.raises(CalibrationError, match="lm_head saw no token"):
        sums["lm_head"]


def test_sums_do_not_depend_on_the_order_of_sequences(layer):
    def summed(order):
        sums = InputSums()
        with taken_apart(layer) as linears:
            down = linears.by_plan["model.layers.0.mlp.down_proj"][0]
            inputs = recorded(layer, down.name)
            hook = sums.watch(down)
            for index in order:
                down.module(inputs[index][None])
                sums.next_sequence()
            hook.remove()
        return sums[down.name].mean_hessian

    assert torch.equal(summed([0, 1, 2]), summed([2, 0, 1]))


def test_inputs_shared_in_some_sequences_only_are_refused(layer):
    sums, hidden = InputSums(), torch.ones(1, 2, 64)
    with taken_apart(layer) as linears:
        q, k = (linears.by_plan[f"{ATTENTION}.{role}"][0] for role in ("q_proj", "k_proj"))
        hooks = [sums.watch(q), sums.watch(k)]
        q.module(hidden)
        k.module(hidden)
        sums.next_sequence()
        q.module(hidden)
        with pytest.raises(BackendError, match="shares its input"):
            k.module(hidden.clone())
        for hook in hooks:
            hook.remove()


def test_input_scales_are_those_of_the_largest_value(layer):
    ranges = InputRanges()
    with taken_apart(layer) as linears:
        watched = static_linears(linears, layer.modules)
        linears.run([ranges.watch(linear.name, linear.module) for linear in watched])
        ranges.share(OneProcess())
        for plan in layer.modules:
            largest = torch.cat(recorded(layer, plan.name)).abs().max()
            torch.testing.assert_close(input_scale(ranges, plan, linears), (largest / 127.5).view(1))


def test_weights_without_rounded_inputs_have_no_input_scale(layer):
    model = eager_model("llama")
    plain = calibrated_layer(model, planned(model, "w4a16-g32", Gptq()), 0, calibration(1))
    with taken_apart(plain) as linears:
        assert static_linears(linears, plain.modules) == []
        assert input_scale(InputRanges(), plain.modules[0], linears) is None
