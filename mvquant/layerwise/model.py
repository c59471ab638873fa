"""A model of which only what is being run has weights: what comes before the decoder layers, or one of them.

The modules, and what they are called with, are transformers' own: the model runs once over a batch of each shape, and
its layers, which let the states pass as they are, note what else they were given (masks, angles, positions).
"""

import copy
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from mvquant.arch import FAMILIES, ModelView, checkpoint_sources, meta_model
from mvquant.checkpoint.folder import Checkpoint
from mvquant.folding import RowFactors
from mvquant.layerwise.processes import CPU
from mvquant.stats import require_known_tokens


@dataclass(frozen=True, eq=False)
class _Call:
    """What a layer is called with beside the hidden states."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class _AllCalled(Exception):  # noqa: N818 - it is no error
    """Every layer that was to be called was: the model need not run on."""


class LayerModel:
    """A decoder model that is run one layer at a time, with the very numbers that it gives as a whole.

    Attributes:
        model: of transformers, on the meta device but for the part that is being run.
        view: its structure.
        device: where it runs.
        prefix: full name of the list of layers.
        layers: that list.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        view: ModelView,
        factors: Mapping[str, RowFactors] | None = None,
        device: torch.device = CPU,
    ) -> None:
        """Build the model without weights.

        Args:
            checkpoint: where weights are read from.
            view: its structure.
            factors: what is folded into weights as they are read.
            device: to run on.

        Raises:
            CheckpointError: a tensor is missing.
        """
        config = copy.deepcopy(checkpoint.config)
        if config.dtype is None:
            config.dtype = getattr(torch, checkpoint.dtype)
        self.model = meta_model(config).eval()
        self.view, self.device = view, device
        self.prefix = FAMILIES[view.family].layers
        self.layers = cast("nn.ModuleList", self.model.get_submodule(self.prefix))
        self._checkpoint, self._factors = checkpoint, factors or {}
        self._sources = checkpoint_sources(view, checkpoint.files)
        self._computed = {name for name, _ in self.model.named_non_persistent_buffers()}
        self._calls: dict[tuple[int, ...], list[_Call]] = {}

    def __len__(self) -> int:
        """Number of decoder layers."""
        return len(self.layers)

    @property
    def dtype(self) -> torch.dtype:
        """That of the weights and hidden states."""
        return self.model.dtype

    def layer_name(self, index: int) -> str:
        """Return the full name of a layer."""
        return f"{self.prefix}.{index}"

    def embedded(self, batches: Iterable[Int64[Tensor, "_ _"]]) -> Iterator[Float[Tensor, "_ _ hidden"]]:
        """Yield what the first layer gets of every batch, with embeddings in memory meanwhile.

        Raises:
            CalibrationError: tokens or a length that the model does not know.
        """
        with self._front():
            for batch in batches:
                yield self._first_input(batch)

    def learn_calls(self, batches: Iterable[Int64[Tensor, "_ _"]]) -> None:
        """Find out what layers are called with for batches of these shapes, without keeping hidden states."""
        new = {tuple(batch.shape): batch for batch in batches if tuple(batch.shape) not in self._calls}
        for _ in self.embedded(new.values()):
            pass

    @contextmanager
    def layer(self, index: int, replaced: Mapping[str, Tensor] | None = None) -> Generator[nn.Module]:
        """Give a layer with its weights; it is the model's own until the end of the block, and new every time.

        Args:
            index: of the layer.
            replaced: parameters that have other values than on disk, by full name.

        Raises:
            CheckpointError: a tensor that cannot be read.
        """
        empty = self.layers[index]
        module = copy.deepcopy(empty)
        self._fill(module, self.layer_name(index), replaced or {})
        self.layers[index] = module
        try:
            yield module
        finally:
            self.layers[index] = empty

    def run_layer(self, index: int, states: Float[Tensor, "_ _ hidden"]) -> Float[Tensor, "_ _ hidden"]:
        """Run a layer that is in memory on hidden states whose shape was seen before."""
        call = self._calls[tuple(states.shape[:2])][index]
        with torch.no_grad():
            return self.layers[index](states.to(self.device), *call.args, **call.kwargs)

    @contextmanager
    def _front(self) -> Generator[None]:
        """Have everything outside the layers in memory: embeddings, angles, norms; no output head."""
        inside = {module for layer in self.layers for module in layer.modules()}
        names = {module: name for name, module in self.model.named_modules()}
        outside = [module for module in self.model.base_model.modules() if module not in inside]
        empty = [(module, _own_tensors(module)) for module in outside]
        for module in outside:
            self._fill_own(module, names[module], {})
        try:
            yield
        finally:
            for module, tensors in empty:
                for local, tensor in tensors.items():
                    setattr(module, local, tensor)

    def _fill(self, module: nn.Module, name: str, replaced: Mapping[str, Tensor]) -> None:
        for local, child in module.named_modules():
            self._fill_own(child, f"{name}.{local}" if local else name, replaced)

    def _fill_own(self, module: nn.Module, name: str, replaced: Mapping[str, Tensor]) -> None:
        """Give a module, but none inside it, its parameters and buffers."""
        own = _own_tensors(module)
        computed = [local for local in own if f"{name}.{local}" in self._computed]
        for local in computed:
            setattr(module, local, torch.empty_like(own[local], device=self.device))
        if computed:  # frequencies and the like, which no checkpoint holds
            with torch.no_grad():
                self.model._init_weights(module)  # pyright: ignore[reportPrivateUsage]
        for local, empty in own.items():
            if local not in computed:
                value = self._value(f"{name}.{local}", empty, replaced)
                is_parameter = isinstance(empty, nn.Parameter)
                setattr(module, local, nn.Parameter(value, requires_grad=False) if is_parameter else value)

    def _value(self, name: str, empty: Tensor, replaced: Mapping[str, Tensor]) -> Tensor:
        value = replaced.get(name)
        if value is None:
            value = self._read(self.view.tied.get(name, name))
        return value.to(device=self.device, dtype=empty.dtype)

    def _read(self, name: str) -> Tensor:
        source = self._sources[name]
        tensors = self._checkpoint.read(source.tensors)
        value = source.assemble([tensors[part] for part in source.tensors])
        factors = self._factors.get(name)
        return value if factors is None else factors.folded(value)

    def _first_input(self, batch: Int64[Tensor, "batch length"]) -> Float[Tensor, "batch length hidden"]:
        require_known_tokens(batch, self.model)
        found: list[Tensor] = []
        calls: list[_Call] = []
        known = tuple(batch.shape) in self._calls
        wanted = 1 if known else len(self.layers)

        def pass_on(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:  # noqa: ANN401 - as it comes
            found.append(hidden_states)
            calls.append(_Call(args, kwargs))
            if len(calls) == wanted:
                raise _AllCalled
            return hidden_states

        with self._instead_of_layers(pass_on), torch.no_grad(), suppress(_AllCalled):
            self.model.base_model(input_ids=batch.to(self.device), use_cache=False)
        if not known:
            self._calls[tuple(batch.shape)] = calls
        return found[0]

    @contextmanager
    def _instead_of_layers(self, forward: Callable[..., Tensor]) -> Generator[None]:
        for layer in self.layers:
            vars(layer)["forward"] = forward
        try:
            yield
        finally:
            for layer in self.layers:
                del vars(layer)["forward"]


def _own_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers of a module, but of none inside it."""
    return {**dict(module.named_parameters(recurse=False)), **dict(module.named_buffers(recurse=False))}
