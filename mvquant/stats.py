"""Statistics of Q, K and V of every layer over calibration sequences, before and after RoPE.

Nothing is kept but running sums: O(heads x head_dim) per layer, however many tokens.
"""

import hashlib
import json
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Int64
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from transformers import PreTrainedModel

from mvquant.arch import AttentionView, ModelView
from mvquant.attention_states import AttentionStates, attention_states
from mvquant.errors import CalibrationError, UnsupportedModelError
from mvquant.massive import HeadMoments, merge_moments, sequence_moments

STATS_FORMAT = 1
"""Version of the file that `save_stats` writes."""

_SUMS = ("total", "squares", "within_variance")


@dataclass(frozen=True, eq=False)
class LayerStats:
    """Moments of one layer before (`*_pre`) and after RoPE; K and V have key/value heads.

    Q is as attention receives it: OPT scales it by `head_dim ** -0.5` before, other families do not.
    """

    layer: int
    q_pre: HeadMoments
    k_pre: HeadMoments
    q: HeadMoments
    k: HeadMoments
    v: HeadMoments


@dataclass(frozen=True, eq=False)
class CalibrationStats:
    """Moments of every layer, and which tokens they come from.

    Attributes:
        layers: one per decoder layer, in order.
        source: the name of the text, for people.
        sequences: how many sequences were seen.
        length: tokens in the longest of them.
        seed: that chose them.
        hash: SHA-256 of the token ids (`token_hash`).
    """

    layers: tuple[LayerStats, ...]
    source: str
    sequences: int
    length: int
    seed: int
    hash: str


RoleMoments = dict[str, HeadMoments]
"""Moments of Q, K and V of one layer and batch, by role."""


def role_moments(states: AttentionStates) -> RoleMoments:
    """Return the moments of the states of one layer and batch."""
    return {role: sequence_moments(tensor) for role, tensor in states._asdict().items()}


class LayerSums:
    """Running moments of every layer; batches are added in their order, as sums of floats depend on it."""

    def __init__(self) -> None:
        self._moments: dict[int, RoleMoments] = {}

    def add(self, attention: AttentionView, moments: RoleMoments) -> None:
        """Add one batch."""
        seen = self._moments.setdefault(attention.layer, {})
        for role, more in moments.items():
            seen[role] = merge_moments(seen[role], more) if role in seen else more

    def layers(self, view: ModelView) -> tuple[LayerStats, ...]:
        """Return the sums.

        Raises:
            UnsupportedModelError: a layer whose states were never seen.
            CalibrationError: NaN in the states.
        """
        missing = [attention.module for attention in view.attentions if attention.layer not in self._moments]
        if missing:
            message = f"{missing[0]} did not call transformers' attention interface, so its states cannot be seen"
            raise UnsupportedModelError(message)
        return tuple(self._layer(attention) for attention in view.attentions)

    def _layer(self, attention: AttentionView) -> LayerStats:
        moments = {role: _on_cpu(sums) for role, sums in self._moments[attention.layer].items()}
        for role, sums in moments.items():
            if not bool(sums.squares.isfinite().all()):
                message = f"{attention.module}: {role} has NaN or infinite values on the calibration text"
                raise CalibrationError(message)
        return LayerStats(layer=attention.layer, **moments)


def _on_cpu(moments: HeadMoments) -> HeadMoments:
    return HeadMoments(moments.tokens, *(getattr(moments, name).cpu() for name in _SUMS))


def collect_stats(
    model: PreTrainedModel,
    view: ModelView,
    batches: Iterable[Int64[Tensor, "_ _"]],
    source: str = "texts",
    seed: int = 0,
) -> CalibrationStats:
    """Run the model over the batches and return the moments of its Q, K and V.

    Args:
        model: any model of the view's family, on any device; it is left as it was.
        view: what `mvquant.arch.model_view` says of it.
        batches: token ids, no padding; each row is a sequence. Any iterable, so that a caller can wrap it
            in a progress bar.
        source: name of the text, kept with the statistics.
        seed: that chose the text, kept with the statistics.

    Raises:
        CalibrationError: no batches, tokens or lengths that the model does not know, or NaN in its states.
        UnsupportedModelError: a layer whose states cannot be seen.
    """
    sums, tokens, sequences, longest = LayerSums(), hashlib.sha256(), 0, 0

    def add(attention: AttentionView, states: AttentionStates) -> None:
        sums.add(attention, role_moments(states))

    with torch.no_grad(), _eval_mode(model), attention_states(model, view, add):
        for batch in batches:
            require_known_tokens(batch, model)
            tokens.update(_token_bytes(batch))
            sequences, longest = sequences + len(batch), max(longest, batch.shape[1])
            # The body alone: the logits of a long sequence over a large vocabulary are gigabytes.
            model.base_model(input_ids=batch.to(model.device), use_cache=False)
    if sequences == 0:
        message = "there are no calibration sequences"
        raise CalibrationError(message)
    return CalibrationStats(sums.layers(view), source, sequences, longest, seed, tokens.hexdigest())


@contextmanager
def _eval_mode(model: nn.Module) -> Generator[None]:
    """Switch dropout off, and every module back to its own mode on exit."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def require_known_tokens(batch: Int64[Tensor, "batch length"], model: PreTrainedModel) -> None:
    """Refuse tokens and lengths that would end in an index error deep in the model.

    Raises:
        CalibrationError: tokens or a length that the model does not know.
    """
    vocabulary = cast("nn.Embedding", model.get_input_embeddings()).num_embeddings
    if batch.numel() == 0 or int(batch.max()) >= vocabulary:
        message = f"calibration batch {tuple(batch.shape)} is empty or has tokens beyond the {vocabulary} of the model"
        raise CalibrationError(f"{message}; is the tokenizer the model's own?")
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if positions is not None and batch.shape[1] > positions:
        message = f"calibration sequences of {batch.shape[1]} tokens are longer than the model's {positions} positions"
        raise CalibrationError(message)


def token_hash(batches: Iterable[Int64[Tensor, "_ _"]]) -> str:
    """Return the SHA-256 of the sequences' token ids: what `CalibrationStats.hash` is."""
    tokens = hashlib.sha256()
    for batch in batches:
        tokens.update(_token_bytes(batch))
    return tokens.hexdigest()


def _token_bytes(batch: Int64[Tensor, "batch length"]) -> bytes:
    """Return every row with its length before it, so that the way rows are batched does not matter."""
    rows = batch.cpu().numpy().astype("<i8")
    return b"".join(len(row).to_bytes(8, "little") + row.tobytes() for row in rows)


def require_fit(stats: CalibrationStats, view: ModelView) -> None:
    """Check that statistics have the layers and heads of a model.

    Raises:
        CalibrationError: they are of another model.
    """
    if len(stats.layers) != len(view.attentions):
        message = f"the statistics have {len(stats.layers)} layers, the {view.family} model has {len(view.attentions)}"
        raise CalibrationError(message)
    for layer, attention in zip(stats.layers, view.attentions, strict=True):
        for rows in (attention.q, attention.k, attention.v):
            found, expected = tuple(getattr(layer, rows.role).total.shape), (rows.heads, rows.head_dim)
            if found != expected:
                message = f"the statistics of {rows.role} in layer {layer.layer} are of {found} heads and dims"
                raise CalibrationError(f"{message}, but {attention.module} has {expected}: they are of another model")


def save_stats(stats: CalibrationStats, path: Path) -> None:
    """Write statistics as safetensors, with where they come from as JSON in its metadata."""
    tensors = {
        f"layers.{layer.layer}.{role}.{name}": getattr(getattr(layer, role), name).clone()
        for layer in stats.layers
        for role in _roles()
        for name in _SUMS
    }
    header = {field.name: getattr(stats, field.name) for field in fields(stats) if field.name != "layers"}
    header |= {"format": STATS_FORMAT, "tokens": stats.layers[0].q.tokens if stats.layers else 0}
    header["layers"] = [layer.layer for layer in stats.layers]
    path.write_bytes(save(tensors, metadata={"mvquant_stats": json.dumps(header)}))


def load_stats(path: Path) -> CalibrationStats:
    """Read what `save_stats` wrote.

    Raises:
        CalibrationError: no such file, or not one of ours.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get("mvquant_stats", "{}"))
            if header.pop("format", None) != STATS_FORMAT:
                message = f"{path} holds no statistics of mvquant's format {STATS_FORMAT}; run `mvquant analyze` again"
                raise CalibrationError(message)
            numbers, tokens = header.pop("layers"), header.pop("tokens")
            layers = tuple(_load_layer(file, number, tokens) for number in numbers)
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        message = f"{path} cannot be read as calibration statistics: {error}"
        raise CalibrationError(message) from None
    return CalibrationStats(layers, **header)


def _load_layer(file: Any, number: int, tokens: int) -> LayerStats:  # noqa: ANN401
    moments = {
        role: HeadMoments(tokens, *(file.get_tensor(f"layers.{number}.{role}.{name}") for name in _SUMS))
        for role in _roles()
    }
    return LayerStats(layer=number, **moments)


def _roles() -> tuple[str, ...]:
    return AttentionStates._fields
