"""What a page is made of: the folder of a comparison, read once."""

from dataclasses import dataclass
from pathlib import Path

from mvquant.analysis import Analysis, load_analysis
from mvquant.comparison import ComparisonResults, FlippedItem, VariantResult, load_comparison, load_flips
from mvquant.comparison.results import STATS_FILE
from mvquant.errors import EvaluationError
from mvquant.plan import Plan, load_plan
from mvquant.report.verdict import without_shared_word
from mvquant.stats import CalibrationStats, load_stats


@dataclass(frozen=True)
class Material:
    """One comparison.

    Attributes:
        results: all figures.
        flips: items that some variant answered right and another wrong.
        plans: by the name of the variant, for those that have one.
        analysis: the massive values of the baseline, where a policy measured them.
        stats: the norms that they stand out from, where they were kept.
    """

    results: ComparisonResults
    flips: tuple[FlippedItem, ...] = ()
    plans: dict[str, Plan] | None = None
    analysis: Analysis | None = None
    stats: CalibrationStats | None = None

    @property
    def baseline(self) -> VariantResult:
        """What the others are compared with."""
        return self.results.variants[0]

    @property
    def compared(self) -> tuple[VariantResult, ...]:
        """Variants and controls, without the baseline and its repetition."""
        return tuple(variant for variant in self.results.variants if variant.role in ("variant", "control"))

    @property
    def task_labels(self) -> dict[str, str]:
        """Tasks as people read them."""
        return {name: label.replace("_", " ") for name, label in without_shared_word(self.results.tasks).items()}


def load_material(folder: Path) -> Material:
    """Read everything that the folder of a comparison holds.

    Raises:
        EvaluationError: no comparison, or one whose plans or other files are missing.
        MvquantError: a plan, analysis or statistics that cannot be read.
    """
    results = load_comparison(folder)
    analysis = folder / results.analysis_file if results.analysis_file else None
    stats = folder / STATS_FILE
    return Material(
        results=results,
        flips=tuple(load_flips(folder)),
        plans={
            variant.name: load_plan(_inside(folder, variant.plan_file))
            for variant in results.variants
            if variant.plan_file is not None
        },
        analysis=load_analysis(analysis) if analysis is not None and analysis.is_file() else None,
        stats=load_stats(stats) if stats.is_file() else None,
    )


def _inside(folder: Path, name: str) -> Path:
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        message = f"{folder}: the plan {name!r} lies outside the folder: compare again"
        raise EvaluationError(message)
    return path
