"""A whole comparison, in order: open the model, find what to ask, plan, answer, judge, write the tables."""

from collections.abc import Callable, Sequence
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from mvquant import pipeline
from mvquant.analysis import analyze, save_analysis
from mvquant.calibration import calibration_batches, calibration_texts
from mvquant.comparison import (
    Baseline,
    ComparisonRecipe,
    ComparisonResults,
    Questions,
    Setting,
    TextSettings,
    check_tokenizers,
    run_comparison,
)
from mvquant.comparison.fingerprint import folder_hash
from mvquant.comparison.results import ANALYSIS_FILE, STATS_FILE
from mvquant.errors import CalibrationError, CheckpointError, EvaluationError, UsageError
from mvquant.evaluation.chat import as_chat
from mvquant.evaluation.missing import describe_missing
from mvquant.evaluation.tasks import AvailableTasks
from mvquant.evaluation.text_length import count_tokens
from mvquant.evaluation.whole_file import save_whole
from mvquant.plan import Plan
from mvquant.progress import Progress
from mvquant.recipe import Calibration
from mvquant.reference import reference_texts
from mvquant.report import write_report
from mvquant.stats import CalibrationStats, save_stats

Note = Callable[[str], None]


def compare_models(
    recipe: ComparisonRecipe,
    out: Path,
    *,
    setting: Setting,
    progress: Progress,
    note: Note,
    data_dir: Path | None = None,
) -> ComparisonResults:
    """Judge variants of a model against it, and write results, plans and tables to `out`.

    A comparison that was interrupted in `out` goes on where it stopped.

    Args:
        recipe: what is to be compared.
        out: a new folder, or that of an earlier comparison.
        setting: where and how.
        progress: told of every answer.
        note: told, in a sentence, of everything that a person should know on the way.
        data_dir: local data of tasks whose items are not shipped.

    Raises:
        UsageError: something that was asked for is not there, or models with different tokenizers.
        CheckpointError: the model cannot be opened.
        EvaluationError: data that cannot be had, or a disk that is full.
    """
    opened = pipeline.open_model(recipe.model)
    tokenizer = pipeline.load_tokenizer(opened.checkpoint.folder)
    names = recipe.tasks or tuple(pipeline.default_tasks(recipe.model))
    found = pipeline.find_available_tasks(names, data_dir, count_tokens(lambda: tokenizer))
    if found.missing:
        _tell_missing(found, note, named=bool(recipe.tasks))
    tasks = as_chat(found.tasks, tokenizer) if recipe.chat_template else found.tasks
    check_tokenizers(tokenizer, _tokenizers(recipe), tasks)
    questions = Questions(
        without_data={task.name: task.why for task in found.missing},
        tasks=tuple(tasks),
        harness=tuple(pipeline.find_harness_tasks(names)),
        sequences=() if recipe.text is None else tuple(_sequences(recipe.model, opened, tokenizer, recipe.text)),
    )
    baseline = Baseline(
        name=recipe.model,
        checkpoint=opened.checkpoint,
        view=opened.view,
        hash=folder_hash(opened.checkpoint.folder),
        measure=_measure_once(recipe.model, opened, out, progress),
        quantize=_quantizer(opened, setting, progress, note),
    )
    results = run_comparison(
        recipe, baseline, questions, pipeline.load_model, out, setting=setting, progress=progress, note=note
    )
    write_report(out)
    return results


def _quantizer(
    opened: pipeline.OpenModel, setting: Setting, progress: Progress, note: Note
) -> Callable[[Plan, Path], None]:
    """Give a function that writes a checkpoint, and goes on where it was interrupted."""

    def quantize(plan: Plan, folder: Path) -> None:
        place = pipeline.Workplace(resume=True, device=pipeline.usable_device(pipeline.own_device(setting.device)))
        pipeline.quantize(opened, plan, folder, progress=progress, place=place, note=note)

    return quantize


def _tell_missing(found: AvailableTasks, note: Note, *, named: bool) -> None:
    """Go on without tasks whose data is not there, unless they were asked for by name, or nothing is left.

    Raises:
        EvaluationError: names every task, and the way to its data.
    """
    message = describe_missing(found.missing)
    if named or not found.tasks:
        raise EvaluationError(message)
    note(message)


def _tokenizers(recipe: ComparisonRecipe) -> dict[str, PreTrainedTokenizerBase]:
    """Those of finished checkpoints, by the name of the variant.

    Raises:
        UsageError: a folder has none.
    """
    found: dict[str, PreTrainedTokenizerBase] = {}
    for entry in recipe.variants:
        if entry.checkpoint is not None and entry.checkpoint.is_dir():
            try:
                found[entry.name] = pipeline.load_tokenizer(entry.checkpoint)
            except CheckpointError as error:
                way_out = f"copy the tokenizer files of {recipe.model} into it if it was made of that model"
                raise UsageError(f"variant {entry.name}: {error}; {way_out}") from None
    return found


def _sequences(
    model: str, opened: pipeline.OpenModel, tokenizer: PreTrainedTokenizerBase, text: TextSettings
) -> Sequence[Tensor]:
    """Running text that calibration has not seen: other documents of the model's own corpus, or a test split."""
    auto = pipeline.REFERENCE if model == pipeline.REFERENCE else pipeline.DEFAULT_CORPUS
    source = auto if text.source == "auto" else text.source
    if source == pipeline.REFERENCE:
        texts = reference_texts(seed=text.seed)
    else:
        try:
            texts = calibration_texts(source, "test" if source == pipeline.DEFAULT_CORPUS else None)
        except CalibrationError as error:
            way_out = "give other running text with --text SOURCE, or leave it out with --text none"
            raise CalibrationError(f"running text: {error}\n{way_out}") from None
    longest = getattr(opened.checkpoint.config, "max_position_embeddings", text.length)
    return calibration_batches(tokenizer, texts, text.sequences, min(text.length, longest), text.seed, chat="never")


def _measure_once(
    model: str, opened: pipeline.OpenModel, out: Path, progress: Progress
) -> Callable[[Calibration], CalibrationStats]:
    """Give a function that measures the model, once for equal settings, and writes down its massive values."""
    known: dict[Calibration, CalibrationStats] = {}

    def measure(calibration: Calibration) -> CalibrationStats:
        if calibration not in known:
            known[calibration] = pipeline.measure(
                model, opened, calibration, lambda _, done, total: progress("calibrating", done, total)
            )
            if len(known) == 1:
                analysis = analyze(opened.view, known[calibration], model=model)
                save_whole(out / ANALYSIS_FILE, lambda path: save_analysis(analysis, path))
                save_whole(out / STATS_FILE, lambda path: save_stats(known[calibration], path))
        return known[calibration]

    return measure
