"""Every extra was installed alone, and worked: `python scripts/try_extras.py`."""

import json
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TRIED = {each["extra"]: each for each in json.loads((ROOT / "benchmarks/results/extras.json").read_text())["extras"]}
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


@pytest.mark.parametrize("extra", ["", "auto-gptq", *sorted(set(EXTRAS) - {"dev"})])
def test_it_worked_alone(extra):
    assert TRIED[extra]["failed"] is None
    assert TRIED[extra]["used"]


def test_an_extra_brings_no_other_package():
    """Each environment has what its own extra asks for: then it was proven alone."""
    quantizers = {"llmcompressor", "gptqmodel", "auto-round", "autoawq", "lm_eval", "ray"}
    brought = {extra: quantizers & set(tried["versions"]) for extra, tried in TRIED.items()}
    assert brought[""] == brought["auto-gptq"] == set()
    assert brought["llmcompressor"] == brought["smoothquant"] == {"llmcompressor", "auto-round"}  # which it asks for
    assert brought["gptq"] == brought["awq"] == {"llmcompressor", "auto-round", "gptqmodel"}
    assert brought["autoround"] == {"auto-round"}
    assert brought["autoawq"] == {"autoawq"}
    assert brought["eval"] == {"lm_eval"}
    assert brought["ray"] == {"ray"}
    assert brought["all"] >= quantizers - {"autoawq"}
