"""A small world to compare in: a tiny model on disk with a tokenizer, tasks, and running text."""

from dataclasses import dataclass, field
from pathlib import Path

import torch

from mvquant.comparison import Baseline, ComparisonRecipe, Questions, Setting, comparison_recipe, run_comparison
from mvquant.comparison.fingerprint import folder_hash
from mvquant.evaluation import load_tasks
from mvquant.pipeline import load_model, open_model, quantize
from mvquant.stats import collect_stats
from tests.evaluation.examples import task_yaml, tiny_tokenizer, write_task
from tests.tiny_models import tiny_model, tiny_tokens

PLACES = ["attic", "garden", "stable", "barn", "tower", "cellar"]
READING = [{"id": f"r{i}", "prompt": f"Tom: {place}. Tom?", "answer": place} for i, place in enumerate(PLACES)]
CHOOSING = [
    {"id": f"c{i}", "prompt": f"{place} or not?", "answer": ("yes", "no")[i % 2], "choices": ["yes", "no"]}
    for i, place in enumerate(PLACES * 2)
]
PROTECT = {"policy": "massive", "pairs": 0.25}


def protected(bits: int = 3) -> dict:
    """A recipe in place: massive pairs protected, groups that fit the tiny model."""
    return {"summary": f"protected w{bits}", "weights": {"scheme": f"w{bits}a16-row"}, "protect": PROTECT}


@dataclass
class World:
    """Everything that `run_comparison` takes, and what it was told on the way."""

    folder: Path
    notes: list[str] = field(default_factory=list)
    steps: list[tuple[str, int, int]] = field(default_factory=list)
    loads: list[Path] = field(default_factory=list)

    @property
    def model(self) -> Path:
        return self.folder / "model"

    def recipe(self, *variants: object, **changes: object) -> ComparisonRecipe:
        fields = {"model": str(self.model), "variants": list(variants), "batch_size": 4, "text": None, **changes}
        return comparison_recipe(fields, "test")

    def questions(self, *, text: bool = False) -> Questions:
        sequences = tuple(row[None] for row in tiny_tokens(4, 16)) if text else ()
        return Questions(tasks=tuple(load_tasks(self.folder / "eval")), sequences=sequences)

    def baseline(self) -> Baseline:
        opened = open_model(str(self.model))

        def measure(calibration):
            model, _ = load_model(self.model)
            return collect_stats(model, opened.view, [tiny_tokens(2, 24)], source="tiny", seed=calibration.seed)

        def write(plan, folder):
            quantize(opened, plan, folder)

        return Baseline("tiny", opened.checkpoint, opened.view, folder_hash(self.model), measure, write)

    def load(self, folder: Path, device: str):
        self.loads.append(folder)
        return load_model(folder, device)

    def compare(self, recipe: ComparisonRecipe, out: str = "out", *, load=None, setting=None):
        return run_comparison(
            recipe,
            self.baseline(),
            self.questions(text=recipe.text is not None),
            load or self.load,
            self.folder / out,
            setting=setting or Setting(command="mvquant compare"),
            progress=lambda *step: self.steps.append(step),
            note=self.notes.append,
        )


def make_world(folder: Path) -> World:
    """Write the model and the tasks."""
    write_task(folder / "eval", task_yaml("places", chance=0.1), READING)
    write_task(folder / "eval", task_yaml("checks", choice=True, knowledge="parametric", chance=0.5), CHOOSING)
    save_model(folder / "model")
    return World(folder)


def save_model(folder: Path, seed: int = 0, **changes: object) -> Path:
    """A checkpoint that answers bytes, in bfloat16."""
    tokenizer = tiny_tokenizer()
    model = tiny_model("llama", seed=seed, dtype=torch.bfloat16, vocab_size=len(tokenizer), **changes)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
