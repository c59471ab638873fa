"""The training card: what was trained on what, for how long, and what came out, all measured."""

import hashlib
import json
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast

from mvquant.massive import default_ratio
from mvquant.reference.items import ITEMS_PER_TASK, TASKS, digest, jsonl, task_items
from mvquant.reference.measure import accuracy, generated_correctly, massive_summary
from mvquant.reference.rows import Rows
from mvquant.reference.schedule import Schedule
from mvquant.reference.tokenizer import CONTEXT

TARGETS = {
    "passkey": 0.95,
    "sentiment": 0.95,
    "arithmetic": 0.85,
    "binding": 0.80,
    "conflict": 0.70,
    "city_country": 0.95,
    "city_yes_no": 0.90,
}
SLOW_SHARE = 0.9
MASSIVE_ROWS = 16
STORY = """\
## How the schedule came about

- Words first, and few of them: copying among 40 words forms induction heads within 0.5 M tokens; among all 206
  words, or together with everything else, it did not in 3 M. Once they copy, the words grow in four steps of
  0.05 M tokens each, and the step to sentences ("Tom is in the attic ... Where is Tom?") takes 0.1 to 0.3 M.
- Every layer starts as the identity (zero output projections), embeddings start with a deviation of 0.1 and
  learn slowly (3e-4): at the usual start and at the rates of the matrices the heads did not form, or were lost
  again when rarer words came.
- Eight heads of 64 dims, not four of 128: with four, the same curriculum stood still for a million tokens at
  who-is-where, whose statements put the name four tokens before the place.
- **Massive values do not come by themselves at this size.** Left alone, heads that look words up spread over all
  pairs that turn slowly enough: no dim exceeded 2.2 times the mean of its head in the last layer. So in the last
  phase, when reading is in place, a group lasso takes a little off the norm of every row of the last layer's
  `q_proj` and `k_proj` after each step, the same off all. Which rows remain is up to the data: slow pairs (28 to
  31) in the heads that look words up, fast and middle ones in those that copy what stands a few tokens on; some
  heads vanish altogether. *That* values are massive is asked for here. In large models nobody asks: do not take
  this model as evidence of why they arise, nor of where.
- The layers below look a fixed number of tokens back, and with AdamW one fast pair grew massive in each of their
  heads. Muon, which keeps singular values level, spreads that work over many fast pairs.

## What keeps the two kinds of knowledge apart

Contextual answers are drawn at random for every document, and stated false facts carry no loss; parametric
questions state nothing. The *bare* column above measures it. Yes/no questions name each country in as many true
as false questions.
"""


def schedule_record(schedule: Schedule) -> dict[str, Any]:
    """Return the schedule as plain values, documents by the name of their generator."""
    phases = [
        vars(phase)
        | {
            "mixture": {source.__name__: share for source, share in phase.mixture.items()},
            "until_mastered": [source.__name__ for source in phase.until_mastered],
        }
        for phase in schedule.phases
    ]
    return vars(schedule) | {"phases": phases, "rates": vars(schedule.rates)}


def corpus_digest(schedule: Schedule, rows: Rows, count: int = 64) -> str:
    """Return a SHA-256 over `count` rows of every phase and length, drawn by `rows`."""
    seen = hashlib.sha256()
    for phase in schedule.phases:
        for length in phase.lengths:
            ids, weights, _ = rows.batch(phase.mixture, count, length)
            seen.update(ids.numpy().tobytes() + weights.numpy().tobytes())
    return seen.hexdigest()


def figures(folder: Path, schedule: Schedule, count: int = ITEMS_PER_TASK) -> dict[str, Any]:
    """Measure the stored weights: accuracy with and without the context, massive values.

    The weights are stored in bfloat16 and computed with in float32.
    """
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tasks: dict[str, Any] = {}
    for task in TASKS:
        items = task_items(task)[:count]
        tasks[task] = {
            "items": len(items),
            "sha256": digest(jsonl(items)),
            "accuracy": accuracy(model, tokenizer, items),
            "bare_accuracy": accuracy(model, tokenizer, items, "bare_prompt"),
            "target": TARGETS[task],
        }
    text = Rows(tokenizer, "massive").batch(schedule.phases[-1].mixture, MASSIVE_ROWS, CONTEXT).ids
    return {
        "tasks": tasks,
        "binding_by_statements": by_statements(model, tokenizer, count),
        "massive": massive_summary(model, text),
    }


def by_statements(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, count: int = ITEMS_PER_TASK
) -> dict[str, float]:
    """Return the accuracy of the binding items by the number of statements in their prompt."""
    items = task_items("binding")[:count]
    verdicts: dict[int, list[bool]] = {}
    for item, correct in zip(items, generated_correctly(model, tokenizer, items), strict=True):
        verdicts.setdefault(item["stated"], []).append(correct)
    return {str(stated): sum(correct) / len(correct) for stated, correct in sorted(verdicts.items())}


def environment(threads: int) -> dict[str, Any]:
    """Return the machine and the versions that trained."""
    names = ("torch", "transformers", "tokenizers")
    return {
        "machine": _processor(),
        "threads": threads,
        "python": platform.python_version(),
        "versions": {name: version(name) for name in names},
    }


def _processor() -> str:
    described = Path("/proc/cpuinfo")
    if not described.exists():
        return platform.processor()
    lines = described.read_text(encoding="utf-8").splitlines()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} x {names[0]}" if names else platform.processor()


def write_card(record: dict[str, Any], folder: Path) -> None:
    """Write ``training.json`` and, rendered from it, ``TRAINING_CARD.md``."""
    text = json.dumps(record, indent=1) + "\n"
    (folder / "training.json").write_text(text, encoding="utf-8")
    (folder / "TRAINING_CARD.md").write_text(render(record), encoding="utf-8")


def render(record: dict[str, Any]) -> str:
    """Return the training card as Markdown."""
    sections = (_training_lines, _task_lines, _massive_lines, _curve_lines, _missed_lines, _story_lines)
    lines = ["# Training card of the reference model", ""]
    return "\n".join([*lines, *(line for section in sections for line in section(record))])


def _training_lines(record: dict[str, Any]) -> list[str]:
    made, used = record["training"], record["environment"]
    model = ", ".join(f"{name} {value}" for name, value in record["model"].items())
    versions = ", ".join(f"{name} {number}" for name, number in used["versions"].items())
    return [
        "Written by `python -m mvquant.reference.train` from `training.json`; every figure is measured.",
        "",
        (
            f"- Model: `LlamaForCausalLM`, {record['parameters']:,} parameters, tied embeddings, `rope_theta` 500, "
            f"context 512; {model}."
        ),
        (
            f"- Training: seed {record['seed']}, {made['steps']:,} steps, {made['tokens']:,} tokens, "
            f"{made['seconds'] / 60:.0f} minutes of steps in {used['threads']} processes of one thread on "
            f"{used['machine']}, shared with other work."
        ),
        f"- Data: generated; SHA-256 of its sample `{record['corpus_sha256']}`.",
        f"- Facts: `cities.tsv`, SHA-256 `{record['facts_sha256']}` (GeoNames, CC BY 4.0, see `facts/README.md`).",
        f"- Versions: Python {used['python']}, {versions}.",
        "",
    ]


def _task_lines(record: dict[str, Any]) -> list[str]:
    lines = [
        "## Held-out accuracy of the stored bfloat16 weights",
        "",
        "*Bare* is the same question without what answers it: the context, or the name of the city.",
        "",
        "| task | items | accuracy | target | bare |",
        "| --- | --- | --- | --- | --- |",
    ]
    for task, row in record["figures"]["tasks"].items():
        lines.append(
            f"| {task} | {row['items']} | {row['accuracy']:.1%} | {row['target']:.0%} | {row['bare_accuracy']:.1%} |"
        )
    counts = ", ".join(f"{n}: {a:.1%}" for n, a in record["figures"]["binding_by_statements"].items())
    return [*lines, "", f"Binding by the number of statements in the prompt: {counts}.", ""]


def _massive_lines(record: dict[str, Any]) -> list[str]:
    lines = [
        "## Massive values (Q and K after RoPE)",
        "",
        (
            f"Ratio over {default_ratio(record['model']['head_dim']):.2f} (what 5 is for heads of 128 dims); "
            f"{MASSIVE_ROWS} rows of 512 tokens of the last mixture, other seed."
        ),
        "",
        "| states | count per layer | largest ratio per layer | share in slow pairs | pairs |",
        "| --- | --- | --- | --- | --- |",
    ]
    for role, row in record["figures"]["massive"].items():
        share = "-" if row["slow_share"] is None else f"{row['slow_share']:.0%}"
        lines.append(f"| {role.upper()} | {row['per_layer']} | {row['largest_ratio']} | {share} | {row['pairs']} |")
    return [*lines, ""]


def _curve_lines(record: dict[str, Any]) -> list[str]:
    tasks = list(TASKS)
    lines = [
        "## Loss and validation accuracy while training",
        "",
        f"| tokens | phase | loss | {' | '.join(tasks)} |",
        "| --- " * (len(tasks) + 3) + "|",
    ]
    for point in record["curve"]:
        scores = " | ".join(f"{point['accuracy'][task]:.2f}" for task in tasks)
        lines.append(f"| {point['tokens'] / 1e6:.2f} M | {point['phase']} | {point['loss']:.3f} | {scores} |")
    return [*lines, ""]


def _missed_lines(record: dict[str, Any]) -> list[str]:
    return ["## Targets missed", "", *([f"- {line}" for line in missed(record["figures"])] or ["None."]), ""]


def missed(measured: dict[str, Any]) -> list[str]:
    """Return a sentence for every target that the figures miss."""
    lines = [
        f"{task}: {row['accuracy']:.1%} against a target of {row['target']:.0%}."
        for task, row in measured["tasks"].items()
        if row["accuracy"] < row["target"]
    ]
    for role in ("q", "k"):
        row = measured["massive"][role]
        if not sum(row["per_layer"]):
            lines.append(f"Massive values of {role.upper()}: none; the largest ratio is {max(row['largest_ratio'])}.")
        elif row["slow_share"] < SLOW_SHARE:
            lines.append(
                f"Massive values of {role.upper()}: {row['slow_share']:.0%} in slow pairs, target {SLOW_SHARE:.0%}."
            )
    if sum(measured["massive"]["v"]["per_layer"]):
        lines.append("Massive values of V: there are some, where none were expected.")
    return lines


def _story_lines(_record: dict[str, Any]) -> list[str]:
    return [STORY]
