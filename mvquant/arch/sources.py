"""Which tensors of a checkpoint make which parameter: to stream a model without building it.

Most parameters are one tensor of the same name. Others were renamed since they were saved, or are put
together from many: checkpoints of Mixtral and Qwen3-MoE keep every expert apart, transformers stacks
them. The rules are transformers' own (`conversion_mapping`), applied in the order of `from_pretrained`.
"""

import copy
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import PreTrainedConfig
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    MergeModulelist,
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)

from mvquant.arch.views import ModelView, meta_model
from mvquant.errors import CheckpointError

SHOWN = 5
"""Names listed in an error before it says how many more there are."""


@dataclass(frozen=True)
class Source:
    """The tensors on disk that make one parameter."""

    parameter: str
    shape: tuple[int, ...]
    tensors: tuple[str, ...]
    """Names on disk, in the order that `assemble` takes them."""
    patterns: tuple[str, ...] = ()
    """Of each tensor, the pattern of `converter` that it matched."""
    converter: WeightConverter | None = None
    """How the tensors are put together; None where there is one, taken as it is."""
    config: PreTrainedConfig | None = None

    def assemble(self, tensors: list[Tensor]) -> Tensor:
        """Make the parameter; dtype and device are those on disk.

        Raises:
            CheckpointError: the result has not the shape that the config asks for.
        """
        value = tensors[0] if self.converter is None else self._convert(self.converter, tensors)
        if tuple(value.shape) != self.shape:
            message = (
                f"{self.parameter} has shape {tuple(value.shape)} in the checkpoint and {self.shape} in the "
                f"model that config.json describes: use the config.json that was saved with these weights"
            )
            raise CheckpointError(message)
        return value

    def _convert(self, converter: WeightConverter, tensors: list[Tensor]) -> Tensor:
        collecting = copy.deepcopy(converter)
        for name, pattern, tensor in zip(self.tensors, self.patterns, tensors, strict=True):
            # transformers types this as a Future, and takes tensors as they are when it saves
            collecting.add_tensor(self.parameter, name, pattern, tensor)  # pyright: ignore[reportArgumentType]
        made: dict[str, Any] = collecting.convert(self.parameter, config=self.config)
        value = made[self.parameter]
        return value[0] if isinstance(value, list) else value


@dataclass(frozen=True)
class _Match:
    """What one name on disk stands for."""

    parameter: str
    pattern: str
    converter: WeightConverter | None


def checkpoint_sources(view: ModelView, names_on_disk: Iterable[str]) -> dict[str, Source]:
    """Find the tensors on disk for every parameter of the model, in the order of `view.parameters`.

    Raises:
        CheckpointError: parameters without a tensor, experts that are incomplete, or two tensors for
            one parameter; the message names the first few.
    """
    found: dict[str, list[tuple[str, _Match]]] = defaultdict(list)
    for name, match in _matches(view, names_on_disk).items():
        found[match.parameter].append((name, match))
    for alias, owner in view.tied.items():
        # a checkpoint may hold the tied tensor under its other name only
        if owner not in found and alias in found:
            found[owner] = found[alias]
    missing = [name for name in view.parameters if name not in found]
    if missing:
        message = f"the checkpoint lacks {_listed(missing)}: config.json and weights seem to be of different models"
        raise CheckpointError(message)
    return {name: _source(view, name, found[name]) for name in view.parameters}


def unexpected_tensors(view: ModelView, names_on_disk: Iterable[str]) -> list[str]:
    """Names on disk that make no parameter, leftovers that transformers ignores too not counted."""
    names = list(names_on_disk)
    matched = _matches(view, names)
    # these two buffers used to be saved; transformers forgives them in code rather than in a table
    patterns = {r"rotary_emb\.inv_freq$", r"(^|\.)position_ids$"}
    patterns |= set(getattr(meta_model(view.config), "_keys_to_ignore_on_load_unexpected", None) or ())
    forgiven = re.compile("|".join(f"({pattern})" for pattern in sorted(patterns)))
    return [name for name in names if name not in matched and not forgiven.search(name)]


def tied_on_disk(view: ModelView, names_on_disk: Iterable[str]) -> list[tuple[str, str]]:
    """Pairs of names on disk that the config ties together.

    transformers ties them only if the two tensors are equal, and keeps both otherwise, so a reader of
    the checkpoint has to compare them.
    """
    by_parameter = {match.parameter: name for name, match in _matches(view, names_on_disk).items()}
    return [
        (by_parameter[alias], by_parameter[owner])
        for alias, owner in view.tied.items()
        if alias in by_parameter and owner in by_parameter
    ]


def _matches(view: ModelView, names_on_disk: Iterable[str]) -> dict[str, _Match]:
    """Read every name on disk as `from_pretrained` does; names of nothing are left out."""
    model = meta_model(view.config)
    transforms = get_model_conversion_mapping(model)
    renamings = [transform for transform in transforms if isinstance(transform, WeightRenaming)]
    converters = [transform for transform in transforms if isinstance(transform, WeightConverter)]
    by_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    known = dict.fromkeys([*view.parameters, *view.tied], True)
    prefix = model.base_model_prefix
    matches: dict[str, _Match] = {}
    for name in sorted(names_on_disk, key=dot_natural_key):
        renamed, pattern = rename_source_key(name, renamings, converters, prefix, known)
        if renamed not in known and name in known:
            renamed, pattern = rename_source_key(name, [], [], prefix, known)
        if renamed in known:
            matches[name] = _Match(renamed, pattern or name, by_pattern[pattern] if pattern else None)
    return matches


def _source(view: ModelView, parameter: str, found: list[tuple[str, _Match]]) -> Source:
    shape = view.parameters[parameter]
    names = tuple(name for name, _ in found)
    converter = found[0][1].converter
    if converter is None or any(match.converter is not converter for _, match in found):
        if len(names) > 1:
            message = f"the checkpoint has {len(names)} tensors for {parameter}: {_listed(names)}; remove all but one"
            raise CheckpointError(message)
        return Source(parameter, shape, names)
    patterns = tuple(match.pattern for _, match in found)
    merges = any(isinstance(operation, MergeModulelist) for operation in converter.operations)
    for pattern in converter.source_patterns:
        count = patterns.count(pattern)
        expected = shape[0] if merges else patterns.count(converter.source_patterns[0])
        if count != expected:
            message = f"the checkpoint has {count} of the {expected} tensors {pattern} that make {parameter}"
            raise CheckpointError(message)
    return Source(parameter, shape, names, patterns, converter, view.config)


def _listed(names: Iterable[str]) -> str:
    every = list(names)
    rest = f" and {len(every) - SHOWN} more" if len(every) > SHOWN else ""
    return ", ".join(every[:SHOWN]) + rest
