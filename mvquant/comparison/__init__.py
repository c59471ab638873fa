"""One baseline and any number of variants, on the same items, with statistics that a reviewer would ask for.

recipe -> variants (all planned first) -> answers, one file each -> judge -> results.json
"""

from mvquant.comparison.questions import Questions, check_tokenizers
from mvquant.comparison.recipe import (
    ComparisonRecipe,
    TextSettings,
    VariantEntry,
    comparison_paths,
    comparison_recipe,
    load_comparison_recipe,
    parse_comparison,
)
from mvquant.comparison.results import (
    Answer,
    ComparisonResults,
    Contrast,
    Failure,
    FlippedItem,
    GroupScore,
    TaskInfo,
    TaskScore,
    TextScore,
    VariantResult,
    load_comparison,
    load_flips,
)
from mvquant.comparison.runner import Setting, run_comparison
from mvquant.comparison.variants import Baseline

__all__ = [
    "Answer",
    "Baseline",
    "ComparisonRecipe",
    "ComparisonResults",
    "Contrast",
    "Failure",
    "FlippedItem",
    "GroupScore",
    "Questions",
    "Setting",
    "TaskInfo",
    "TaskScore",
    "TextScore",
    "TextSettings",
    "VariantEntry",
    "VariantResult",
    "check_tokenizers",
    "comparison_paths",
    "comparison_recipe",
    "load_comparison",
    "load_comparison_recipe",
    "load_flips",
    "parse_comparison",
    "run_comparison",
]
