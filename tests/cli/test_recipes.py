"""`mvquant recipes`: recipes for one model and comparisons, told apart."""

import json
import subprocess
import sys

import pytest

from mvquant.comparison.recipe import comparison_paths
from mvquant.recipe import recipe_paths


def test_recipes_for_one_model_and_comparisons_are_listed_apart(mvquant):
    code, out, _ = mvquant("recipes", "ls")
    assert code == 0
    single, several = out.split("Comparisons, for `mvquant compare NAME`:")
    assert [line.split()[0] for line in several.splitlines() if line[:1].strip()] == list(comparison_paths())
    assert all(f"\n{name} " in single for name in recipe_paths())
    assert max(map(len, out.splitlines())) <= 80
    _, out, _ = mvquant("recipes", "ls", "--json")
    assert {kind: list(found) for kind, found in json.loads(out).items()} == {
        "recipes": list(recipe_paths()),
        "comparisons": list(comparison_paths()),
    }
    assert all(summary for found in json.loads(out).values() for summary in found.values())


def test_a_comparison_is_shown_and_checked_as_one(mvquant, tmp_path):
    code, out, _ = mvquant("recipes", "show", "reference")
    assert code == 0
    copy = tmp_path / "copy.yaml"
    copy.write_text(out)
    code, said, err = mvquant("recipes", "validate", copy, "reference", "w4a16")
    assert (code, said.count("valid (")) == (0, 3), err
    copy.write_text(out.replace("equal_bytes", "equal_byte"))
    code, _, err = mvquant("recipes", "validate", copy)
    assert code == 2
    assert "equal_byte: Extra inputs are not permitted" in " ".join(err.split())


@pytest.mark.parametrize("text", ["[", "- variants"])
def test_what_is_no_recipe_at_all(mvquant, tmp_path, text):
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    code, _, err = mvquant("recipes", "validate", path)
    assert code == 2, err
    assert "broken.yaml" in err.replace("\n", "")


def test_listing_does_not_wait_for_torch():
    script = (
        "import sys; from mvquant.cli import app; app(['recipes', 'ls'], standalone_mode=False); "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)
