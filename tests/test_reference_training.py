import json

import pytest
import torch

from mvquant.reference import corpus
from mvquant.reference.optimizer import build_optimizers, set_rates
from mvquant.reference.schedule import SCHEDULE, Phase, Rates, Schedule
from mvquant.reference.train import run_worker
from mvquant.reference.training import Settings, Training

TINY = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
}
SHORT = Schedule(
    (Phase(1024, 256, {32: 1.0}, {corpus.bindings: 0.5, corpus.city_recall: 0.5}, Rates()),),
    256,
    512,
)


def settings(**changes):
    given = {"schedule": SHORT, "model": TINY, "workers": 1, "compiled": False}
    given |= {"tokenizer_documents": 4, "validation_items": 2, "card_items": 4}
    return Settings(**{**given, **changes})


def test_training_twice_gives_the_same_losses():
    runs = [Training(settings()) for _ in range(2)]
    losses = [[run.step() for _ in range(3)] for run in runs]
    assert losses[0] == losses[1]
    assert losses[0][0] > losses[0][-1]


def test_an_interrupted_training_goes_on_as_if_nothing_had_happened(tmp_path):
    whole, cut, resumed = (Training(settings()) for _ in range(3))
    expected = [whole.step() for _ in range(3)]
    cut.step()
    cut.save(tmp_path)
    resumed.load(tmp_path)
    assert [resumed.step() for _ in range(2)] == expected[1:]


def test_run_writes_weights_and_card(tmp_path):
    (tmp_path / "state").mkdir()
    run_worker(0, settings(), tmp_path)
    record = json.loads((tmp_path / "training.json").read_text())
    assert record["training"]["tokens"] == SHORT.tokens
    assert (tmp_path / "weights" / "model.safetensors").exists()
    assert "| passkey |" in (tmp_path / "TRAINING_CARD.md").read_text()


def test_every_parameter_has_one_optimizer():
    model = torch.nn.ModuleDict({"layer": torch.nn.ModuleDict({"q_proj": torch.nn.Linear(4, 4, bias=False)})})
    model["layer"]["up_proj"] = torch.nn.Linear(4, 4, bias=False)
    model["norm"] = torch.nn.LayerNorm(4)
    owned = [p for o in build_optimizers(model) for g in o.param_groups for p in g["params"]]
    assert len(owned) == len(set(owned)) == len(list(model.parameters()))


def test_rates_are_those_given_times_the_factor():
    model = torch.nn.ModuleDict({name: torch.nn.Linear(4, 4, bias=False) for name in ("up_proj", "norm")})
    adamw, muon = build_optimizers(model)
    set_rates([adamw, muon], Rates(muon=0.5, embeddings=0.2, queries_keys_decay=0.3), 0.1)
    set_rates([adamw, muon], Rates(muon=0.5, embeddings=0.2, queries_keys_decay=0.3), 0.5)
    assert muon.param_groups[0]["lr"] == 0.25
    assert [group["lr"] for group in adamw.param_groups] == [1e-3, 0.1]
    assert [group["weight_decay"] for group in adamw.param_groups] == [0.3, 0.0]


@pytest.mark.parametrize(("seen", "factor"), [(0, 0.0), (SCHEDULE.warmup_tokens, 1.0), (SCHEDULE.tokens, 0.0)])
def test_rate_warms_up_stays_and_falls(seen, factor):
    assert SCHEDULE.rate_at(seen) == pytest.approx(factor, abs=1e-3)


def test_phases_follow_each_other():
    assert SCHEDULE.phase_at(0) is SCHEDULE.phases[0]
    assert SCHEDULE.phase_at(SCHEDULE.tokens) is SCHEDULE.phases[-1]
