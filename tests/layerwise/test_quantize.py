"""What a backend is given, what the next layer sees, what becomes of results, and going on after an interruption."""

import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mvquant.backends.layer import LayerResult
from mvquant.backends.rtn import RoundToNearest
from mvquant.checkpoint.write import write_checkpoint
from mvquant.errors import BackendError, CalibrationError, CheckpointError
from mvquant.layerwise import LayerModel, opened_work, quantize_layers
from mvquant.methods import plan_factors
from mvquant.quant import round_to_nearest
from tests.layerwise.examples import StoppedError, Watching, batches, fingerprint, planned, saved
from tests.tiny_models import FAMILY_NAMES


def quantized(world, plan, backend, work, *, resume=False, **options):
    """Quantize and write a checkpoint; return the bytes of its weights."""
    with opened_work(work, fingerprint(), resume=resume) as folder:
        model = LayerModel(world.checkpoint, world.view, plan_factors(plan, world.view))
        results = quantize_layers(model, plan, batches(), backend, folder, **options)
        out = work.with_suffix(".out")
        write_checkpoint(world.checkpoint, world.view, plan, out, results=results, overwrite=out.exists())
        folder.remove()
    return (out / "model.safetensors").read_bytes()


def outputs_of_layer(model, prefix, index):
    """What a layer of a whole model gives for every batch."""
    outputs = []
    hook = model.get_submodule(f"{prefix}.{index}").register_forward_hook(lambda _m, _i, output: outputs.append(output))
    with torch.no_grad():
        for batch in batches():
            model.base_model(input_ids=batch, use_cache=False)
    hook.remove()
    return outputs


def round_first_layer(world, plan):
    """Put the weights of the first layer, all rows in the base scheme, into the whole model."""
    parameters = {weight.name: weight for weight in world.view.weights}
    for module in plan.modules:
        if module.layer == 0:
            parameter = world.model.get_parameter(parameters[module.name].parameter)
            matrix = parameter.T if parameters[module.name].transposed else parameter
            flat = matrix.detach().reshape(module.rows, module.columns)
            value = round_to_nearest(flat, module.scheme).dequantize(module.scheme, flat.dtype).view(module.shape)
            parameter.data.copy_(value.T if parameters[module.name].transposed else value)


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_rounding_layer_by_layer_writes_what_rounding_weight_by_weight_writes(family, tmp_path):
    world = saved(family, tmp_path / "model")
    plan = planned(world.view)
    write_checkpoint(world.checkpoint, world.view, plan, tmp_path / "plain")
    by_layers = quantized(world, plan, RoundToNearest(), tmp_path / "work")
    assert by_layers == (tmp_path / "plain" / "model.safetensors").read_bytes()
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral"])
def test_a_layer_sees_the_layers_before_it_in_the_base_scheme(family, tmp_path):
    world = saved(family, tmp_path / "model")
    plan = planned(world.view, bits=2)
    backend = Watching()
    quantized(world, plan, backend, tmp_path / "work")
    prefix = world.view.attentions[0].module.rpartition(".0.")[0]
    plain = outputs_of_layer(world.model, prefix, 0)
    assert all(torch.equal(ours, whole) for ours, whole in zip(backend.seen[0], plain, strict=True))
    round_first_layer(world, plan)
    rounded = outputs_of_layer(world.model, prefix, 1)
    assert all(torch.equal(ours, whole) for ours, whole in zip(backend.seen[1], rounded, strict=True))


def test_protecting_rows_changes_nothing_that_later_layers_see(tmp_path):
    world = saved("llama", tmp_path / "model")
    seen = []
    for protect in (False, True):
        backend = Watching()
        quantized(world, planned(world.view, bits=2, protect=protect), backend, tmp_path / f"work{protect}")
        seen.append(backend.seen[1])
    assert all(torch.equal(one, two) for one, two in zip(*seen, strict=True))


def test_a_method_can_ask_for_layers_as_they_were(tmp_path):
    world = saved("llama", tmp_path / "model")
    backend = Watching(sees_rounded=False)
    quantized(world, planned(world.view, bits=2), backend, tmp_path / "work")
    plain = outputs_of_layer(world.model, "model.layers", 1)
    assert all(torch.equal(ours, whole) for ours, whole in zip(backend.seen[1], plain, strict=True))


@pytest.mark.parametrize("limit", [0, 1 << 20])
@pytest.mark.parametrize("stop_at", [1, 2])
def test_an_interrupted_run_goes_on_and_writes_the_same_bytes(stop_at, limit, tmp_path):
    world = saved("gemma3_text", tmp_path / "model")
    plan = planned(world.view, bits=2)
    whole = quantized(world, plan, Watching(), tmp_path / "whole")
    with pytest.raises(StoppedError):
        quantized(world, plan, Watching(stop_at), tmp_path / "work", limit=limit)
    backend = Watching()
    assert quantized(world, plan, backend, tmp_path / "work", resume=True, limit=limit) == whole
    assert list(backend.seen) == list(range(stop_at, 3))


KILLED = """
import os, signal, sys
from pathlib import Path
from tests.layerwise.examples import *
from mvquant.layerwise import LayerModel, opened_work, quantize_layers

class Killed(Watching):
    def quantize(self, layer):
        if layer.index == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().quantize(layer)

checkpoint = open_checkpoint(sys.argv[1])
view = model_view(checkpoint.config)
with opened_work(Path(sys.argv[2]), fingerprint()) as folder:
    quantize_layers(LayerModel(checkpoint, view), planned(view, bits=2), batches(), Killed(), folder)
"""


def test_a_killed_run_goes_on_and_writes_the_same_bytes(tmp_path):
    world = saved("llama", tmp_path / "model")
    plan = planned(world.view, bits=2)
    whole = quantized(world, plan, Watching(), tmp_path / "whole")
    command = [sys.executable, "-c", KILLED, str(tmp_path / "model"), str(tmp_path / "work")]
    assert subprocess.run(command, check=False, cwd=Path.cwd(), capture_output=True).returncode == -signal.SIGKILL
    backend = Watching()
    assert quantized(world, plan, backend, tmp_path / "work", resume=True) == whole
    assert list(backend.seen) == [1]


def test_a_run_killed_before_the_first_layer_was_done_begins_anew(tmp_path):
    world = saved("llama", tmp_path / "model")
    with pytest.raises(StoppedError):
        quantized(world, planned(world.view), Watching(0), tmp_path / "work")
    assert not (tmp_path / "work").exists()
    (tmp_path / "work" / "inputs-00000").mkdir(parents=True)
    (tmp_path / "work" / "lock").touch()
    (tmp_path / "work" / "inputs-00000" / "000000.safetensors").touch()
    quantized(world, planned(world.view), Watching(), tmp_path / "work")


def test_modules_that_are_not_planned_stay_as_they_are(tmp_path):
    world = saved("llama", tmp_path / "model")
    backend = Watching()
    quantized(world, planned(world.view, ignore=("*.down_proj", "model.layers.0.*")), backend, tmp_path / "work")
    assert list(backend.seen) == [1]
    written = load_file(tmp_path / "work.out" / "model.safetensors")
    for name in ("model.layers.1.mlp.down_proj.weight", "model.layers.0.self_attn.q_proj.weight"):
        assert torch.equal(written[name], world.model.get_parameter(name))


class Scaling(RoundToNearest):
    """Moves a factor of 2 from the norm into Q, K and V, exactly."""

    def quantize(self, layer):
        norm = layer.module.input_layernorm.weight
        with torch.no_grad():
            norm.div_(2)
            for name in ("q_proj", "k_proj", "v_proj"):
                layer.module.get_submodule(f"self_attn.{name}").weight.mul_(2)
        name = f"{layer.name}.input_layernorm.weight"
        return replace(super().quantize(layer), parameters={name: norm.detach().clone()})


def test_parameters_that_a_method_changes_are_written_and_seen_by_later_layers(tmp_path):
    world = saved("llama", tmp_path / "model")
    plan = planned(world.view)
    plain = Watching()
    quantized(world, plan, plain, tmp_path / "plain")

    class Both(Watching, Scaling):
        pass

    scaled = Both()
    quantized(world, plan, scaled, tmp_path / "work")
    name = "model.layers.0.input_layernorm.weight"
    written = load_file(tmp_path / "work.out" / "model.safetensors")
    assert torch.equal(written[name], world.model.get_parameter(name) / 2)
    assert all(torch.equal(one, two) for one, two in zip(plain.seen[1], scaled.seen[1], strict=True))


def test_loss_and_layers_are_told(tmp_path):
    world = saved("llama", tmp_path / "model")
    told = []
    quantized(world, planned(world.view), Watching(), tmp_path / "work", progress=lambda *each: told.append(each))
    assert [each[1:] for each in told] == [(0, 2), (1, 2), (2, 2)]
    assert told[0][0] == ""
    assert all(each[0].startswith("loss 0.0") for each in told[1:])


def broken(change):
    class Broken(RoundToNearest):
        def quantize(self, layer):
            result = super().quantize(layer)
            name = layer.modules[0].name
            return LayerResult({**result.modules, name: change(result.modules[name])})

    return Broken()


def without_scale(module):
    scale = module.base.grid.scale.clone()
    scale[0, 0] = float("nan")
    return replace(module, base=replace(module.base, grid=replace(module.base.grid, scale=scale)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda module: replace(module, base=module.base.rows(torch.arange(3))), r"integers of shape \(3, 64\)"),
        (lambda module: replace(module, kept=None), "nothing for its protected rows"),
        (lambda module: replace(module, input_scale=torch.ones(1)), "scale of its inputs"),
        (without_scale, "scales that are NaN"),
    ],
)
def test_results_that_make_no_checkpoint_are_refused(change, message, tmp_path):
    world = saved("llama", tmp_path / "model")
    with pytest.raises(BackendError, match=message):
        quantized(world, planned(world.view), broken(change), tmp_path / "work")


def test_a_module_left_out_is_refused(tmp_path):
    class Lazy(RoundToNearest):
        def quantize(self, layer):
            return LayerResult({})

    world = saved("llama", tmp_path / "model")
    with pytest.raises(BackendError, match=r"layers\.0\.self_attn\.q_proj is planned, and the method returned nothing"):
        quantized(world, planned(world.view), Lazy(), tmp_path / "work")


def test_weights_and_states_that_are_nan_are_named(tmp_path):
    world = saved("llama", tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.1.mlp.up_proj.weight"][0, 0] = float("nan")
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.up_proj\.weight: 1 of 8192 weights"):
        quantized(world, planned(world.view), RoundToNearest(), tmp_path / "work")
    tensors["model.layers.1.mlp.up_proj.weight"][0, 0] = 0.0
    tensors["model.layers.0.mlp.down_proj.weight"][:] = 3e38
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(CalibrationError, match=r"layers\.0 gives NaN or infinite values on calibration sequence 0"):
        quantized(world, planned(world.view, ignore=("*.down_proj",)), RoundToNearest(), tmp_path / "work2")


def test_records_are_kept_with_the_layers(tmp_path):
    world = saved("llama", tmp_path / "model")
    plan = planned(world.view)
    with opened_work(tmp_path / "work", fingerprint()) as folder:
        results = quantize_layers(LayerModel(world.checkpoint, world.view), plan, batches(), RoundToNearest(), folder)
        assert [record.module for record in results.records] == [module.name for module in plan.modules]
        assert json.loads((folder.path / "fingerprint.json").read_text())["plan"] == "p"
        assert not list(folder.path.glob("inputs-*"))
