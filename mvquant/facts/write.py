"""Write the yes/no sets: `python -m mvquant.facts.write` makes `eval/data/<topic>/items.jsonl` and says its hash."""

import argparse
import hashlib
import json
import logging
from pathlib import Path

from mvquant.facts.table import TOPICS, Topic
from mvquant.facts.yes_no import yes_no_items

EVAL_DATA = Path(__file__).parents[2] / "eval" / "data"

logger = logging.getLogger(__name__)


def jsonl(topic: Topic) -> str:
    """Return a topic's items as JSON lines; equal tables give equal text."""
    return "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in yes_no_items(topic))


def main() -> None:
    """Write every topic's items into the evaluation folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--out", type=Path, default=EVAL_DATA)
    out: Path = parser.parse_args().out
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for topic in TOPICS:
        text = jsonl(topic)
        path = out / topic / "items.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        logger.info("%s  %s", hashlib.sha256(text.encode()).hexdigest(), path.relative_to(out))


if __name__ == "__main__":
    main()
