"""The states of Q, K and V while a model runs, before and after RoPE.

Every family of `mvquant.arch` hands its states after RoPE to transformers' attention interface, so one tap
there sees them all; what they were before RoPE follows from the angles that the layer was given.
"""

import sys
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from typing import Any, NamedTuple

from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from mvquant.arch import AttentionView, ModelView
from mvquant.errors import CalibrationError, UnsupportedModelError
from mvquant.heads import RotaryLayout
from mvquant.massive import pair_slices


class AttentionStates(NamedTuple):
    """Q, K and V of one layer and batch, `[batch, head, seq, head_dim]`; `*_pre` are before RoPE."""

    q_pre: Tensor
    k_pre: Tensor
    q: Tensor
    k: Tensor
    v: Tensor


def unrotate(
    states: Float[Tensor, "batch head seq head_dim"],
    cos: Float[Tensor, "_ seq _"],
    sin: Float[Tensor, "_ seq _"],
    rotary_dim: int,
    layout: RotaryLayout = "half-split",
) -> Float[Tensor, "batch head seq head_dim"]:
    """Undo RoPE in float32: turn every pair back by the angles that it was turned by.

    `cos` and `sin` have an entry per pair or per rotary dim, and may carry an attention scaling (YaRN,
    longrope), which is divided out. Dims beyond `rotary_dim` are returned as they are.
    """
    first, second = pair_slices(rotary_dim, layout)
    per_pair = slice(None) if cos.shape[-1] == rotary_dim // 2 else first
    cos, sin = (angles.float()[..., per_pair].unsqueeze(1) for angles in (cos, sin))
    turned = states.float()
    before = turned.clone()
    scaling = cos.square() + sin.square()
    before[..., first].mul_(cos).add_(turned[..., second] * sin).div_(scaling)
    before[..., second].mul_(cos).sub_(turned[..., first] * sin).div_(scaling)
    return before


@contextmanager
def attention_states(
    model: PreTrainedModel, view: ModelView, record: Callable[[AttentionView, AttentionStates], None]
) -> Generator[None]:
    """Call `record` with the states of every layer whenever the model runs, leaving its output as it is.

    The attention implementation that the model uses is wrapped, not exchanged, so masks and soft caps stay
    what they were. Everything is put back on exit, also after an exception.

    Raises:
        CalibrationError: the model lacks a module that the view names.
    """
    rotations: dict[int, tuple[Tensor, Tensor]] = {}
    attentions = attention_modules(model, view)

    def keep_rotation(module: nn.Module, _args: object, kwargs: dict[str, Any]) -> None:
        if kwargs.get("position_embeddings") is not None:
            rotations[attentions[module].layer] = kwargs["position_embeddings"]

    def tap(forward: Attend, module: nn.Module, states: QueryKeyValue, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        attention = attentions.get(module)
        if attention is not None:
            rotation = rotations.pop(attention.layer, None)
            record(attention, _both_sides(attention, *states, rotation))
        return forward(module, *states, *args, **kwargs)

    hooks = [module.register_forward_pre_hook(keep_rotation, with_kwargs=True) for module in attentions]
    try:
        with wrapped_attention(model, attentions, tap):
            yield
    finally:
        for hook in hooks:
            hook.remove()


def attention_modules(model: PreTrainedModel, view: ModelView) -> dict[nn.Module, AttentionView]:
    """Find the attention module of every layer.

    Raises:
        CalibrationError: the model lacks a module that the view names.
    """
    return {_attention_module(model, attention): attention for attention in view.attentions}


def _attention_module(model: PreTrainedModel, attention: AttentionView) -> nn.Module:
    try:
        return model.get_submodule(attention.module)
    except AttributeError:
        message = f"{type(model).__name__} has no module {attention.module!r}: its view is of another model"
        raise CalibrationError(message) from None


def attention_implementation(module: nn.Module, model: PreTrainedModel) -> str:
    """Return the name of the attention function that a module of the model uses."""
    config: PreTrainedConfig = getattr(module, "config", model.config)
    return config._attn_implementation or "eager"  # pyright: ignore[reportPrivateUsage]


def _both_sides(
    attention: AttentionView,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rotation: tuple[Tensor, Tensor] | None,
) -> AttentionStates:
    """Add what Q and K were before RoPE."""
    if attention.q.rotary_dim == 0:
        return AttentionStates(query, key, query, key, value)
    if rotation is None:
        message = f"{attention.module} got no position_embeddings, so its states before RoPE cannot be told"
        raise UnsupportedModelError(message)
    q_pre = unrotate(query, *rotation, attention.q.rotary_dim, attention.q.layout)
    k_pre = unrotate(key, *rotation, attention.k.rotary_dim, attention.k.layout)
    return AttentionStates(q_pre, k_pre, query, key, value)


QueryKeyValue = tuple[Tensor, Tensor, Tensor]
Attend = Callable[..., Any]
"""An attention function of transformers: `(module, query, key, value, mask, ...)`."""


@contextmanager
def wrapped_attention(
    model: PreTrainedModel, modules: Iterable[nn.Module], around: Callable[..., Any]
) -> Generator[None]:
    """Have `around` called in place of the attention functions that these modules of the model use.

    Args:
        model: the model.
        modules: its attentions.
        around: called with the function itself, the module, (Q, K, V), and what else the function is given.
            Other models that run meanwhile come by as well.
    """
    originals = {
        name: ALL_ATTENTION_FUNCTIONS.get(name) for name in {attention_implementation(m, model) for m in modules}
    }

    def wrap(original: Attend | None) -> Attend:
        def attention(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
            forward = original or _eager_attention(module)
            return around(forward, module, (query, key, value), *args, **kwargs)

        return attention

    for name, original in originals.items():
        ALL_ATTENTION_FUNCTIONS[name] = wrap(original)
    try:
        yield
    finally:
        for name, original in originals.items():
            del ALL_ATTENTION_FUNCTIONS[name]
            if original is not None and ALL_ATTENTION_FUNCTIONS.get(name) is not original:
                ALL_ATTENTION_FUNCTIONS[name] = original


def _eager_attention(module: nn.Module) -> Callable[..., Any]:
    """Return the eager attention of the model's own file: the interface has none of its own."""
    return vars(sys.modules[type(module).__module__])["eager_attention_forward"]
