"""Our items per second against lm-evaluation-harness called directly, on the same tasks and the reference model.

    OMP_NUM_THREADS=1 python benchmarks/evaluate.py     # writes benchmarks/results/evaluate.json

Both runners read the same task files and the same items, in batches of the same size, in one process and by turns
(ours, theirs, ours, theirs, ...), so that whatever else the machine does hits both; the ratio is of the fastest turns.
Both get a loaded model and loaded items; neither loading nor the listing of tasks is counted. That both get as many
answers right, float noise aside, is checked on the way.
"""

import argparse
import json
import platform
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from lm_eval import evaluator
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from mvquant import pipeline
from mvquant.evaluation import Task, evaluate
from mvquant.resources import resource_folder

RESULTS = Path(__file__).parent / "results" / "evaluate.json"
TASKS = ("reference_passkey", "reference_arithmetic", "reference_sentiment", "reference_city_yes_no")
BATCH = 64
NOISE = 0.01
"""Share of the items that padding on another side may change, in bfloat16."""


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of CPU of this process, which a busy machine does not stretch, and what was returned."""
    started = time.process_time()
    found = work()
    return time.process_time() - started, found


def right_answers(samples: list[dict[str, Any]]) -> int:
    """Items that the harness scored as right."""
    return sum(int(sample[sample["metrics"][0]]) for sample in samples)


def main() -> None:
    """Take turns on each task and save items per second."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--limit", type=int, default=256, help="items of each task")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    model, tokenizer = pipeline.load_model(Path(pipeline.model_location("reference")))
    tasks = pipeline.find_tasks(list(TASKS))
    adapter = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=BATCH, device="cpu")
    manager = TaskManager(include_path=str(resource_folder("eval") / "tasks"), include_defaults=False)
    rows: dict[str, dict[str, float]] = {}
    for task in tasks:
        rows[task.name] = compare_on(task, (model, tokenizer), adapter, manager, arguments.limit, arguments.rounds)
        print(task.name, rows[task.name], flush=True)
    seconds = {who: sum(row[f"{who}_seconds"] for row in rows.values()) for who in ("mvquant", "lm_eval")}
    report = {
        "ratio": seconds["lm_eval"] / seconds["mvquant"],
        "tasks": rows,
        "limit": arguments.limit,
        "rounds": arguments.rounds,
        "batch_size": BATCH,
        "clock": "process_time",
        "threads": torch.get_num_threads(),
        "machine": platform.processor() or platform.machine(),
        "versions": {name: version(name) for name in ("mvquant", "lm_eval", "torch", "transformers")},
    }
    arguments.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(f"items per second, mvquant / lm_eval: {report['ratio']:.2f}")


def compare_on(
    task: Task, loaded: tuple[Any, Any], adapter: HFLM, manager: TaskManager, limit: int, rounds: int
) -> dict[str, float]:
    """Items per second of both, on one task; refuses to compare runs that do not agree."""

    def ours() -> int:
        found = evaluate(*loaded, [task], limit=limit, batch_size=BATCH).tasks[task.name]
        return sum(row.correct for row in found.rows)

    built = manager.load([task.name])["tasks"][task.name]

    def theirs() -> int:
        found = evaluator.simple_evaluate(
            adapter, tasks=[built], task_manager=manager, bootstrap_iters=0, limit=limit, batch_size=BATCH
        )
        return right_answers(found["samples"][task.name])

    turns = [(timed(ours), timed(theirs)) for _ in range(rounds)]
    right, their_right = turns[0][0][1], turns[0][1][1]
    best = {"mvquant": min(mine[0] for mine, _ in turns), "lm_eval": min(other[0] for _, other in turns)}
    items = min(limit, len(task.items))
    if abs(right - their_right) > NOISE * items:
        message = f"{task.name}: the runners do not agree: {right} right answers in ours, {their_right} in theirs"
        raise SystemExit(message)
    return {
        "items": items,
        "mvquant_right": right,
        "lm_eval_right": their_right,
        **{f"{who}_seconds": seconds for who, seconds in best.items()},
        **{f"{who}_items_per_second": items / seconds for who, seconds in best.items()},
        "ratio": best["lm_eval"] / best["mvquant"],
    }


if __name__ == "__main__":
    main()
