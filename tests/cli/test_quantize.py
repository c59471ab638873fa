"""`mvquant quantize` with a method that calibrates: interrupted, and gone on with."""

import pytest

from mvquant import quantizing
from mvquant.layerwise import Room
from mvquant.method_backends import LAYER_BACKENDS
from tests.layerwise.examples import StopsOnce


class Interrupted(StopsOnce):
    """As Ctrl-C at the third layer."""

    def quantize(self, layer):
        if layer.index == 2 and self._done:
            raise KeyboardInterrupt
        return super().quantize(layer)


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "static.yaml"
    path.write_text(
        "summary: rounded activations\nweights: {scheme: w8a8-static}\ncalibration: {sequences: 2, length: 64}\n"
    )
    return path


def test_an_interrupt_keeps_what_is_done_and_says_how_to_go_on(mvquant, recipe, tmp_path, monkeypatch):
    out = tmp_path / "out"
    monkeypatch.setitem(LAYER_BACKENDS, ("rtn", "mvquant"), "tests.cli.test_quantize:Interrupted")
    code, _, err = mvquant("quantize", "reference", "--recipe", recipe, "-o", out)
    assert code == 130
    assert "what is done is in" in err
    assert "--resume" in err
    assert "nothing was left behind" not in err
    assert (tmp_path / "out.work").is_dir()
    code, _, err = mvquant("quantize", "reference", "--recipe", recipe, "-o", out)
    assert code == 2
    assert "2 layers done" in err
    code, printed, err = mvquant("quantize", "reference", "--recipe", recipe, "-o", out, "--resume")
    assert code == 0
    assert "going on after layer 2 of 4" in err
    assert "bits per weight" in printed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "static.yaml"]
    assert (out / "quantization_log.jsonl").is_file()


def test_going_on_measures_nothing_again(mvquant, recipe, tmp_path, monkeypatch):
    recipe.write_text(recipe.read_text() + "protect: {policy: massive, pairs: 0.125}\n")
    quantize = ("quantize", "reference", "--recipe", recipe, "-o")
    assert mvquant(*quantize, tmp_path / "whole")[0] == 0
    monkeypatch.setitem(LAYER_BACKENDS, ("rtn", "mvquant"), "tests.cli.test_quantize:Interrupted")
    assert mvquant(*quantize, tmp_path / "out")[0] == 130
    monkeypatch.setattr(quantizing, "layerwise_stats", None)
    code, _, err = mvquant(*quantize, tmp_path / "out", "--resume")
    assert code == 0, err
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("out", "whole")]
    assert weights[0] == weights[1]


def test_another_recipe_does_not_go_on_with_the_plan(mvquant, recipe, tmp_path, monkeypatch):
    monkeypatch.setitem(LAYER_BACKENDS, ("rtn", "mvquant"), "tests.cli.test_quantize:Interrupted")
    assert mvquant("quantize", "reference", "--recipe", recipe, "-o", tmp_path / "out")[0] == 130
    recipe.write_text(recipe.read_text().replace("length: 64", "length: 32"))
    code, _, err = mvquant("quantize", "reference", "--recipe", recipe, "-o", tmp_path / "out", "--resume")
    assert code == 2
    assert "cannot be resumed" in " ".join(err.split())


def test_text_that_changed_is_named_and_not_gone_on_with(mvquant, recipe, tmp_path, monkeypatch):
    text = tmp_path / "text.txt"
    text.write_text("The old bridge is made of stone. " * 60)
    recipe.write_text(recipe.read_text().replace("sequences: 2", f"source: {text}, sequences: 2"))
    quantize = ("quantize", "reference", "--recipe", recipe, "-o", tmp_path / "out")
    monkeypatch.setitem(LAYER_BACKENDS, ("rtn", "mvquant"), "tests.cli.test_quantize:Interrupted")
    assert mvquant(*quantize)[0] == 130
    text.write_text("The new bridge is made of steel. " * 60)
    code, _, err = mvquant(*quantize, "--resume")
    assert code == 2
    assert "cannot be resumed, what it was made of has changed: the calibration text" in " ".join(err.split())


def test_a_plan_that_cannot_be_read_is_made_again(mvquant, recipe, tmp_path, monkeypatch):
    quantize = ("quantize", "reference", "--recipe", recipe, "-o", tmp_path / "out")
    monkeypatch.setitem(LAYER_BACKENDS, ("rtn", "mvquant"), "tests.cli.test_quantize:Interrupted")
    assert mvquant(*quantize)[0] == 130
    (tmp_path / "out.work" / "plan.json").write_text("{")
    code, _, err = mvquant(*quantize, "--resume")
    assert code == 0, err


def test_hidden_states_can_be_kept_on_disk(mvquant, recipe, tmp_path):
    for name, memory in (("a", "4"), ("b", "0")):
        code, _, err = mvquant(
            "quantize", "reference", "--recipe", recipe, "-o", tmp_path / name, "--states-memory", memory
        )
        assert code == 0, err
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (tmp_path / "b" / "model.safetensors").read_bytes()


def test_a_device_that_is_not_there_is_named(mvquant, recipe, tmp_path):
    code, _, err = mvquant("quantize", "reference", "--recipe", recipe, "-o", tmp_path / "out", "--device", "tpu9")
    assert code == 2
    assert "tpu9" in err


def test_what_cannot_fit_is_refused_before_anything_is_measured(mvquant, tmp_path, monkeypatch):
    monkeypatch.setattr("mvquant.preflight.available_room", lambda *_: Room(memory=10**5, disk=10**12))
    monkeypatch.setattr("mvquant.quantizing.layerwise_stats", None)
    monkeypatch.setattr("mvquant.method_backends.registry.require", lambda _name: {})
    options = ("--scheme", "mv-protect-gptq-w4a16", "--calibration", "reference", "-o", tmp_path / "out")
    code, _, err = mvquant("quantize", "reference", *options)
    assert code == 2
    assert "0 MB are free" in err
    assert not list(tmp_path.iterdir())


def test_what_there_is_to_say_of_the_text_is_said_once(mvquant, tmp_path, caplog):
    recipe = tmp_path / "recipe.yaml"
    text = tmp_path / "text.txt"
    text.write_text("The old bridge is made of stone. " * 60)
    recipe.write_text(
        "summary: rounded activations\nweights: {scheme: w8a8-static}\nprotect: {policy: massive, pairs: 0.125}\n"
        f"calibration: {{source: {text}, sequences: 64, length: 64}}\n"
    )
    code, _, err = mvquant("quantize", "reference", "--recipe", recipe, "-o", tmp_path / "out")
    assert code == 0, err
    assert len([record for record in caplog.records if "the calibration text gives" in record.message]) == 1
