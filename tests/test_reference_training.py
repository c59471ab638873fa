import json

import pytest
import torch

from mvquant.reference import corpus
from mvquant.reference.mastery import Mastery
from mvquant.reference.optimizer import build_optimizers, last_reads, set_rates, shrink_rows
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
MIXTURE = {corpus.bindings: 0.5, corpus.city_recall: 0.5}
SHORT = Schedule((Phase("only", 1024, 256, (32,), MIXTURE),), Rates(), warmup_steps=2, cooldown_tokens=512)


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
    assert record["training"]["tokens"] == SHORT.most_tokens
    assert (tmp_path / "weights" / "model.safetensors").exists()
    assert "| passkey |" in (tmp_path / "TRAINING_CARD.md").read_text()


def test_every_parameter_has_one_optimizer():
    model = Training(settings()).model
    owned = [p for o in build_optimizers(model) for g in o.param_groups for p in g["params"]]
    assert len(owned) == len(set(owned)) == len(list(model.parameters()))


def test_rates_are_those_given_times_the_factor():
    adamw, muon = build_optimizers(Training(settings()).model)
    rates = Rates(muon=0.5, queries_keys=0.4, embeddings=0.2)
    set_rates([adamw, muon], rates, 0.5)
    assert muon.param_groups[0]["lr"] == 0.25
    assert [group["lr"] for group in adamw.param_groups] == [0.2, 0.1]


def test_shrinking_takes_the_same_off_every_row_and_stops_at_zero():
    weight = torch.tensor([[3.0, 4.0], [0.0, 2.0], [0.3, 0.4], [0.0, 0.0]])
    shrink_rows(weight, 1.0)
    expected = torch.tensor([[2.4, 3.2], [0.0, 1.0], [0.0, 0.0], [0.0, 0.0]])
    torch.testing.assert_close(weight, expected)


def test_only_a_concentrating_phase_presses_the_last_layers_rows():
    def norms(concentrating):
        phase = Phase("only", 256, 256, (32,), MIXTURE, concentrating=concentrating)
        training = Training(settings(schedule=Schedule((phase,), Rates(sparsity=100.0), 1, 256)))
        training.step()
        return [weight.norm(dim=1) for weight in last_reads(training.model)]

    assert all((pressed < free).all() for pressed, free in zip(norms(True), norms(False), strict=True))


def test_rates_warm_up_stay_and_fall_at_the_end_of_the_last_phase():
    schedule = Schedule((SHORT.phases[0], SHORT.phases[0]), Rates(), warmup_steps=4, cooldown_tokens=512)
    points = [(0, 0, 0), (0, 1000, 9), (1, 0, 9), (1, 512, 9), (1, 768, 9), (1, 1024, 9)]
    assert [schedule.factor(*point) for point in points] == [0.25, 1.0, 1.0, 1.0, 0.5, 0.0]


def two_phases(until_mastered):
    phases = (
        Phase("first", 512, 256, (32,), MIXTURE, until_mastered),
        Phase("second", 256, 256, (32,), {corpus.sums: 1.0}),
    )
    return Schedule(phases, Rates(), warmup_steps=1, cooldown_tokens=256)


def test_a_phase_ends_with_its_tokens():
    training = Training(settings(schedule=two_phases(())))
    seen = []
    while not training.finished:
        training.step()
        seen.append((training.phase.name, training.seen_in_phase))
    assert seen == [("first", 256), ("first", 512), ("second", 256)]


def test_a_mastered_phase_ends_early(monkeypatch):
    training = Training(settings(schedule=two_phases((corpus.bindings,))))
    training.step()
    monkeypatch.setattr(training._mastery, "mastered", bool)
    training.step()
    assert training.phase.name == "second"


def test_zero_output_projections_make_a_fresh_model_ignore_its_context():
    training = Training(settings())
    ids = torch.tensor([[5, 6, 7], [8, 9, 7]])
    logits = training.model(input_ids=ids).logits[:, -1]
    assert torch.equal(logits[0], logits[1])


SOURCES = (corpus.bindings, corpus.sums)


def right(*rows):
    return torch.tensor(rows, dtype=torch.bool)


def test_row_sums_count_only_what_is_asked():
    asked = right([1, 1, 0], [1, 0, 0], [0, 0, 0])
    sums = Mastery(SOURCES).row_sums(
        (corpus.sums, corpus.sums, corpus.bindings), right([1, 0, 1], [1, 1, 1], [1, 1, 1]), asked
    )
    assert sums.tolist() == [[0.0, 1.5], [0.0, 2.0]]


def test_mastery_is_a_running_average_that_needs_rows():
    mastery = Mastery(SOURCES)
    mastery.add(torch.tensor([[0.0, 10.0], [0.0, 10.0]]))
    assert not mastery.mastered([corpus.sums])
    for _ in range(4):
        mastery.add(torch.tensor([[0.0, 10.0], [0.0, 10.0]]))
    assert mastery.mastered([corpus.sums])
    assert not mastery.mastered([corpus.sums, corpus.bindings])
    mastery.add(torch.tensor([[0.0, 0.0], [0.0, 5.0]]))
    assert mastery.share[1] == pytest.approx(0.98**5)
    assert not mastery.mastered([corpus.sums])
    mastery.forget([corpus.sums])
    assert mastery.rows[1] == 0


def test_nothing_is_mastered_where_nothing_is_watched():
    assert not Mastery(SOURCES).mastered([])


def test_words_grow_from_phase_to_phase_and_everything_comes_last():
    counts = [set(phase.mixture) for phase in SCHEDULE.phases]
    assert counts[0] != counts[1]
    assert len(counts[-1]) == max(map(len, counts))
    assert all(set(phase.until_mastered) <= set(phase.mixture) for phase in SCHEDULE.phases)
    assert not SCHEDULE.phases[-1].until_mastered
