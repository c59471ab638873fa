"""Small models in folders, plans for them, and a backend that stops where it is told to."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from mvquant.arch import ModelView, model_view
from mvquant.backends.layer import CalibratedLayer, LayerResult
from mvquant.backends.llmcompressor import GptqBackend
from mvquant.backends.rtn import RoundToNearest
from mvquant.checkpoint.folder import Checkpoint, open_checkpoint
from mvquant.layerwise import Fingerprint
from mvquant.method_settings import Gptq, Rtn
from mvquant.plan import Plan
from mvquant.policies import make_plan
from mvquant.recipe import Protect, Recipe, Weights
from mvquant.scheme import WeightScheme
from tests.tiny_models import tiny_model, tiny_tokens


@dataclass(frozen=True)
class Saved:
    """A tiny model and its folder."""

    model: PreTrainedModel
    checkpoint: Checkpoint
    view: ModelView


def saved(family: str, folder: Path, **changes) -> Saved:
    model = tiny_model(family, **changes)
    model.save_pretrained(folder)
    checkpoint = open_checkpoint(str(folder))
    return Saved(model, checkpoint, model_view(checkpoint.config))


def batches(count: int = 3, length: int = 24) -> list[Tensor]:
    """Of one sequence each; every second one is shorter."""
    return [tiny_tokens(1, length - 8 * (index % 2), seed=index) for index in range(count)]


def planned(view: ModelView, *, bits: int = 4, protect: bool = True, ignore: tuple[str, ...] = ()) -> Plan:
    recipe = Recipe(
        summary="t",
        weights=Weights(scheme=WeightScheme(bits=bits, group_size=32), ignore=ignore),
        protect=Protect(policy="slow-pairs", pairs=0.25) if protect and view.has_rope else Protect(policy="none"),
    )
    return make_plan(view, recipe, model="tiny", dtype="float32")


def fingerprint(**changes) -> Fingerprint:
    made = Fingerprint(model="m", plan="p", calibration="c", settings={"damping": 0.01}, versions={"torch": "2"})
    return made.model_copy(update=changes)


class StoppedError(Exception):
    """Where the backend was told to stop."""


class Watching(RoundToNearest):
    """Rounds to nearest; keeps what layers get and give; stops before a layer."""

    def __init__(self, stop_at: int | None = None, *, sees_rounded: bool = True) -> None:
        super().__init__()
        self.stop_at = stop_at
        self.seen: dict[int, list[Tensor]] = {}
        self._sees_rounded = sees_rounded

    @property
    def sees_rounded(self) -> bool:
        return self._sees_rounded

    def quantize(self, layer: CalibratedLayer) -> LayerResult:
        if layer.index == self.stop_at:
            raise StoppedError
        self.seen[layer.index] = list(layer.run())
        result = super().quantize(layer)
        with torch.no_grad():
            for parameter in layer.module.parameters():
                parameter.zero_()  # the driver must not read the layer again
        return result


class SumsInputs(Watching):
    """Rounds weights whose columns were multiplied by a sum over all sequences: integers depend on it, as in GPTQ."""

    def quantize(self, layer: CalibratedLayer) -> LayerResult:
        sums: dict[str, Tensor] = {}

        def watch(name: str) -> None:
            def add(_module, inputs):
                seen = inputs[0].flatten(0, -2).float()
                sums[name] = sums.get(name, 0.0) + (seen.T @ seen).double()

            hooks.append(layer.module.get_submodule(layer.local(name)).register_forward_pre_hook(add))

        hooks = []
        for module in layer.modules:
            watch(module.name)
        for _ in layer.run():
            pass
        for hook in hooks:
            hook.remove()
        with torch.no_grad():
            for module in layer.modules:
                scale = layer.processes.sum(sums[module.name]).float().sum(dim=0).abs()
                layer.module.get_submodule(layer.local(module.name)).weight.mul_(scale / scale.mean())
        return super().quantize(layer)


class StopsOnce(RoundToNearest):
    """Stops at the third layer, unless it begins there."""

    def __init__(self, settings: Rtn) -> None:
        super().__init__(settings)
        self._done = 0

    def quantize(self, layer: CalibratedLayer) -> LayerResult:
        if layer.index == 2 and self._done:
            raise StoppedError
        self._done += 1
        return super().quantize(layer)


def gptq() -> GptqBackend:
    """A real method, whose package is imported when it is used."""
    return GptqBackend(Gptq())
