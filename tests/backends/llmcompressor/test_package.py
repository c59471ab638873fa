import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from mvquant.backends.llmcompressor.package import package, unpinned, weight_arguments, weight_scheme
from mvquant.backends.replaced import replaced
from mvquant.errors import BackendError
from mvquant.scheme import WeightScheme

SILENT = """
import logging, sys
from loguru import logger
logger.add(sys.stderr, format="kept: {message}")
from mvquant.backends.llmcompressor.package import package
mappings = package("modifiers.transform.awq.dynamic_mappings")
logger.warning("a handler of ours")
logging.getLogger("ours").warning("a log of ours")
from llmcompressor.logger import logger as theirs
theirs.log("METRIC", "the level exists")
mappings.get_layer_mappings_from_model(None)  # which tells its log that it knows no such model
"""


def test_loading_the_package_says_nothing_and_leaves_no_file_and_no_log_changed(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3]), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SILENT],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == ""
    said = [line for line in done.stderr.splitlines() if line.startswith("kept: ") or line == "a log of ours"]
    assert said == ["kept: a handler of ours", "a log of ours", "kept: the level exists"]
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_is_a_clear_error(monkeypatch):
    monkeypatch.setattr("mvquant.backends.registry.packages_here", lambda _names: {})
    with pytest.raises(BackendError, match=r'llmcompressor.*not installed.*pip install "mvquant\[llmcompressor\]"'):
        package("modifiers.gptq")


@pytest.mark.skipif(torch.accelerator.is_available(), reason="memory can be pinned here")
def test_the_cache_pins_nothing_without_an_accelerator():
    cache = package("pipelines.cache").IntermediatesCache
    before = cache.pin_memory
    values = cache(None, None)
    values.append({"hidden": torch.ones(2)})
    with unpinned():
        values.pin_memory(0)
        assert torch.equal(values.fetch(0)["hidden"], torch.ones(2))
    assert cache.pin_memory is before
    with pytest.raises(RuntimeError, match="accelerator"):
        values.pin_memory(0)  # where this passes one day, the patch is no longer needed


@pytest.mark.parametrize(
    ("scheme", "strategy", "group_size"),
    [("w4a16-g32", "group", 32), ("w8a8", "channel", None), ("w3a16", "group", 128)],
)
def test_schemes_in_the_words_of_the_package(scheme, strategy, group_size):
    chosen = WeightScheme.model_validate(scheme)
    arguments = weight_arguments(chosen, activation_order=True)
    assert (arguments.num_bits, arguments.symmetric) == (chosen.bits, chosen.symmetric)
    assert (arguments.strategy, arguments.group_size) == (strategy, group_size)
    assert arguments.actorder is not None
    assert weight_arguments(chosen).actorder is None


def test_what_is_put_on_a_linear_is_taken_off_again():
    linear = nn.Linear(64, 48)
    before = set(vars(linear))
    with weight_scheme(linear, WeightScheme(bits=4, group_size=32)):
        assert linear.weight_scale.shape == (48, 2)
    assert set(vars(linear)) == before


def test_replacing_ends_with_an_error_too():
    class Owner:
        value = 1

    with pytest.raises(ZeroDivisionError), replaced(Owner, value=0):
        assert 1 / Owner.value
    assert Owner.value == 1
