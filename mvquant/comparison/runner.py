"""A comparison from its recipe to its results: plan all, answer what is missing, judge."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from mvquant.comparison.answers import LOADING, TEXT, VARIANT_ERRORS, Job, Loader, Part, RunningText, TextPiece, explain
from mvquant.comparison.checkpoints import needs_folder, quantized_folder, quantizer_versions
from mvquant.comparison.engines import check_engine, run_jobs
from mvquant.comparison.fingerprint import Fingerprint, package_versions
from mvquant.comparison.judge import Answered, contrasts, flipped_items, judged, task_info
from mvquant.comparison.questions import Questions, asked
from mvquant.comparison.recipe import ComparisonRecipe
from mvquant.comparison.results import (
    ANALYSIS_FILE,
    FLIPS_FILE,
    PLANS_FOLDER,
    RESULTS_FILE,
    STATS_FILE,
    ComparisonResults,
    Failure,
    TaskInfo,
    VariantResult,
    different_texts,
)
from mvquant.comparison.store import Store, file_name
from mvquant.comparison.variants import Baseline, Variant, all_variants
from mvquant.errors import EvaluationError
from mvquant.evaluation.harness import require_harness
from mvquant.evaluation.result import TaskResult
from mvquant.evaluation.whole_file import write_whole
from mvquant.progress import Progress
from mvquant.stats import token_hash

QUANTIZING = "quantizing"


@dataclass(frozen=True)
class Setting:
    """Where and how a comparison runs; none of it moves a figure but by float noise.

    Attributes:
        device: such as `cpu` or `cuda:0`.
        engine: one after another here, or on Ray.
        command: what makes the comparison again.
    """

    device: str = "cpu"
    engine: str = "local"
    command: str = ""


@dataclass
class Comparing:
    """One run of a comparison."""

    recipe: ComparisonRecipe
    baseline: Baseline
    questions: Questions
    load: Loader
    store: Store
    setting: Setting
    progress: Progress
    note: Callable[[str], None]
    versions: dict[str, str] = field(default_factory=dict[str, str])
    variants: list[Variant] = field(default_factory=list[Variant])
    answered: dict[str, Answered] = field(default_factory=dict[str, Answered])

    def run(self) -> ComparisonResults:
        """Go the whole way, taking up finished pieces, and write the results down."""
        for name in (ANALYSIS_FILE, STATS_FILE):  # of an earlier run, and perhaps of another model
            (self.store.folder / name).unlink(missing_ok=True)
        self.variants = all_variants(self.recipe, self.baseline)
        self._note_other_texts()
        more = ("lm_eval",) if self.questions.harness else ()
        self.versions = package_versions(*more)
        self._save_plans()
        self.answered = {variant.name: self._known(variant) for variant in self.variants}
        first, *others = self.variants
        try:
            self._answer([self._job(first, None)])
            self._require_loaded(first)
            jobs = [self._job(variant, first) for variant in others if variant.failure is None]
            self._answer([ready for job in jobs if (ready := self._prepared(job)) is not None])
        finally:
            self.store.drop_logits()
        return self._results()

    def _note_other_texts(self) -> None:
        """Say so where variants were calibrated on different tokens: then not only their methods differ."""
        if groups := different_texts({each.name: each.calibration_hash for each in self.variants}):
            self.note(f"calibrated on different text, so that not only their methods differ: {groups}")

    def _require_loaded(self, first: Variant) -> None:
        """Without the baseline there is nothing to compare with; a task that it fails in costs that task only."""
        for failure in self.answered[first.name].failures:
            if failure.part == LOADING:
                message = f"the baseline {self.recipe.model} cannot be loaded: {failure.message}"
                raise EvaluationError(message)

    def _known(self, variant: Variant) -> Answered:
        """Take up the pieces of a variant that are finished and not stale."""
        known = Answered(variant)
        if variant.failure is not None:
            known.failures.append(variant.failure)
            self.note(f"{variant.name} failed in {variant.failure.part}: {variant.failure.message}")
            return known
        for part, fingerprint in self._fingerprints(variant).items():
            if part == TEXT:
                known.text = self.store.load(variant.name, part, fingerprint, TextPiece)
            elif (task := self.store.load(variant.name, part, fingerprint, TaskResult)) is not None:
                known.tasks[part] = task
        return known

    def _fingerprints(self, variant: Variant) -> dict[str, Fingerprint]:
        """What each part of a variant must have been made of, by the part's name."""
        settings = {
            "limit": self.recipe.limit,
            "batch_size": self._batch_size(variant),
            "device": self.setting.device,
            "chat_template": "yes" if self.recipe.chat_template else None,
        }
        plan = variant.plan.hash if variant.plan is not None and variant.in_memory else None
        versions = {**self.versions, **_versions_of(variant)}

        def made(data: str, settings: Mapping[str, str | int | None]) -> Fingerprint:
            return Fingerprint(
                model=variant.model_hash, plan=plan, data=data, settings=dict(settings), versions=versions
            )

        found = {task.name: made(asked(task), settings) for task in self.questions.tasks}
        found |= {task.name: made(task.name, settings) for task in self.questions.harness}
        if self.questions.sequences and self.recipe.text is not None:
            more = {"baseline": self.baseline.hash, "new_tokens": self.recipe.text.new_tokens}
            found[TEXT] = made(token_hash(self.questions.sequences), {**settings, "limit": None, **more})
        return found

    def _batch_size(self, variant: Variant) -> int:
        """The baseline's second run has other batches, so that it shows the float noise there is."""
        return max(1, self.recipe.batch_size // 2) if variant.role == "again" else self.recipe.batch_size

    def _job(self, variant: Variant, baseline: Variant | None) -> Job:
        known = self.answered[variant.name]
        return Job(
            variant=variant.name,
            folder=variant.folder,
            plan=variant.plan if variant.in_memory else None,
            tasks=tuple(task for task in self.questions.tasks if task.name not in known.tasks),
            harness=tuple(task for task in self.questions.harness if task.name not in known.tasks),
            text=self._text(variant, baseline),
            limit=self.recipe.limit,
            batch_size=self._batch_size(variant),
            device=self.setting.device,
            threads=torch.get_num_threads(),
            load=self.load,
            chat_template=self.recipe.chat_template,
        )

    def _text(self, variant: Variant, baseline: Variant | None) -> RunningText | None:
        """Running text that is still to be read; the baseline reads it again while others need its logits."""
        count = len(self.questions.sequences)
        if count == 0 or self.recipe.text is None:
            return None
        stored = self.store.logits(count)
        text = RunningText(self.questions.sequences, self.recipe.text.new_tokens)
        if baseline is None:
            missing = any(each.text is None for each in self.answered.values() if each.variant.failure is None)
            return text if missing and stored is None else None
        if self.answered[variant.name].text is not None or stored is None:
            return None
        return replace(text, reference=stored, rows=2 if variant.role == "again" else 1)

    def _prepared(self, job: Job) -> Job | None:
        """Quantize into a folder what cannot be quantized in memory; None where that fails, or nothing is asked."""
        if job.is_empty:
            return None
        if job.plan is None or not needs_folder(job.plan):
            return job
        self.note(f"{job.variant}: quantizing by {job.plan.recipe.method.name}")
        try:
            folder = quantized_folder(
                job.variant, job.plan, self.baseline.hash, self.baseline.quantize, self.store.folder
            )
        except VARIANT_ERRORS as error:
            self._keep(job, Part(QUANTIZING, failure=explain(error)))
            return None
        return replace(job, folder=folder, plan=None)

    def _answer(self, jobs: Sequence[Job]) -> None:
        run_jobs(jobs, self._keep, self.progress, self.setting.engine)

    def _keep(self, job: Job, part: Part) -> None:
        known = self.answered[job.variant]
        if part.logits is not None:
            self.store.save_logits(*part.logits)
            return
        if part.content is None:
            known.failures.append(Failure(part=part.name, message=part.failure or "no answer"))
            self.note(f"{job.variant} failed in {part.name}: {part.failure}")
            return
        self.store.save(job.variant, part.name, self._fingerprints(known.variant)[part.name], part.content)
        if isinstance(part.content, TaskResult):
            known.tasks[part.name] = part.content
        else:
            known.text = part.content

    def _save_plans(self) -> None:
        for variant in self.variants:
            if variant.plan is not None:
                write_whole(self.store.folder / plan_file(variant.name), variant.plan.to_json())

    def _results(self) -> ComparisonResults:
        answered = [self.answered[variant.name] for variant in self.variants]
        order = self.questions.names
        results = ComparisonResults(
            model=self.recipe.model,
            family=self.baseline.view.family,
            dtype=self.baseline.checkpoint.dtype,
            device=self.setting.device,
            command=self.setting.command,
            settings=self.recipe,
            versions={name: found for each in reversed(self.variants) for name, found in _versions_of(each).items()}
            | self.versions,
            text_hash=token_hash(self.questions.sequences) if self.questions.sequences else None,
            analysis_file=ANALYSIS_FILE if (self.store.folder / ANALYSIS_FILE).is_file() else None,
            tasks=self._task_infos(answered, order),
            without_data=self.questions.without_data,
            variants=tuple(map(_with_plan_file, judged(answered, order, self.baseline, self.recipe.seed))),
            contrasts=contrasts(answered, self.baseline, self.recipe.seed),
        )
        items = {task.name: task.items for task in self.questions.tasks}
        flips = "".join(f"{item.model_dump_json()}\n" for item in flipped_items(answered, order, items))
        write_whole(self.store.folder / FLIPS_FILE, flips)
        write_whole(self.store.folder / RESULTS_FILE, results.model_dump_json(indent=1) + "\n")
        return results

    def _task_infos(self, answered: Sequence[Answered], order: Sequence[str]) -> dict[str, TaskInfo]:
        theirs = {task.name for task in self.questions.harness}
        found = {name: next((each.tasks[name] for each in answered if name in each.tasks), None) for name in order}
        return {
            name: task_info(task, "lm_eval" if name in theirs else "mvquant")
            for name, task in found.items()
            if task is not None
        }


def _versions_of(variant: Variant) -> dict[str, str]:
    """Versions of what made or reads the weights of a variant, beyond what computes every answer."""
    made = quantizer_versions(variant.plan) if variant.plan is not None and variant.in_memory else {}
    return made | (package_versions(*variant.packages) if variant.packages else {})


def plan_file(variant: str) -> str:
    """Where the plan of a variant lies in the folder of the comparison."""
    return f"{PLANS_FOLDER}/{file_name(variant)}.json"


def _with_plan_file(result: VariantResult) -> VariantResult:
    return result if result.plan_hash is None else result.model_copy(update={"plan_file": plan_file(result.name)})


def run_comparison(
    recipe: ComparisonRecipe,
    baseline: Baseline,
    questions: Questions,
    load: Loader,
    out: Path,
    *,
    setting: Setting,
    progress: Progress,
    note: Callable[[str], None],
) -> ComparisonResults:
    """Compare a baseline with variants, and write results.json, flips.jsonl and plans/ to `out`.

    A comparison that was interrupted in `out` goes on where it stopped.

    Raises:
        UsageError: `out` holds something else, a recipe has mistakes, or a package that is needed is missing.
        EvaluationError: nothing to ask, or a disk that is full.
    """
    if not questions.names:
        message = "nothing to compare on: name at least one task"
        raise EvaluationError(message)
    check_engine(setting.engine)
    if questions.harness:
        require_harness(questions.harness)
    store = Store(out, note)
    store.open()
    return Comparing(recipe, baseline, questions, load, store, setting, progress, note).run()
