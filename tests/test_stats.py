"""Collected statistics against the states in one piece, for every family."""

import gc
import json
import weakref
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from mvquant.arch import AttentionView, ModelView, model_view
from mvquant.attention_states import AttentionStates, attention_states
from mvquant.errors import CalibrationError, UnsupportedModelError
from mvquant.massive import massive_mask, merge_moments, sequence_moments
from mvquant.stats import (
    CalibrationStats,
    collect_stats,
    load_stats,
    require_fit,
    save_stats,
    token_hash,
)
from tests.tiny_models import FAMILY_NAMES, ROPE_FAMILY_NAMES, tiny_model, tiny_tokens

ROLES = AttentionStates._fields


def batches(count: int = 3, length: int = 24) -> list[Tensor]:
    return [tiny_tokens(1 + index % 2, length, seed=index) for index in range(count)]


def model_and_view(family: str, **changes: object) -> tuple[PreTrainedModel, ModelView]:
    model = tiny_model(family, **changes)
    return model, model_view(model.config)


def kept_states(model: PreTrainedModel, view: ModelView, tokens: list[Tensor]) -> dict[tuple[int, str], list[Tensor]]:
    """What `collect_stats` does not do: keep the states of everything."""
    kept: dict[tuple[int, str], list[Tensor]] = {}

    def keep(attention: AttentionView, states: AttentionStates) -> None:
        for role, tensor in states._asdict().items():
            kept.setdefault((attention.layer, role), []).append(tensor.clone())

    with torch.no_grad(), attention_states(model, view, keep):
        for batch in tokens:
            model(input_ids=batch, use_cache=False)
    return kept


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_streaming_statistics_equal_the_states_in_one_piece(family: str):
    model, view = model_and_view(family)
    stats = collect_stats(model, view, batches())
    kept = kept_states(model, view, batches())
    for layer in stats.layers:
        for role in ROLES:
            parts = kept[layer.layer, role]
            rows = [row.double() for part in parts for row in part]
            every = torch.cat(rows, dim=1)
            moments = getattr(layer, role)
            assert moments.tokens == every.shape[1] == sum(batch.numel() for batch in batches())
            torch.testing.assert_close(moments.total, every.sum(dim=1), rtol=1e-5, atol=1e-4)
            torch.testing.assert_close(moments.squares, every.square().sum(dim=1), rtol=1e-5, atol=1e-6)
            within = sum(row.var(dim=1, correction=0) * row.shape[1] for row in rows) / every.shape[1]
            torch.testing.assert_close(moments.within_variance, within, rtol=1e-4, atol=1e-6)
            mask = massive_mask(every.float().transpose(0, 1), ratio=1.5)
            assert torch.equal(moments.massive(ratio=1.5), mask)


@pytest.mark.parametrize("family", ["opt", "gpt2"])
def test_without_rope_before_and_after_are_the_same(family: str):
    model, view = model_and_view(family)
    for layer in collect_stats(model, view, batches()).layers:
        assert torch.equal(layer.q_pre.squares, layer.q.squares)
        assert torch.equal(layer.k_pre.within_variance, layer.k.within_variance)


@pytest.mark.parametrize("family", ROPE_FAMILY_NAMES)
def test_rope_moves_energy_between_the_dims_of_a_pair_only(family: str):
    model, view = model_and_view(family)
    stats = collect_stats(model, view, batches())
    for layer, attention in zip(stats.layers, view.attentions, strict=True):
        rows = attention.q
        before = layer.q_pre.pair_energy(rows.rotary_dim, rows.layout)
        after = layer.q.pair_energy(rows.rotary_dim, rows.layout)
        torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-6)
        assert not torch.allclose(layer.q.squares, layer.q_pre.squares, rtol=1e-3)
        passed = slice(rows.rotary_dim, None)
        torch.testing.assert_close(layer.q.squares[:, passed], layer.q_pre.squares[:, passed])


def test_no_activation_outlives_its_batch(monkeypatch: pytest.MonkeyPatch):
    model, view = model_and_view("llama")
    seen: list[weakref.ref[Tensor]] = []
    monkeypatch.setattr(
        "mvquant.stats.sequence_moments", lambda states: seen.append(weakref.ref(states)) or sequence_moments(states)
    )

    def watched():
        for batch in batches(4):
            yield batch
            gc.collect()
            assert all(reference() is None for reference in seen)

    collect_stats(model, view, watched())
    assert len(seen) == 4 * len(view.attentions) * len(ROLES)


def test_statistics_are_as_large_for_many_tokens_as_for_few():
    model, view = model_and_view("llama")
    few, many = (collect_stats(model, view, batches(count, 64)) for count in (1, 6))
    for layer, other, attention in zip(few.layers, many.layers, view.attentions, strict=True):
        for role in ROLES:
            rows = attention.q if role.startswith("q") else attention.k
            for name in ("total", "squares", "within_variance"):
                tensor = getattr(getattr(many.layers[attention.layer], role), name)
                assert tensor.shape == (rows.heads, rows.head_dim)
                assert tensor.untyped_storage().nbytes() == rows.heads * rows.head_dim * 8
            assert getattr(layer, role).tokens < getattr(other, role).tokens


class StopHere(Exception):  # noqa: N818
    """Raised by a test in the middle of a run."""


def left_behind(model: nn.Module) -> int:
    return sum(len(module._forward_pre_hooks) + len(module._forward_hooks) for module in model.modules())


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_everything_is_put_back_also_after_an_exception(implementation: str):
    model, view = model_and_view("gemma2")
    model.set_attn_implementation(implementation)
    model.train()
    model.model.layers[1].eval()
    modes = [module.training for module in model.modules()]
    functions = {name: ALL_ATTENTION_FUNCTIONS.get(name) for name in ("sdpa", "eager", "flash_attention_2")}
    hooks = left_behind(model)

    def broken():
        yield tiny_tokens()
        raise StopHere

    with pytest.raises(StopHere):
        collect_stats(model, view, broken())
    collect_stats(model, view, batches())
    assert [module.training for module in model.modules()] == modes
    assert {name: ALL_ATTENTION_FUNCTIONS.get(name) for name in functions} == functions
    assert left_behind(model) == hooks
    assert model.config._attn_implementation == implementation


def test_provenance_is_kept_and_the_hash_is_of_the_tokens():
    model, view = model_and_view("llama")
    stats = collect_stats(model, view, iter(batches()), source="a book", seed=7)
    assert (stats.source, stats.seed, stats.sequences, stats.length) == ("a book", 7, 4, 24)
    assert stats.hash == token_hash(batches())
    rows = [row.unsqueeze(0) for batch in batches() for row in batch]
    assert token_hash(rows) == stats.hash
    changed = [batch.clone() for batch in batches()]
    changed[-1][0, -1] += 1
    assert token_hash(changed) != stats.hash
    assert token_hash([torch.tensor([[1, 2, 3, 4]])]) != token_hash([torch.tensor([[1, 2], [3, 4]])])


def test_half_precision_models_are_summed_in_double():
    model = tiny_model("llama", dtype=torch.bfloat16)
    stats = collect_stats(model, model_view(model.config), batches())
    assert stats.layers[0].k.squares.dtype == torch.float64


def assert_equal(left: CalibrationStats, right: CalibrationStats) -> None:
    for name in ("source", "sequences", "length", "seed", "hash"):
        assert getattr(left, name) == getattr(right, name)
    for layer, other in zip(left.layers, right.layers, strict=True):
        assert layer.layer == other.layer
        for role in ROLES:
            assert getattr(layer, role).tokens == getattr(other, role).tokens
            for name in ("total", "squares", "within_variance"):
                assert torch.equal(getattr(getattr(layer, role), name), getattr(getattr(other, role), name))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_saved_statistics_come_back_as_they_were(family: str, tmp_path: Path):
    model, view = model_and_view(family)
    stats = collect_stats(model, view, batches(), source="a book", seed=7)
    save_stats(stats, tmp_path / "stats.safetensors")
    assert_equal(load_stats(tmp_path / "stats.safetensors"), stats)


def test_files_that_are_no_statistics_are_refused(tmp_path: Path):
    path = tmp_path / "stats.safetensors"
    with pytest.raises(CalibrationError, match=r"stats\.safetensors cannot be read"):
        load_stats(path)
    path.write_bytes(b"not safetensors")
    with pytest.raises(CalibrationError, match=r"stats\.safetensors cannot be read"):
        load_stats(path)
    for metadata in (None, {"mvquant_stats": json.dumps({"format": 99})}):
        save_file({"x": torch.ones(1)}, path, metadata=metadata)
        with pytest.raises(CalibrationError, match="run `mvquant analyze` again"):
            load_stats(path)
    save_file({"x": torch.ones(1)}, path, metadata={"mvquant_stats": "not JSON"})
    with pytest.raises(CalibrationError, match="cannot be read"):
        load_stats(path)


def test_statistics_that_were_cut_short_are_refused(tmp_path: Path):
    model, view = model_and_view("llama")
    path = tmp_path / "stats.safetensors"
    save_stats(collect_stats(model, view, batches()), path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CalibrationError, match="cannot be read as calibration statistics"):
        load_stats(path)


def test_statistics_of_another_model_are_refused():
    model, view = model_and_view("llama")
    stats = collect_stats(model, view, batches())
    require_fit(stats, view)
    with pytest.raises(CalibrationError, match="have 2 layers, the gemma3_text model has 3"):
        require_fit(stats, model_and_view("gemma3_text")[1])
    with pytest.raises(CalibrationError, match=r"q in layer 0 are of \(4, 16\).*has \(2, 32\).*another model"):
        require_fit(stats, model_and_view("gpt_neox")[1])


def test_text_that_the_model_cannot_read_is_refused():
    model, view = model_and_view("llama")
    with pytest.raises(CalibrationError, match="no calibration sequences"):
        collect_stats(model, view, [])
    with pytest.raises(CalibrationError, match="tokens beyond the 128 of the model; is the tokenizer"):
        collect_stats(model, view, [torch.tensor([[1, 128]])])
    with pytest.raises(CalibrationError, match="129 tokens are longer than the model's 128 positions"):
        collect_stats(model, view, [torch.ones(1, 129, dtype=torch.long)])


def test_nan_is_named():
    model, view = model_and_view("llama")
    with torch.no_grad():
        model.get_submodule(view.attentions[1].k.module).weight[3, 3] = torch.nan
    with pytest.raises(CalibrationError, match=r"layers\.1\.self_attn: k_pre has NaN"):
        collect_stats(model, view, batches())


def test_a_layer_that_avoids_the_attention_interface_is_named(monkeypatch: pytest.MonkeyPatch):
    model, view = model_and_view("llama")
    attention = model.get_submodule(view.attentions[1].module)
    monkeypatch.setattr(attention, "forward", lambda hidden_states, **_: (hidden_states, None))
    with pytest.raises(UnsupportedModelError, match=r"layers\.1\.self_attn did not call"):
        collect_stats(model, view, batches())


def test_merged_runs_equal_one_run():
    model, view = model_and_view("llama")
    whole = collect_stats(model, view, batches(4)).layers[0].k
    halves = [collect_stats(model, view, part).layers[0].k for part in (batches(4)[:2], batches(4)[2:])]
    torch.testing.assert_close(merge_moments(*halves).within_variance, whole.within_variance)
