"""Calibration statistics with one decoder layer in memory: the numbers of `mvquant.stats.collect_stats`."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from jaxtyping import Int64
from torch import Tensor

from mvquant.arch import AttentionView
from mvquant.attention_states import AttentionStates, attention_states
from mvquant.errors import CalibrationError
from mvquant.layerwise.hidden import DEFAULT_LIMIT, HiddenStates
from mvquant.layerwise.model import LayerModel
from mvquant.layerwise.processes import ALONE, SharedWork, share
from mvquant.progress import Progress
from mvquant.stats import CalibrationStats, LayerSums, RoleMoments, role_moments, token_hash


def layerwise_stats(
    model: LayerModel,
    batches: Sequence[Int64[Tensor, "_ _"]],
    source: str = "texts",
    seed: int = 0,
    *,
    processes: SharedWork = ALONE,
    limit: int = DEFAULT_LIMIT,
    progress: Progress | None = None,
) -> CalibrationStats:
    """Return the moments of Q, K and V over calibration sequences, bit for bit those of the whole model.

    Args:
        model: the model.
        batches: token ids, no padding; all of them in every process.
        source: name of the text, kept with the statistics.
        seed: that chose the text, kept with the statistics.
        processes: those that share the batches; each of them gets the statistics of all.
        limit: bytes of hidden states held in memory; what is beyond them goes to temporary files.
        progress: told of every layer.

    Raises:
        CalibrationError: no batches, tokens or lengths that the model does not know, or NaN in its states.
        UnsupportedModelError: a layer whose states cannot be seen.
    """
    if not batches:
        raise CalibrationError("there are no calibration sequences")
    sums, states = LayerSums(), HiddenStates(limit)
    mine = share(batches, processes)
    with tempfile.TemporaryDirectory(prefix="mvquant-states-") as folder, torch.no_grad():
        for number, hidden in zip(mine, model.embedded(mine.values()), strict=True):
            states.write(number, hidden, Path(folder))
        for index in range(len(model)):
            if progress:
                progress("", index, len(model))
            parts = _layer_moments(model, index, states, Path(folder))
            attention = model.view.attentions[index]
            for moments in _in_order(processes.gather(parts)):
                sums.add(attention, moments)
    if progress:
        progress("", len(model), len(model))
    return CalibrationStats(
        sums.layers(model.view),
        source,
        sequences=sum(len(batch) for batch in batches),
        length=max(batch.shape[1] for batch in batches),
        seed=seed,
        hash=token_hash(batches),
    )


def _layer_moments(model: LayerModel, index: int, states: HiddenStates, folder: Path) -> dict[int, RoleMoments]:
    """Run a layer over every batch; return the moments by batch, and leave the inputs of the next layer."""
    parts: dict[int, RoleMoments] = {}
    with model.layer(index):
        for number in states:

            def record(_attention: AttentionView, seen: AttentionStates, number: int = number) -> None:
                parts[number] = role_moments(seen)

            with attention_states(model.model, model.view, record):
                hidden = model.run_layer(index, states.read(number))
            states.write(number, hidden, folder)
    return parts


def _in_order(by_process: Sequence[Mapping[int, RoleMoments]]) -> list[RoleMoments]:
    every = {number: moments for parts in by_process for number, moments in parts.items()}
    return [every[number] for number in sorted(every)]
