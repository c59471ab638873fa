"""From answers to figures: every variant against the baseline, and against its controls."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from mvquant.comparison.answers import TextPiece
from mvquant.comparison.results import (
    Answer,
    Contrast,
    Failure,
    FlippedItem,
    GroupScore,
    TaskInfo,
    TaskScore,
    TextScore,
    VariantResult,
)
from mvquant.comparison.variants import Baseline, Variant
from mvquant.errors import EvaluationError
from mvquant.evaluation.compare import Comparison, TaskDrop, compare_tasks, require_comparable
from mvquant.evaluation.divergence import mean_over_sequences, perplexity, perplexity_ratio
from mvquant.evaluation.paired_tests import holm, mcnemar_p
from mvquant.evaluation.result import TaskResult
from mvquant.evaluation.run import group_results
from mvquant.evaluation.task_file import Knowledge
from mvquant.evaluation.tasks import Item


@dataclass
class Answered:
    """What is known of one variant so far."""

    variant: Variant
    tasks: dict[str, TaskResult] = field(default_factory=dict[str, TaskResult])
    text: TextPiece | None = None
    failures: list[Failure] = field(default_factory=list[Failure])


def judged(
    answered: Sequence[Answered], order: Sequence[str], baseline: Baseline, seed: int
) -> tuple[VariantResult, ...]:
    """Compare every variant with the first, the baseline.

    Args:
        answered: all variants.
        order: names of the tasks, as they are to be shown.
        baseline: the model.
        seed: of the bootstrap.

    A task whose items are not those of the baseline is a failure of that task.
    """
    return tuple(_judge(each, answered[0], order, baseline, seed) for each in answered)


def _judge(each: Answered, first: Answered, order: Sequence[str], baseline: Baseline, seed: int) -> VariantResult:
    variant = each.variant
    tasks = {name: each.tasks[name] for name in order if name in each.tasks}
    tasks, failures = (tasks, []) if each is first else _comparable(tasks, first, variant.name)
    comparison = None if each is first or not tasks else compare_tasks(first.tasks, tasks, seed=seed)
    drops = {} if comparison is None else comparison.tasks
    cached = variant.cached_bits(baseline)
    return VariantResult(
        name=variant.name,
        role=variant.role,
        summary=variant.summary,
        control_of=variant.control_of,
        model_hash=variant.model_hash,
        plan_hash=None if variant.plan is None else variant.plan.hash,
        calibration_hash=variant.calibration_hash,
        bytes=variant.bytes(baseline),
        bits_per_weight=variant.bits_per_weight(baseline),
        bits_per_cached_value=cached.average,
        bits_per_cached_key=cached.keys,
        tasks={name: _task_score(task, drops.get(name)) for name, task in tasks.items()},
        groups=_group_scores(tasks.values(), comparison),
        contextual_minus_parametric=None if comparison is None else comparison.contextual_minus_parametric,
        text=_text_score(each.text, None if each is first else first.text),
        failures=(*each.failures, *failures),
    )


def _comparable(
    tasks: Mapping[str, TaskResult], other: Answered, name: str
) -> tuple[dict[str, TaskResult], list[Failure]]:
    """Leave out tasks whose items are not those that another model answered, and say why."""
    found, failures = dict(tasks), list[Failure]()
    for task in (name for name in tasks if name in other.tasks):
        try:
            require_comparable(other.tasks[task], tasks[task], (other.variant.name, name))
        except EvaluationError as error:
            del found[task]
            failures.append(Failure(part=task, message=str(error)))
    return found, failures


def task_info(task: TaskResult, source: str) -> TaskInfo:
    """What is the same of a task for every variant."""
    return TaskInfo.model_validate(
        {
            "knowledge": task.knowledge,
            "version": task.version,
            "chance": task.chance,
            "answer_by": task.answer_by,
            "items": task.n + len(task.too_long),
            "data_hash": task.data_hash,
            "source": source,
        }
    )


def _task_score(task: TaskResult, drop: TaskDrop | None) -> TaskScore:
    lengths = [row.tokens for row in task.rows if row.tokens is not None]
    ends = [row.ended for row in task.rows if row.ended is not None]
    return TaskScore(
        n=task.n,
        correct=sum(row.correct for row in task.rows),
        accuracy=task.accuracy,
        corrected=task.corrected,
        too_long=len(task.too_long),
        cut_off=len(ends) - sum(ends) if ends else None,
        mean_tokens=sum(lengths) / len(lengths) if lengths else None,
        versus_baseline=drop,
    )


def _group_scores(tasks: Iterable[TaskResult], comparison: Comparison | None) -> dict[Knowledge, GroupScore]:
    drops = {} if comparison is None else comparison.groups
    return {
        group: GroupScore(tasks=found.tasks, accuracy=found.accuracy, corrected=found.corrected, drop=drops.get(group))
        for group, found in group_results(tasks).items()
    }


def _text_score(piece: TextPiece | None, reference: TextPiece | None) -> TextScore | None:
    if piece is None:
        return None
    scores = piece.scores
    score = TextScore(
        sequences=len(scores.nll),
        tokens=scores.tokens * len(scores.nll),
        perplexity=perplexity(scores),
        continuations=piece.continuations,
    )
    if reference is None or scores.kl is None or scores.top_1 is None:
        return score
    compared = {
        "perplexity_ratio": perplexity_ratio(reference.scores, scores),
        "kl": mean_over_sequences(scores.kl, low=0.0),
        "kl_tail": scores.kl_tail,
        "top_1": mean_over_sequences(scores.top_1, low=0.0, high=1.0),
    }
    return score.model_copy(update=compared)


def contrasts(answered: Sequence[Answered], baseline: Baseline, seed: int) -> tuple[Contrast, ...]:
    """Compare every variant with each of its controls, over all tasks that both answered."""
    by_name = {each.variant.name: each for each in answered}
    pairs = [(by_name[name], control) for control in answered for name in control.variant.control_of if name in by_name]
    shared = [_comparable(theirs.tasks, ours, theirs.variant.name)[0] for ours, theirs in pairs]
    kept = [(*pair, tasks) for pair, tasks in zip(pairs, shared, strict=True) if pair[0].tasks.keys() & tasks.keys()]
    pairs = [(ours, theirs) for ours, theirs, _ in kept]
    compared = [compare_tasks(ours.tasks, tasks, seed=seed) for ours, _, tasks in kept]
    flips = [_flips(each) for each in compared]
    p_values = [mcnemar_p(better, worse) for better, worse in flips]
    return tuple(
        Contrast(
            variant=ours.variant.name,
            control=theirs.variant.name,
            gains=comparison.groups,
            better=better,
            worse=worse,
            p=p,
            p_holm=p_holm,
            extra_bytes=_difference(ours.variant.bytes(baseline), theirs.variant.bytes(baseline)),
            extra_cached_bits=ours.variant.cached_bits(baseline).keys - theirs.variant.cached_bits(baseline).keys,
        )
        for (ours, theirs), comparison, (better, worse), p, p_holm in zip(
            pairs, compared, flips, p_values, holm(p_values), strict=True
        )
    )


def _difference(ours: int | None, theirs: int | None) -> int | None:
    return None if ours is None or theirs is None else ours - theirs


def _flips(comparison: Comparison) -> tuple[int, int]:
    drops = comparison.tasks.values()
    return sum(drop.lost for drop in drops), sum(drop.gained for drop in drops)


def flipped_items(
    answered: Sequence[Answered], order: Sequence[str], items: Mapping[str, Sequence[Item]]
) -> Iterator[FlippedItem]:
    """Yield every item that some variants got right and others wrong.

    Args:
        answered: all variants.
        order: names of the tasks.
        items: of our own tasks, by task name; those of the harness keep their prompts in the result.
    """
    for task in order:
        asked = _questions(task, answered, items.get(task, ()))
        rows = {
            each.variant.name: {row.id: row for row in each.tasks[task].rows} for each in answered if task in each.tasks
        }
        for name, (prompt, choices) in asked.items():
            found = {variant: by_id[name] for variant, by_id in rows.items() if name in by_id}
            if len({row.correct for row in found.values()}) == 2:
                answers = {
                    variant: Answer(prediction=row.prediction, correct=row.correct, text=row.text)
                    for variant, row in found.items()
                }
                answer = next(iter(found.values())).answer
                yield FlippedItem(task=task, id=name, prompt=prompt, answer=answer, choices=choices, answers=answers)


def _questions(
    task: str, answered: Sequence[Answered], items: Sequence[Item]
) -> dict[str, tuple[str, tuple[str, ...] | None]]:
    """Prompt and choices by item."""
    if items:
        return {item.id: (item.prompt, item.choices) for item in items}
    for each in answered:
        found = each.tasks.get(task)
        if found is not None and found.prompts is not None:
            return {row.id: (prompt, None) for row, prompt in zip(found.rows, found.prompts, strict=True)}
    return {}
