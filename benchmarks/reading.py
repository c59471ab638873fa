"""What the reference model loses when K, or Q and K, are rounded to few bits: the cache, not the weights.

    OMP_NUM_THREADS=1 python -m benchmarks.reading     # writes benchmarks/results/reading.jsonl

One line per variant, with every answer, as `mvquant verdict` reads them; the first is full precision. Every query reads
keys as the cache holds them, its own prompt's included. Scales are one per token and head in the variants `token`, as
simple caches have them; `channel`, the default, has one per channel of 32 tokens; `static` keeps none beside the
integers.
Bits are chosen on calibration text of other seeds than the items.
"""

import argparse
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from rich.console import Console

from mvquant import pipeline
from mvquant.cache_recipe import KeyCache, KeyPolicy
from mvquant.evaluation import EvalResult, Subject, evaluate, save_results
from mvquant.kvcache import CachePlan, KeyFormat, key_plan_from_stats
from mvquant.kvcache.attach import quantized_cache
from mvquant.named_schemes import recipe_for_scheme
from mvquant.report import verdict_table

RESULTS = Path(__file__).parent / "results" / "reading.jsonl"
TOKEN = KeyFormat(scales="token")
CHANNEL = KeyCache().format
STATIC = KeyFormat(scales="static", stage="pre-rope")


class Variant(NamedTuple):
    """Average bits of K, who gets them, in which format, and whether Q is rounded too."""

    bits: float
    policy: KeyPolicy
    keys: KeyFormat
    queries: bool = False

    @property
    def name(self) -> str:
        """Name in the table."""
        return f"{'qk' if self.queries else 'k'}{self.bits:g}-{self.policy}-{self.keys.scales}"


RANKED: tuple[KeyPolicy, ...] = ("random", "fast-pairs", "slow-pairs", "massive")

VARIANTS = (
    *(Variant(bits, "none", TOKEN) for bits in (2.0, 3.0)),
    *(Variant(2.25, policy, TOKEN) for policy in RANKED),
    *(Variant(bits, "sensitivity", TOKEN) for bits in (2.0, 2.25, 2.5)),
    *(Variant(bits, "none", TOKEN, queries=True) for bits in (2.0, 3.0)),
    *(Variant(2.25, policy, TOKEN, queries=True) for policy in ("random", "massive")),
    *(Variant(bits, "sensitivity", TOKEN, queries=True) for bits in (2.0, 2.25, 2.5)),
    *(Variant(bits, "none", CHANNEL) for bits in (1.0, 2.0, 3.0)),
    *(Variant(bits, "sensitivity", CHANNEL) for bits in (1.25, 1.5, 2.0, 2.5)),
    *(Variant(2.0, policy, STATIC) for policy in ("none", "sensitivity")),
)


def judge(name: str, plan: CachePlan | None, variant: Variant | None, limit: int | None) -> EvalResult:
    """Evaluate the reference model with a cache plan, if there is one."""
    model, tokenizer = pipeline.load_model(Path(pipeline.model_location("reference")))
    tasks = pipeline.find_tasks(pipeline.default_tasks("reference"))
    subject = Subject(model=name, bits_per_weight=16)
    if plan is not None:
        bits = plan.key_bits_per_value()
        subject = Subject(model=name, plan_hash=plan.hash, bits_per_weight=16, bits_per_cached_key=bits)
    with ExitStack() as stack:
        if plan is not None and variant is not None:
            stack.enter_context(quantized_cache(model, plan, round_queries=variant.queries))
        return evaluate(model, tokenizer, tasks, subject=subject, limit=limit)


def main() -> None:
    """Evaluate every variant and save the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=int, help="only the first so many items of each task")
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    opened = pipeline.open_model("reference")
    stats = pipeline.measure("reference", opened, recipe_for_scheme("mv-protect").calibration)
    results = [judge("full precision", None, None, arguments.limit)]
    for variant in VARIANTS:
        plan = key_plan_from_stats(stats, opened.view, variant.bits, variant.policy, keys=variant.keys)
        results.append(judge(variant.name, plan, variant, arguments.limit))
        print(f"{variant.name}: {plan.key_bits_per_value():.2f} bits with scales", file=sys.stderr)
    save_results(results, arguments.output)
    Console().print(verdict_table(results))


if __name__ == "__main__":
    main()
