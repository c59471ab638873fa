"""The README is true: its figures are those of committed results, and its commands run."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def script(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_figure_is_rendered_from_committed_results():
    assert script("render_readme").rendered(README) == README, "run `python scripts/render_readme.py`"


def test_every_link_to_a_file_leads_somewhere():
    targets = re.findall(r"\]\((?!https?:)([^)#]+)\)", README)
    assert targets
    assert [target for target in targets if not (ROOT / target).exists()] == []


def commands():
    return re.findall(r"^(mvquant .*?)(?:\s+#.*)?$", README, flags=re.MULTILINE)


def test_the_commands_run_in_order(tmp_path):
    assert len(commands()) == 8
    for command in commands():
        limited = f"{command} --limit 8" if command.startswith(("mvquant eval", "mvquant compare")) else command
        run = subprocess.run(
            [sys.executable, "-m", *limited.split()], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert run.returncode == 0, f"{limited}\n{run.stderr}"
    assert (tmp_path / "out" / "plan.json").is_file()
    assert (tmp_path / "report" / "analysis.json").is_file()
    assert (tmp_path / "comparison" / "report.html").is_file()


def test_the_python_example_runs(tmp_path):
    example = re.search(r"```python\n(.*?)```", README, flags=re.DOTALL)[1]
    quantize = ["-m", "mvquant", "quantize", "reference", "--scheme", "mv-protect", "-o", "out"]
    subprocess.run([sys.executable, *quantize], cwd=tmp_path, check=True, capture_output=True)
    run = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", example],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ,
    )
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("name", ["LICENSE", "CHANGELOG.md", "CONTRIBUTING.md", "constraints.txt", "Makefile"])
def test_what_a_stranger_looks_for_is_there(name):
    assert (ROOT / name).stat().st_size > 100
