"""Statistics with one layer in memory are those of the whole model, bit for bit."""

import pytest
import torch

from mvquant.attention_states import AttentionStates
from mvquant.errors import CalibrationError
from mvquant.layerwise import LayerModel, layerwise_stats
from mvquant.stats import collect_stats
from tests.layerwise.examples import saved
from tests.tiny_models import FAMILY_NAMES, tiny_tokens

BATCHES = [tiny_tokens(1, 24), tiny_tokens(1, 40, seed=1), tiny_tokens(2, 24, seed=2)]


def assert_equal_stats(ours, theirs):
    assert (ours.hash, ours.sequences, ours.length) == (theirs.hash, theirs.sequences, theirs.length)
    for layer, other in zip(ours.layers, theirs.layers, strict=True):
        for role in AttentionStates._fields:
            one, two = getattr(layer, role), getattr(other, role)
            assert one.tokens == two.tokens
            assert all(
                torch.equal(getattr(one, name), getattr(two, name)) for name in ("total", "squares", "within_variance")
            )


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_statistics_are_those_of_the_whole_model(family, tmp_path):
    world = saved(family, tmp_path)
    whole = collect_stats(world.model, world.view, BATCHES, source="t", seed=3)
    ours = layerwise_stats(LayerModel(world.checkpoint, world.view), BATCHES, source="t", seed=3)
    assert (ours.source, ours.seed) == ("t", 3)
    assert_equal_stats(ours, whole)


def test_states_on_disk_change_nothing(tmp_path):
    world = saved("gemma3_text", tmp_path)
    made = [layerwise_stats(LayerModel(world.checkpoint, world.view), BATCHES, limit=limit) for limit in (0, 1 << 20)]
    assert_equal_stats(*made)


def test_every_layer_is_told_of(tmp_path):
    world = saved("llama", tmp_path)
    told = []
    layerwise_stats(LayerModel(world.checkpoint, world.view), BATCHES, progress=lambda *state: told.append(state))
    assert told == [("", 0, 2), ("", 1, 2), ("", 2, 2)]


def test_no_text_is_refused(tmp_path):
    world = saved("llama", tmp_path)
    with pytest.raises(CalibrationError, match="no calibration sequences"):
        layerwise_stats(LayerModel(world.checkpoint, world.view), [])
