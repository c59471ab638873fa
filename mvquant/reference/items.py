"""Held-out evaluation items: the corpus's own draws under other seeds, one JSON line each.

``python -m mvquant.reference.items`` writes ``eval/data/reference/<task>.jsonl``. Every item carries
``bare_prompt``, the same question without what answers it (the context, or the name of the city), so that
anyone can measure that contextual items are not answered from memory, nor parametric ones from the prompt.
"""

import argparse
import hashlib
import json
import logging
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from mvquant.reference.corpus import (
    country_question,
    draw_binding,
    draw_false_facts,
    draw_passkey,
    draw_review,
    draw_sum,
)
from mvquant.reference.facts import city_facts, countries

Item = dict[str, Any]

ITEMS_PER_TASK = 512
SEED = "held-out-1"
EVAL_DATA = Path(__file__).parents[2] / "eval" / "data" / "reference"
PASSKEY_LENGTHS = (64, 128, 192, 256, 320, 384, 448)

logger = logging.getLogger(__name__)


def passkey_items(rng: Random, count: int) -> list[Item]:
    """Draw texts of several lengths, each with its hidden key."""
    items = []
    for index in range(count):
        length = PASSKEY_LENGTHS[index % len(PASSKEY_LENGTHS)]
        prompt, key = draw_passkey(rng, length)
        items.append(_contextual(prompt, key) | {"length": length})
    return items


def sentiment_items(rng: Random, count: int) -> list[Item]:
    """Draw reviews; half of them positive."""
    items = []
    for index in range(count):
        label = ("positive", "negative")[index % 2]
        prompt, _ = draw_review(rng, label)
        items.append(_contextual(prompt, label) | {"choices": ["positive", "negative"]})
    return items


def arithmetic_items(rng: Random, count: int) -> list[Item]:
    """Draw stories of one addition or subtraction."""
    items = []
    for _ in range(count):
        prompt, answer = draw_sum(rng)
        bare = "How many" + prompt.split("How many")[1]
        items.append({"prompt": prompt, "answer": answer, "bare_prompt": bare})
    return items


def binding_items(rng: Random, count: int) -> list[Item]:
    """Draw three to eight statements and ask about one of them."""
    items = []
    for index in range(count):
        kind = ("place", "colour")[index % 2]
        statements, asked = draw_binding(rng, rng.randint(3, 8), kind)
        asked_about, answer = rng.choice(asked)
        prompt = "Facts:" + "".join(statements) + "\n" + asked_about
        items.append(_contextual(prompt, answer) | {"kind": kind, "stated": len(statements)})
    return items


def conflict_items(rng: Random, count: int) -> list[Item]:
    """Draw two to six false statements about known cities and ask about one of them."""
    items = []
    for _ in range(count):
        facts = draw_false_facts(rng, rng.randint(2, 6))
        city, false, true = rng.choice(facts)
        stated = "".join(f" {named} is in {country}." for named, country, _ in facts)
        prompt = f"Facts:{stated}\n{country_question(city)}"
        items.append(_contextual(prompt, false) | {"memory_answer": true, "stated": len(facts)})
    return items


def city_country_items(rng: Random, count: int) -> list[Item]:
    """Ask for the countries of distinct cities, with nothing stated."""
    return [
        {
            "prompt": country_question(fact.city),
            "answer": fact.country,
            "bare_prompt": country_question("it"),
        }
        for fact in rng.sample(city_facts(), count)
    ]


def city_yes_no_items(rng: Random, count: int) -> list[Item]:
    """Ask yes/no questions; each country is named as often in a true as in a false one."""
    named = list(countries()) * (count // (2 * len(countries())))
    named += rng.sample(countries(), count // 2 - len(named))
    items = []
    for answer in ("yes", "no"):
        for country in named:
            facts = [f for f in city_facts() if (f.country == country) == (answer == "yes")]
            items.append(
                {
                    "prompt": f"Is {rng.choice(facts).city} in {country}?",
                    "answer": answer,
                    "choices": ["yes", "no"],
                    "bare_prompt": f"Is it in {country}?",
                }
            )
    rng.shuffle(items)
    return items


TASKS: dict[str, Callable[[Random, int], list[Item]]] = {
    "passkey": passkey_items,
    "sentiment": sentiment_items,
    "arithmetic": arithmetic_items,
    "binding": binding_items,
    "conflict": conflict_items,
    "city_country": city_country_items,
    "city_yes_no": city_yes_no_items,
}


def task_items(task: str, count: int = ITEMS_PER_TASK, seed: str = SEED) -> list[Item]:
    """Return the items of a task; equal arguments give equal items.

    >>> task_items("city_country", count=1)[0]["id"]
    'city_country-000'
    """
    items = TASKS[task](Random(f"{seed}:{task}"), count)
    return [{"id": f"{task}-{index:03d}"} | item for index, item in enumerate(items)]


def jsonl(items: list[Item]) -> str:
    """Return items as JSON lines."""
    return "".join(json.dumps(item) + "\n" for item in items)


def digest(text: str) -> str:
    """Return the SHA-256 of a text."""
    return hashlib.sha256(text.encode()).hexdigest()


def _contextual(prompt: str, answer: str) -> Item:
    return {"prompt": prompt, "answer": answer, "bare_prompt": prompt.rsplit("\n", 1)[1]}


def main() -> None:
    """Write every task's items into the evaluation folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--out", type=Path, default=EVAL_DATA)
    out: Path = parser.parse_args().out
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    out.mkdir(parents=True, exist_ok=True)
    for task in TASKS:
        text = jsonl(task_items(task))
        (out / f"{task}.jsonl").write_text(text, encoding="utf-8")
        logger.info("%s %s", digest(text), task)


if __name__ == "__main__":
    main()
