"""What a calibrated method might make of a model: rounded weights, scales of activations, changed parameters."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from mvquant.plan import Plan
from mvquant.quant import mixed_state, round_to_nearest
from mvquant.quant.activations import activation_scale
from tests.tiny_models import tiny_tokens


@dataclass(frozen=True)
class FakeResults:
    """`WeightResults` from two mappings."""

    states: Mapping[str, Mapping[str, torch.Tensor]]
    parameters: Mapping[str, torch.Tensor] = field(default_factory=dict)

    @property
    def changed(self) -> list[str]:
        return list(self.parameters)

    def parameter(self, name: str) -> torch.Tensor:
        return self.parameters[name]

    def state(self, module: str) -> dict[str, torch.Tensor]:
        return dict(self.states[module])


def fake_results(model: PreTrainedModel, plan: Plan, shift: int = 0) -> FakeResults:
    """Round to nearest, but `shift` steps off; protected rows as they are; every norm and bias half as large again."""
    scales = input_scales(model, plan)
    states = {}
    for module in plan.modules:
        if module.kind == "experts":
            weight = model.get_parameter(module.name)
        else:
            linear = model.get_submodule(module.name)
            weight = linear.weight.T if isinstance(linear, Conv1D) else linear.weight
        matrix = weight.detach().reshape(module.rows, module.columns)
        base = round_to_nearest(matrix, module.scheme)
        highest = 2 ** (module.scheme.bits - 1) - 1
        base.integers[base.integers <= highest - shift] += shift
        kept = matrix
        if module.protected_scheme and module.protected_scheme.is_quantized:
            kept = round_to_nearest(matrix, module.protected_scheme)
        scale = scales[module.name] if module.scheme.activations == "tensor" else None
        states[module.name] = mixed_state(
            base, module.scheme, kept, module.protected_scheme, module.protected_rows, scale
        )
    changed = {name: tensor.detach() * 1.5 for name, tensor in model.named_parameters() if tensor.ndim == 1}
    return FakeResults(states, changed)


def input_scales(model: PreTrainedModel, plan: Plan) -> dict[str, torch.Tensor]:
    """Scales of activations from what the linears see of some tokens."""
    seen: dict[str, torch.Tensor] = {}
    handles = [
        model.get_submodule(module.name).register_forward_pre_hook(
            lambda _, inputs, name=module.name: seen.update({name: activation_scale(inputs[0].abs().amax().view(1))})
        )
        for module in plan.modules
        if module.kind == "linear"
    ]
    with torch.no_grad():
        model(tiny_tokens(4, 32, seed=5))
    for handle in handles:
        handle.remove()
    return seen
