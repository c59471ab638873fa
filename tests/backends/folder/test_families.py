import ast
from importlib.util import find_spec
from pathlib import Path

import pytest

from mvquant.arch.families import FAMILIES
from mvquant.backends.folder.run import FOLDER_BACKENDS
from mvquant.backends.gptqmodel.adapter import AWQ_FAMILIES


def families_of(package, table):
    """Keys of a table in a package's `models/auto.py`, which takes ten seconds to import."""
    found = find_spec(package)
    assert found, f"{package} is not installed: `make` brings it"
    tree = ast.parse((Path(found.submodule_search_locations[0]) / "models" / "auto.py").read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        named = isinstance(node, ast.Assign) and getattr(node.targets[0], "id", None) == table
        if named and isinstance(node.value, ast.Dict):
            return {key.value for key in node.value.keys if isinstance(key, ast.Constant)}
    raise AssertionError(f"{package} has no table {table}")


@pytest.mark.parametrize(
    ("backend", "package", "table"),
    [("gptqmodel", "gptqmodel", "MODEL_MAP"), ("autoawq", "awq", "AWQ_CAUSAL_LM_MODEL_MAP")],
)
def test_what_we_say_a_package_knows_it_knows(backend, package, table):
    known = families_of(package, table)
    assert FOLDER_BACKENDS[backend].families <= known
    assert backend != "gptqmodel" or known >= AWQ_FAMILIES


def test_families_are_ours():
    assert all(backend.families <= set(FAMILIES) for backend in FOLDER_BACKENDS.values())
