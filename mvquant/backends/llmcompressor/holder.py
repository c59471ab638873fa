"""A stand-in for the model around one decoder layer, in which the package finds modules by their full names."""

from collections.abc import Generator, Iterable
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from mvquant.backends.layer import CalibratedLayer
from mvquant.backends.llmcompressor.linears import LayerLinears
from mvquant.backends.llmcompressor.package import package


@contextmanager
def held(layer: CalibratedLayer) -> Generator[nn.Module]:
    """Hold a layer under its full name, its norms plain (see `_plain_norms`)."""
    root = nn.Module()
    parent = root
    *path, leaf = layer.name.split(".")
    for name in path:
        child = nn.Module()
        parent.add_module(name, child)
        parent = child
    parent.add_module(leaf, layer.module)
    with _plain_norms(layer):
        yield root.eval()


@contextmanager
def _plain_norms(layer: CalibratedLayer) -> Generator[None]:
    """Replace norms that multiply by 1 + weight, as Gemma's, by the package's that multiply by the weight.

    Their weights are float32 meanwhile, and those that no scale went into are left as they were: the package's own
    context rounds 1 + weight to the model's dtype, in all norms.
    """
    kinds = package("modeling.offset_norm")
    norms = {
        name: module
        for name, module in layer.module.named_modules()
        if kinds._is_registered(type(module).__name__, kinds.NormCalibrationModule)
    }
    plain: dict[str, nn.Module] = {}
    for name, norm in norms.items():
        plain[name] = kinds.NormCalibrationModule.load_from_registry(
            type(norm).__name__, original=norm, config=layer.config
        )
        plain[name].weight = nn.Parameter(1 + norm.get_parameter("weight").detach().float(), requires_grad=False)
        layer.module.set_submodule(name, plain[name])
    before = {name: norm.get_parameter("weight").clone() for name, norm in plain.items()}
    try:
        yield
    finally:
        for name, norm in norms.items():
            weight = plain[name].get_parameter("weight")
            if not torch.equal(weight, before[name]):
                norm.get_parameter("weight").data.copy_(weight - 1)
            layer.module.set_submodule(name, norm)


def scaled_parameters(layer: CalibratedLayer, mappings: Iterable[tuple[nn.Module, Iterable[nn.Module]]]) -> set[str]:
    """Name the parameters, within the layer, that scales went out of or into.

    Args:
        layer: as the package sees it.
        mappings: modules whose outputs were divided, each with those whose weights were multiplied.
    """
    names = {id(module): name for name, module in layer.module.named_modules()}
    found: set[str] = set()
    for smooth, balance in mappings:
        found |= {f"{names[id(smooth)]}.{leaf}" for leaf, _ in smooth.named_parameters(recurse=False)}
        found |= {f"{names[id(module)]}.weight" for module in balance}
    return found


def changed_parameters(layer: CalibratedLayer, linears: LayerLinears, scaled: Iterable[str]) -> dict[str, Tensor]:
    """Collect the parameters that scales changed and that are no planned weights, by full name.

    Args:
        layer: after scaling, its norms its own again.
        linears: of it, still apart.
        scaled: names of parameters within the layer.
    """
    planned = {plan.name if plan.kind == "experts" else f"{plan.name}.weight" for plan in layer.modules}
    names = {linears.parameter_name(f"{layer.name}.{name}") for name in scaled} - planned
    return {name: linears.parameter(name).detach().clone() for name in sorted(names)}
