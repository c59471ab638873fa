"""What the reference model loses at 8, 4, 3 and 2 bits: plain, mv-protect, and controls with the same rows.

    OMP_NUM_THREADS=1 python benchmarks/verdict.py     # writes benchmarks/results/verdict.jsonl (about 10 minutes)

One line per variant, with every answer, as `mvquant verdict` reads them; the first is full precision.
A variant is quantized in memory, which gives the logits of its checkpoint bit for bit (a test holds it).
"""

import argparse
import sys
from pathlib import Path

from rich.console import Console

from mvquant import pipeline
from mvquant.evaluation import EvalResult, Subject, evaluate, save_results
from mvquant.methods import apply_plan
from mvquant.named_schemes import recipe_for_scheme
from mvquant.plan import Plan
from mvquant.policies import make_plan
from mvquant.recipe import Protect, Recipe
from mvquant.report import verdict_table

RESULTS = Path(__file__).parent / "results" / "verdict.jsonl"
BITS = (8, 4, 3, 2)
CONTROLS = ("sensitivity", "slow-pairs", "random", "fast-pairs", "top-norm", "whole-module")
CONTROLLED_BITS = (3, 2)


def recipes() -> dict[str, Recipe]:
    """Every variant by name."""
    variants = {f"w{bits}a16": recipe_for_scheme(f"w{bits}a16") for bits in BITS}
    variants |= {f"mv-protect-w{bits}a16": recipe_for_scheme(f"mv-protect-w{bits}a16") for bits in BITS}
    for bits in CONTROLLED_BITS:
        massive = recipe_for_scheme(f"mv-protect-w{bits}a16")
        for policy in CONTROLS:
            budget = {} if policy == "whole-module" else {"pairs": massive.protect.pairs}
            protect = Protect(policy=policy, **budget)
            variants[f"{policy}-w{bits}a16"] = massive.model_copy(update={"protect": protect})
    return variants


def judge(name: str, plan: Plan | None, limit: int | None) -> EvalResult:
    """Quantize the reference model in memory, if there is a plan, and evaluate it."""
    model, tokenizer = pipeline.load_model(Path(pipeline.model_location("reference")))
    subject = Subject(model=name, bits_per_weight=16)
    if plan is not None:
        apply_plan(model, plan)
        subject = Subject(model=name, plan_hash=plan.hash, bits_per_weight=plan.bits_per_weight)
    tasks = pipeline.find_tasks(pipeline.default_tasks("reference"))
    return evaluate(model, tokenizer, tasks, subject=subject, limit=limit)


def main() -> None:
    """Evaluate every variant and save the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--limit", type=int, help="only the first so many items of each task")
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    opened = pipeline.open_model("reference")
    stats = pipeline.measure("reference", opened, recipe_for_scheme("mv-protect").calibration)
    results = [judge("full precision", None, arguments.limit)]
    for name, recipe in recipes().items():
        plan = make_plan(opened.view, recipe, model="reference", dtype=opened.checkpoint.dtype, stats=stats)
        results.append(judge(name, plan, arguments.limit))
        print(name, file=sys.stderr)
    save_results(results, arguments.output)
    Console().print(verdict_table(results))


if __name__ == "__main__":
    main()
