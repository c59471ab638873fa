"""Groups of tasks of which a model answered only some: a mean over other tasks is no measure of what was lost."""

from collections.abc import Iterator

from mvquant.comparison import ComparisonResults, VariantResult
from mvquant.evaluation import Estimate, Knowledge
from mvquant.evaluation.statistics import mean
from mvquant.report.verdict import WORDS


def tasks_of(variant: VariantResult, results: ComparisonResults, group: Knowledge) -> str:
    """Say of how many tasks a group is the mean, such as `2 of 3 tasks`; nothing where it is of all asked."""
    if group not in variant.groups:
        return ""
    asked = [name for name, info in results.tasks.items() if info.knowledge == group]
    answered = sum(name in variant.groups[group].tasks for name in asked)
    return f"{answered} of {len(asked)} tasks" if answered < len(asked) else ""


def is_partial(variant: VariantResult, results: ComparisonResults) -> bool:
    """Whether some group of a model lacks tasks."""
    return any(tasks_of(variant, results, group) for group in WORDS)


def full_precision(variant: VariantResult, baseline: VariantResult, group: Knowledge) -> Estimate | None:
    """What full precision scores on those tasks of a group that the variant answered, chance-corrected.

    None where they share no task.
    """
    ours, theirs = variant.groups.get(group), baseline.groups.get(group)
    if ours is None or theirs is None:
        return None
    if set(theirs.tasks) <= set(ours.tasks):
        return theirs.corrected
    shared = [baseline.tasks[name].corrected for name in theirs.tasks if name in ours.tasks]
    return mean(shared) if shared else None


def partial_groups(results: ComparisonResults) -> Iterator[tuple[VariantResult, str, str]]:
    """Yield each model with a group that lacks tasks: the model, the word for the group, and of how many it is."""
    for variant in results.variants:
        for group, word in WORDS.items():
            if said := tasks_of(variant, results, group):
                yield variant, word, said
