"""A driver over a whole tiny model in memory: every layer in turn through a layer backend."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from mvquant.arch import find_family, model_view
from mvquant.backends.layer import CalibratedLayer, LayerBackend, LayerResult, ModuleRecord, Processes
from mvquant.method_settings import MethodSettings
from mvquant.plan import CalibrationRecord, ModulePlan, Plan
from mvquant.policies.make_plan import make_plan
from mvquant.quant import mixed_state
from mvquant.recipe import Protect, Recipe, Weights
from mvquant.scheme import WeightScheme
from tests.tiny_models import tiny_model, tiny_tokens

LENGTH = 48


class OneProcess:
    rank = 0
    size = 1

    def sum(self, tensor: Tensor) -> Tensor:
        return tensor.clone()

    def maximum(self, tensor: Tensor) -> Tensor:
        return tensor.clone()


def planned(
    model: PreTrainedModel, scheme: str, method: MethodSettings, *, protect: Protect | None = None, ignore: tuple = ()
) -> Plan:
    """Plan all weights of a model; group sizes that do not fit its small matrices are refused."""
    weights = Weights(scheme=WeightScheme.model_validate(scheme), method=method, ignore=ignore)
    recipe = Recipe(summary="a test", weights=weights, protect=protect or Protect(policy="none"))
    text = CalibrationRecord(source="random tokens", sequences=4, length=LENGTH, seed=0, hash="0" * 64)
    dtype = str(model.dtype).removeprefix("torch.")
    return make_plan(model_view(model.config), recipe, model="tiny", dtype=dtype, calibration=text)


def calibration(sequences: int = 4, seed: int = 0) -> list[Tensor]:
    """Sequences of random tokens."""
    return list(tiny_tokens(sequences, LENGTH, seed).split(1))


def eager_model(family: str, dtype: torch.dtype = torch.float32, **changes: object) -> PreTrainedModel:
    """A tiny model that computes attention as the package has it computed."""
    model = tiny_model(family, dtype=dtype, **changes)
    model.set_attn_implementation("eager")
    return model


class _SeenError(Exception):
    pass


@dataclass
class Results:
    """`WeightResults` of a model in memory, with what the layers gave."""

    plans: dict[str, ModulePlan]
    layers: list[LayerResult] = field(default_factory=list)

    @property
    def changed(self) -> list[str]:
        return [name for layer in self.layers for name in layer.parameters]

    def parameter(self, name: str) -> Tensor:
        return next(layer.parameters[name] for layer in self.layers if name in layer.parameters)

    def state(self, module: str) -> dict[str, Tensor]:
        plan, made = self.plans[module], self.modules[module]
        return mixed_state(
            made.base, plan.scheme, made.kept, plan.protected_scheme, plan.protected_rows, made.input_scale
        )

    @property
    def modules(self) -> Mapping:
        return {name: module for layer in self.layers for name, module in layer.modules.items()}

    @property
    def records(self) -> dict[str, ModuleRecord]:
        return {record.module: record for layer in self.layers for record in layer.records}

    def integers(self) -> dict[str, Tensor]:
        return {name: module.base.integers for name, module in self.modules.items()}


def quantized(
    model: PreTrainedModel, plan: Plan, backend: LayerBackend, batches: list[Tensor], *, seen_as_left: bool = False
) -> Results:
    """Quantize every layer in turn.

    Args:
        seen_as_left: later layers see what this one gives as the backend leaves it, scaled but not rounded.
    """
    results = Results({module.name: module for module in plan.modules})
    prefix = find_family(model.config).layers
    for index in range(len(list(model.get_submodule(prefix).children()))):
        layer = calibrated_layer(model, plan, index, batches)
        before = {name: value.clone() for name, value in layer.module.state_dict().items()}
        result = backend.quantize(layer)
        assert {name: value.shape for name, value in layer.module.state_dict().items()} == {
            name: value.shape for name, value in before.items()
        }
        results.layers.append(result)
        if not seen_as_left:
            layer.module.load_state_dict(before)
        if backend.sees_rounded:
            _write(model, plan, result)
    return results


def calibrated_layer(
    model: PreTrainedModel, plan: Plan, index: int, batches: list[Tensor], processes: Processes | None = None
) -> CalibratedLayer:
    name = f"{find_family(model.config).layers}.{index}"
    module = model.get_submodule(name)
    inputs = [_layer_inputs(model, module, batch) for batch in batches]

    def run() -> Iterator[Tensor]:
        for args, kwargs in inputs:
            with torch.no_grad():
                output = module(*args, **kwargs)
            yield output[0] if isinstance(output, tuple) else output

    plans = tuple(each for each in plan.modules if each.layer == index and each.scheme.is_quantized)
    return CalibratedLayer(index, name, module, plans, model.config, run, processes or OneProcess())


def _layer_inputs(model: PreTrainedModel, module: nn.Module, batch: Tensor) -> tuple:
    seen = []

    def see(_module, args, kwargs):
        seen.append((args, kwargs))
        raise _SeenError

    hook = module.register_forward_pre_hook(see, with_kwargs=True)
    try:
        with torch.no_grad():
            model(batch, use_cache=False)
    except _SeenError:
        pass
    finally:
        hook.remove()
    return seen[0]


def _write(model: PreTrainedModel, plan: Plan, result: LayerResult) -> None:
    weights = {weight.name: weight for weight in model_view(model.config).weights}
    plans = {module.name: module for module in plan.modules}
    with torch.no_grad():
        for name, value in result.parameters.items():
            model.get_parameter(name).copy_(value)
        for name, made in result.modules.items():
            parameter = model.get_parameter(weights[name].parameter)
            values = made.base.dequantize(plans[name].scheme, parameter.dtype)
            parameter.copy_((values.T if weights[name].transposed else values).reshape(parameter.shape))
