"""`mvquant quantize` with a method that calibrates: interrupted, and gone on with."""

import pytest

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
