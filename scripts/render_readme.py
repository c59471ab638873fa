"""Fill the marked blocks of README.md from committed results: `python scripts/render_readme.py`.

A block stands between `<!-- begin NAME -->` and `<!-- end NAME -->`; a test fails while one is stale.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path

from mvquant.evaluation import load_results
from mvquant.report import markdown_table, verdict_chart

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
README = ROOT / "README.md"
CHART = ROOT / "docs" / "verdict.svg"


def verdict() -> str:
    """The table of what each variant loses."""
    return markdown_table(load_results(RESULTS / "verdict.jsonl"))


def training() -> str:
    """What the reference model reaches, from its training card."""
    return (ROOT / "mvquant" / "reference" / "TRAINING_CARD.md").read_text(encoding="utf-8")


def linear() -> str:
    """Speed of the mixed-row linear."""
    return _ratio_table(RESULTS / "linear.json")


BLOCKS: dict[str, Callable[[], str]] = {"verdict": verdict}


def rendered(text: str) -> str:
    """Return the README with every block filled anew."""
    for name, render in BLOCKS.items():
        pattern = re.compile(rf"(<!-- begin {name} -->\n).*?(<!-- end {name} -->)", re.DOTALL)
        body = render().strip()
        text = pattern.sub(lambda match, body=body: f"{match[1]}{body}\n{match[2]}", text)
    return text


def _ratio_table(path: Path) -> str:
    return json.dumps(json.loads(path.read_text(encoding="utf-8")))


if __name__ == "__main__":
    README.write_text(rendered(README.read_text(encoding="utf-8")), encoding="utf-8")
    verdict_chart(load_results(RESULTS / "verdict.jsonl"), CHART)
