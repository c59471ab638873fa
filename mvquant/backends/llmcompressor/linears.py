"""The linears behind planned weights: one each, or two for each expert of a 3-D parameter."""

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedConfig
from transformers.pytorch_utils import Conv1D

from mvquant.backends.layer import CalibratedLayer
from mvquant.backends.llmcompressor.package import every_expert, package
from mvquant.backends.replaced import replaced
from mvquant.errors import UnsupportedModelError
from mvquant.plan import ModulePlan

_PROJECTIONS = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}
"""What the package calls the parts of a 3-D parameter, in the order of its rows."""


@dataclass(frozen=True, eq=False)
class Linear:
    """A linear, by its full name in the package's way of naming."""

    name: str
    module: nn.Module

    @property
    def weight(self) -> Float[Tensor, "rows columns"]:
        """Its weight, rows first."""
        weight = self.module.get_parameter("weight").detach()
        return weight.T.contiguous() if isinstance(self.module, Conv1D) else weight


class LayerLinears:
    """The linears of a layer whose experts are taken apart (see `taken_apart`).

    Attributes:
        by_plan: of every planned weight, its linears in the order of its rows.
        routed: of every module of experts, the tokens that the router sent to each in the last run.
        tokens: that the layer saw in the last run, in all processes.
    """

    def __init__(self, layer: CalibratedLayer, experts: Mapping[str, nn.Module]) -> None:
        self._layer = layer
        self.experts = dict(experts)
        self.by_plan = {plan.name: tuple(self._linears(plan)) for plan in layer.modules}
        self.routed: dict[str, Int64[Tensor, " expert"]] = {}
        self.tokens = 0

    def planned(self) -> Iterator[tuple[ModulePlan, Linear]]:
        """Go through all linears, each with its plan."""
        return ((plan, linear) for plan in self._layer.modules for linear in self.by_plan[plan.name])

    def matrix(self, plan: str) -> Float[Tensor, "rows columns"]:
        """The weight of a plan as it is now; experts flat."""
        return stacked([linear.weight for linear in self.by_plan[plan]])

    def parameter_name(self, name: str) -> str:
        """Return the full name of the parameter that an expert's weight is a part of, or the name as it is."""
        owner, expert, projection, _ = [*name.rsplit(".", 3), "", "", ""][:4]
        if owner not in self.experts or not expert.isdigit():
            return name
        return next(f"{owner}.{whole}" for whole, parts in _PROJECTIONS.items() if projection in parts)

    def parameter(self, name: str) -> Tensor:
        """Return a parameter of the layer by its full name; experts are put together again."""
        owner, _, leaf = name.rpartition(".")
        if owner not in self.experts:
            return self._layer.module.get_parameter(self._layer.local(name))
        weights = [linear.weight for linear in self._expert_linears(owner, leaf)]
        return stacked(weights).view(len(weights) // len(_PROJECTIONS[leaf]), -1, weights[0].shape[1])

    def run(self, hooks: Iterable[RemovableHandle] = (), after: Callable[[], None] | None = None) -> None:
        """Run the layer over the calibration text, every expert on every token; then remove the hooks.

        Args:
            hooks: that were registered for this.
            after: is called after every sequence.
        """
        with ExitStack() as stack, torch.no_grad():
            for hook in [*hooks, *self._router_hooks()]:
                stack.callback(hook.remove)
            stack.enter_context(every_expert() if self.experts else ExitStack())
            seen = torch.zeros((), dtype=torch.int64)
            for hidden in self._layer.run():
                seen += hidden.shape[0] * hidden.shape[1]
                if after is not None:
                    after()
        self.tokens = int(self._layer.processes.sum(seen))
        self.routed = {name: self._layer.processes.sum(tokens) for name, tokens in self.routed.items()}

    def _linears(self, plan: ModulePlan) -> Iterable[Linear]:
        if plan.kind == "experts":
            owner, _, leaf = plan.name.rpartition(".")
            return self._expert_linears(owner, leaf)
        return [Linear(plan.name, self._layer.module.get_submodule(self._layer.local(plan.name)))]

    def _expert_linears(self, owner: str, leaf: str) -> Iterable[Linear]:
        module = self.experts[owner]
        for expert in range(_count(module)):
            for projection in _PROJECTIONS[leaf]:
                yield Linear(f"{owner}.{expert}.{projection}", module.get_submodule(f"{expert}.{projection}"))

    def _router_hooks(self) -> Iterable[RemovableHandle]:
        self.routed = {}
        return [module.register_forward_pre_hook(self._counter(name)) for name, module in self.experts.items()]

    def _counter(self, name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def count(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            tokens = inputs[1].flatten().bincount(minlength=_count(module))
            self.routed[name] = self.routed.get(name, torch.zeros_like(tokens)) + tokens

        return count


def _count(experts: nn.Module) -> int:
    return cast("int", experts.num_experts)


def stacked(matrices: Sequence[Tensor]) -> Tensor:
    """Put rows together, without copying where there is one matrix."""
    return matrices[0] if len(matrices) == 1 else torch.cat(list(matrices))


@contextmanager
def taken_apart(layer: CalibratedLayer) -> Generator[LayerLinears]:
    """Stand linears in for 3-D expert parameters, of which they are views, so that hooks see each expert's inputs.

    Raises:
        UnsupportedModelError: experts of a shape that the package cannot take apart, or with rounded activations.
    """
    for plan in layer.modules:
        if plan.kind == "experts" and plan.scheme.activations:
            raise UnsupportedModelError(
                f"{plan.name}: {layer.config.model_type} has experts whose activations cannot be rounded "
                f"({plan.scheme.name}); leave them as they are (ignore: ['*.experts.*']) or choose w8a16"
            )
    found = {name: module for name, module in layer.module.named_modules() if _is_experts(module)}
    linear = {name: _linear_experts(f"{layer.name}.{name}", each, layer.config) for name, each in found.items()}
    for name, module in linear.items():
        layer.module.set_submodule(name, module)
    try:
        yield LayerLinears(layer, {f"{layer.name}.{name}": module for name, module in linear.items()})
    finally:
        for name, module in found.items():
            _put_back(module, linear[name])
            layer.module.set_submodule(name, module)


def _is_experts(module: nn.Module) -> bool:
    return any(parameter.ndim == 3 for parameter in module.parameters(recurse=False))


def _linear_experts(name: str, experts: nn.Module, config: PreTrainedConfig) -> nn.Module:
    """Build the package's module of experts around the weights that are there."""
    kind = package("modeling.moe.linear_experts").LinearExperts2D
    try:
        kind = kind.get_linear_experts_cls(type(experts))
    except ValueError as error:
        raise UnsupportedModelError(f"{name}: llmcompressor cannot take its experts apart ({error})") from None
    if kind.is_transposed or kind.has_bias or not kind.has_gate:
        raise UnsupportedModelError(
            f"{name}: experts of {config.model_type} are transposed, have biases or no gate, which is not foreseen"
        )
    # read from a file, a config has the name of the dtype, which the package cannot read
    dtype = next(experts.parameters()).dtype
    with torch.device("meta"), replaced(config, dtype=dtype):
        linear: nn.Module = kind(config)
    for place, part in _expert_weights(experts):
        linear.get_submodule(place).weight = nn.Parameter(part, requires_grad=False)
    return linear.eval()


def _expert_weights(experts: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Go through the weights of every expert, views of 3-D parameters, by the names that their linears get."""
    for parameter, projections in _PROJECTIONS.items():
        for index, rows in enumerate(experts.get_parameter(parameter).detach()):
            for projection, part in zip(projections, rows.chunk(len(projections)), strict=True):
                yield f"{index}.{projection}", part


def _put_back(experts: nn.Module, linear: nn.Module) -> None:
    """Copy weights that the package moved elsewhere back into the parameters."""
    for name, part in _expert_weights(experts):
        weight = linear.get_parameter(f"{name}.weight").detach()
        if weight.data_ptr() != part.data_ptr():
            part.copy_(weight)
