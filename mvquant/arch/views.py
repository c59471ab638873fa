"""A model as mvquant sees it: its attentions, the weights that can be quantized, and all parameters.

A view is made from the config alone, by building the model on the meta device: no weight is read.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from mvquant.arch.families import FAMILIES, Family
from mvquant.errors import UnsupportedModelError
from mvquant.heads import HeadRows, Role
from mvquant.rope import head_dim, rotary_dim


@dataclass(frozen=True)
class AttentionView:
    """One attention: where its heads lie in the rows of its projections."""

    layer: int
    module: str
    """Full name, as `model.layers.0.self_attn`."""
    layer_type: str | None
    """What `mvquant.rope` wants to know of this layer, as `"sliding_attention"`; None where layers do not differ."""
    q: HeadRows
    k: HeadRows
    v: HeadRows


@dataclass(frozen=True)
class WeightView:
    """One weight that can be quantized: a Linear of a decoder layer, or a 3-D parameter of experts."""

    name: str
    """Full name of the Linear (`model.layers.0.mlp.down_proj`) or of the experts' parameter."""
    kind: Literal["linear", "experts"]
    shape: tuple[int, ...]
    """(rows, columns) or (experts, rows, columns); rows are output features."""
    bias: bool
    layer: int
    transposed: bool = False
    """Stored as [columns, rows], as GPT-2's `Conv1D` does; `shape` is (rows, columns) all the same."""

    @property
    def parameter(self) -> str:
        """Full name of the tensor, as in `ModelView.parameters`."""
        return f"{self.name}.weight" if self.kind == "linear" else self.name


@dataclass(frozen=True)
class ModelView:
    """A decoder-only model: attentions and weights in order of depth, and every parameter."""

    family: str
    """`config.model_type`, a key of `FAMILIES`."""
    config: PreTrainedConfig
    attentions: tuple[AttentionView, ...]
    weights: tuple[WeightView, ...]
    """All that can be quantized; routers, norms, embeddings and lm_head are left out."""
    parameters: dict[str, tuple[int, ...]]
    """Shape of every parameter and saved buffer; of tied ones, the name that owns the tensor."""
    tied: dict[str, str]
    """Further names of tied parameters, each with the name in `parameters` that it shares."""

    @property
    def has_rope(self) -> bool:
        """Whether any attention turns its queries and keys."""
        return any(attention.q.rotary_dim for attention in self.attentions)


def meta_model(config: PreTrainedConfig) -> PreTrainedModel:
    """Build the model of `config` on the meta device: modules and shapes, no numbers.

    Raises:
        UnsupportedModelError: a family that is not in the table.
    """
    find_family(config)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(copy.deepcopy(config))


def model_view(config: PreTrainedConfig) -> ModelView:
    """Read a model's structure off its config.

    Raises:
        UnsupportedModelError: a family that is not in the table, or shapes that the table does not foresee.

    >>> from transformers import LlamaConfig
    >>> view = model_view(LlamaConfig(hidden_size=64, intermediate_size=96, num_hidden_layers=1, vocab_size=99,
    ...                               num_attention_heads=4, num_key_value_heads=2))
    >>> view.attentions[0].k.module, view.attentions[0].k.pair_rows(pair=0, head=1)
    ('model.layers.0.self_attn.k_proj', (16, 24))
    >>> [(weight.name.split(".")[-1], weight.shape) for weight in view.weights[3:5]]
    [('o_proj', (64, 64)), ('gate_proj', (96, 64))]
    """
    family = find_family(config)
    _check_rotary_dims(config, family)
    model = meta_model(config)
    layers: list[nn.Module] = list(model.get_submodule(family.layers).children())
    weights = tuple(weight for layer, module in enumerate(layers) for weight in _weights(family, layer, module))
    ties = _ties(model)
    return ModelView(
        family=config.model_type,
        config=config,
        attentions=tuple(_attention(config, family, layer, weights) for layer in range(len(layers))),
        weights=weights,
        parameters={name: tuple(t.shape) for name, t in model.state_dict().items() if name not in ties},
        tied=ties,
    )


def find_family(config: PreTrainedConfig) -> Family:
    """Look the model's family up in the table.

    Raises:
        UnsupportedModelError: it is not there; the message lists those that are.
    """
    if config.model_type in FAMILIES:
        return FAMILIES[config.model_type]
    message = f"model type {config.model_type!r} is not supported (supported: {', '.join(sorted(FAMILIES))})"
    inner = config.get_text_config().model_type
    if inner in FAMILIES:
        message += f"; it wraps a {inner!r} model, which is: save that language model alone and use it"
    raise UnsupportedModelError(message)


def _check_rotary_dims(config: PreTrainedConfig, family: Family) -> None:
    """Refuse odd heads, and a `partial_rotary_factor` in a family whose code would not read it."""
    if not family.rope:
        return
    for layer_type in sorted(set(getattr(config, "layer_types", None) or [])) or [None]:
        if rotary_dim(config, layer_type) != head_dim(config) and not family.partial_rotary:
            message = f"model type {config.model_type!r} has partial_rotary_factor set, which its code does not read"
            raise UnsupportedModelError(message)


def _weights(family: Family, layer: int, module: nn.Module) -> Iterator[WeightView]:
    prefix = f"{family.layers}.{layer}."
    for name, child in module.named_modules():
        if isinstance(child, nn.Linear | Conv1D):
            transposed = isinstance(child, Conv1D)
            rows, columns = child.weight.T.shape if transposed else child.weight.shape
            yield WeightView(
                prefix + name, "linear", (rows, columns), getattr(child, "bias", None) is not None, layer, transposed
            )
    for name, parameter in module.named_parameters():
        if parameter.ndim == 3:
            if name.rpartition(".")[0] != family.experts:
                message = f"{prefix}{name} of shape {tuple(parameter.shape)} is not foreseen in the family's table"
                raise UnsupportedModelError(message)
            yield WeightView(prefix + name, "experts", tuple(parameter.shape), bias=False, layer=layer)


def _attention(config: PreTrainedConfig, family: Family, layer: int, weights: tuple[WeightView, ...]) -> AttentionView:
    layer_types = getattr(config, "layer_types", None)
    layer_type: str | None = layer_types[layer] if layer_types else None
    module = f"{family.layers}.{layer}.{family.attention}"
    q, k, v = _head_rows(config, family, module, rotary_dim(config, layer_type) if family.rope else 0)
    for name in {rows.module for rows in (q, k, v)}:
        expected = sum(rows.heads * rows.head_dim for rows in (q, k, v) if rows.module == name)
        found = next((weight.shape[0] for weight in weights if weight.name == name), 0)
        if found != expected:
            message = f"{name} has {found} rows where {expected} were expected of its heads: cannot place them"
            raise UnsupportedModelError(message)
    return AttentionView(layer, module, layer_type, q, k, v)


def _head_rows(
    config: PreTrainedConfig, family: Family, attention: str, turned: int
) -> tuple[HeadRows, HeadRows, HeadRows]:
    heads: int = config.num_attention_heads
    kv_heads: int = getattr(config, "num_key_value_heads", None) or heads
    dims = head_dim(config)
    names = family.projections if family.fusion == "separate" else family.projections * 3
    starts = {
        "separate": (0, 0, 0),
        "stacked": (0, heads * dims, (heads + kv_heads) * dims),
        "by-head": (0, dims, 2 * dims),
    }[family.fusion]

    def rows(role: Role, index: int) -> HeadRows:
        return HeadRows(
            module=f"{attention}.{names[index]}",
            role=role,
            heads=heads if role == "q" else kv_heads,
            head_dim=dims,
            rotary_dim=0 if role == "v" else turned,
            layout=family.layout,
            start=starts[index],
            head_stride=3 * dims if family.fusion == "by-head" else None,
        )

    return rows("q", 0), rows("k", 1), rows("v", 2)


def _ties(model: PreTrainedModel) -> dict[str, str]:
    """Names that share a tensor with an earlier one, each with that one."""
    owners = {parameter: name for name, parameter in model.named_parameters()}
    every = model.named_parameters(remove_duplicate=False)
    return {name: owners[parameter] for name, parameter in every if owners[parameter] != name}
