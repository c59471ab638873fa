import sys

import pytest

from mvquant.comparison import Setting
from mvquant.comparison.results import FLIPS_FILE, RESULTS_FILE
from mvquant.errors import UsageError
from mvquant.pipeline import load_model
from tests.comparison.examples import make_world, protected

TEXT = {"sequences": 4, "length": 16, "new_tokens": 6}


def test_without_ray_the_way_to_it_is_said(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    world = make_world(tmp_path)
    with pytest.raises(UsageError, match=r"--engine ray needs Ray .*pip install 'mvquant\[ray\]'"):
        world.compare(world.recipe("w4a16-row"), setting=Setting(engine="ray"))
    assert world.loads == []


@pytest.mark.backend
@pytest.mark.enable_socket
@pytest.mark.filterwarnings("ignore")
def test_ray_answers_the_same_to_the_bit(tmp_path):
    ray = pytest.importorskip("ray")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        for engine in ("local", "ray"):
            world = make_world(tmp_path / engine)
            variants = [{"name": "mine", "quantize": protected(2)}, {"name": "no", "quantize": BROKEN}, "w3a16-row"]
            recipe = world.recipe(*variants, equal_bytes=True, text=TEXT)
            world.compare(recipe, load=load_model, setting=Setting(engine=engine))
    finally:
        ray.shutdown()
    here, there = (tmp_path / engine / "out" for engine in ("local", "ray"))
    assert (here / FLIPS_FILE).read_bytes() == (there / FLIPS_FILE).read_bytes()
    text = (there / RESULTS_FILE).read_text().replace(str(tmp_path / "ray"), str(tmp_path / "local"))
    assert text == (here / RESULTS_FILE).read_text()


BROKEN = {"summary": "no group of 128", "weights": {"scheme": "w4a16"}}
