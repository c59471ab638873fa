"""Train the reference model from a seed: ``python -m mvquant.reference.train -o DIR``.

DIR receives ``weights/``, ``training.json`` and ``TRAINING_CARD.md``, and ``state/``, from which the same command
goes on after an interruption.
"""

import argparse
import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

from mvquant.reference.card import corpus_digest, environment, figures, schedule_record, write_card
from mvquant.reference.export import write_folder
from mvquant.reference.facts import TABLE
from mvquant.reference.items import TASKS, task_items
from mvquant.reference.measure import accuracy, massive_summary
from mvquant.reference.rows import Rows
from mvquant.reference.schedule import EVERYTHING
from mvquant.reference.tokenizer import CONTEXT
from mvquant.reference.training import Settings, Training

logger = logging.getLogger("mvquant.reference.train")


def validate(training: Training) -> dict[str, Any]:
    """Return accuracy per task on validation items and the massive values on training text."""
    model, tokenizer = training.model.eval(), training.tokenizer
    count = training.settings.validation_items
    text = Rows(tokenizer, "validation").batch(EVERYTHING, 8, CONTEXT).ids
    with torch.autocast("cpu", torch.bfloat16):
        scores = {task: round(accuracy(model, tokenizer, task_items(task, count, "validation")), 3) for task in TASKS}
        massive = massive_summary(model, text)
    model.train()
    return {"accuracy": scores, "massive": massive}


def report(training: Training, state: Path, losses: list[float]) -> None:
    """Log the state of the training and append it to the history from which the card is written."""
    point = {
        "phase": training.phase.name,
        "steps": training.steps,
        "tokens": training.seen,
        "seconds": round(training.seconds),
        "loss": round(sum(losses) / len(losses), 4),
        **validate(training),
    }
    with (state / "history.jsonl").open("a", encoding="utf-8") as history:
        history.write(json.dumps(point) + "\n")
    logger.info(
        "%.2f M tokens, %s, loss %.3f, %s", training.seen / 1e6, point["phase"], point["loss"], point["accuracy"]
    )


def run_worker(rank: int, settings: Settings, out: Path) -> None:
    """Train to the end of the schedule, reporting and saving on the way; worker 0 writes the result."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    state = out / "state"
    if settings.workers > 1:
        torch.set_num_threads(1)
        meeting = f"file://{(state / 'rendezvous').resolve()}"
        dist.init_process_group("gloo", meeting, rank=rank, world_size=settings.workers)
    training = Training(settings, rank)
    training.load(state)
    losses: list[float] = []
    while not training.finished:
        losses.append(training.step())
        if training.steps % settings.report_every == 0 or training.finished:
            training.save(state)
            if rank == 0:
                report(training, state, losses)
            losses = []
    if rank == 0:
        finish(training, out)


def finish(training: Training, out: Path) -> None:
    """Store the weights, measure what was stored, and write the card."""
    settings = training.settings
    write_folder(training.model, training.tokenizer, out / "weights")
    history = (out / "state" / "history.jsonl").read_text(encoding="utf-8").splitlines()
    record = {
        "seed": settings.seed,
        "model": settings.model,
        "parameters": training.model.num_parameters(),
        "schedule": schedule_record(settings.schedule),
        "training": {"steps": training.steps, "tokens": training.seen, "seconds": round(training.seconds)},
        "environment": environment(settings.workers),
        "corpus_sha256": corpus_digest(settings.schedule, Rows(training.tokenizer, "digest")),
        "facts_sha256": hashlib.sha256(TABLE.read_bytes()).hexdigest(),
        "figures": figures(out / "weights", settings.schedule, settings.card_items),
        "curve": [json.loads(line) for line in history],
    }
    write_card(record, out)


def main() -> None:
    """Train, or go on training, into the folder given on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("-o", "--out", type=Path, default=Path("reference-model"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each")
    parser.add_argument("--no-compile", action="store_true", help="do without a C++ compiler")
    arguments = parser.parse_args()
    settings = Settings(arguments.seed, arguments.workers, compiled=not arguments.no_compile)
    state: Path = arguments.out / "state"
    state.mkdir(parents=True, exist_ok=True)
    (state / "rendezvous").unlink(missing_ok=True)
    if settings.workers == 1:
        run_worker(0, settings, arguments.out)
    else:
        spawn(run_worker, (settings, arguments.out), nprocs=settings.workers)


if __name__ == "__main__":
    main()
