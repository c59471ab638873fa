"""One variant answers: the same code in this process and in any other.

A generator, so that each part is kept as soon as it is done; a part that fails does not stop the others.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Int64
from pydantic import BaseModel, ConfigDict
from safetensors import SafetensorError
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mvquant.errors import EvaluationError, MvquantError
from mvquant.evaluation.batches import NonFiniteLogitsError
from mvquant.evaluation.divergence import Logits, SequenceScores, score_sequences, sequence_logits
from mvquant.evaluation.generate import Stop, end_tokens, generate
from mvquant.evaluation.harness import run_prepared
from mvquant.evaluation.harness_data import prepare
from mvquant.evaluation.missing import describe_missing
from mvquant.evaluation.result import TaskResult
from mvquant.evaluation.run import evaluate
from mvquant.evaluation.tasks import HarnessTask, Task
from mvquant.evaluation.text_quality import TextQuality, text_quality
from mvquant.methods import apply_plan, planned_cache
from mvquant.plan import Plan
from mvquant.progress import Progress

LOADING = "loading"
TEXT = "text"

Loader = Callable[[Path, str], tuple[PreTrainedModel, PreTrainedTokenizerBase]]

# What a broken checkpoint or a full device raises somewhere below: recorded for this variant, never for the others.
VARIANT_ERRORS = (
    MvquantError,
    RuntimeError,
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    IndexError,
    AssertionError,
    OSError,
    ImportError,
    MemoryError,
    SafetensorError,
)


class TextPiece(BaseModel):
    """One variant on running text."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    scores: SequenceScores
    continuations: TextQuality


@dataclass(frozen=True)
class RunningText:
    """Token sequences of one length, and how far their first halves are continued.

    Attributes:
        rows: sequences that are read at once; float noise aside, it changes nothing.
        reference: the baseline's logits on each sequence; None for the baseline, whose logits are handed back.
    """

    sequences: tuple[Int64[Tensor, "1 length"], ...]
    new_tokens: int
    rows: int = 1
    reference: Logits | None = None


@dataclass(frozen=True)
class Job:
    """What one variant still has to answer; `tasks` are in the chat template already where it is to be."""

    variant: str
    folder: Path
    plan: Plan | None
    tasks: tuple[Task, ...]
    harness: tuple[HarnessTask, ...]
    text: RunningText | None
    limit: int | None
    batch_size: int
    device: str
    threads: int
    load: Loader
    chat_template: bool = False

    @property
    def is_empty(self) -> bool:
        """Whether everything is answered already."""
        return not self.tasks and not self.harness and self.text is None


@dataclass(frozen=True)
class Part:
    """A finished part: its content, or why there is none; or the baseline's logits on one sequence."""

    name: str
    content: TaskResult | TextPiece | None = None
    failure: str | None = None
    logits: tuple[int, Tensor] | None = None


def answer(job: Job, progress: Progress) -> Iterator[Part]:
    """Load a variant once, and yield each part of what is asked as it is done."""
    torch.set_num_threads(job.threads)
    try:
        progress(LOADING, 0, 1)
        model, tokenizer = job.load(job.folder, job.device)
        if job.plan is not None:
            apply_plan(model, job.plan)
    except VARIANT_ERRORS as error:
        yield Part(LOADING, failure=explain(error))
        return
    with planned_cache(model, job.plan):
        for task in job.tasks:
            yield _attempt(task.name, lambda task=task: _task(model, tokenizer, task, job, progress))
        for request in job.harness:
            yield _attempt(request.name, lambda request=request: _in_harness(model, tokenizer, request, job))
        if job.text is not None:
            yield from _text_parts(model, tokenizer, job.text, job.batch_size, progress)


def _attempt(name: str, work: Callable[[], TaskResult | TextPiece]) -> Part:
    try:
        return Part(name, work())
    except VARIANT_ERRORS as error:
        return Part(name, failure=explain(error))


def explain(error: Exception) -> str:
    """Say in one line why a part of a variant failed."""
    if isinstance(error, MvquantError):
        return str(error)
    first = (str(error).strip().splitlines() or ["no message"])[0]
    hint = "; a smaller --batch-size needs less memory" if isinstance(error, torch.OutOfMemoryError) else ""
    return f"{type(error).__name__}: {first}{hint}"


def _task(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, task: Task, job: Job, progress: Progress
) -> TaskResult:
    found = evaluate(model, tokenizer, [task], limit=job.limit, batch_size=job.batch_size, progress=progress)
    return found.tasks[task.name]


def _in_harness(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, request: HarnessTask, job: Job
) -> TaskResult:
    prepared = prepare([request], str(job.folder))
    if prepared.missing:
        raise EvaluationError(describe_missing(prepared.missing))
    return run_prepared(
        (model, tokenizer), prepared, limit=job.limit, batch_size=job.batch_size, chat_template=job.chat_template
    )[0]


def _text_parts(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: RunningText, batch_size: int, progress: Progress
) -> Iterator[Part]:
    """Score running text; the baseline hands its logits back, one sequence at a time, before its scores."""

    def logits() -> Iterator[Tensor]:
        for done, found in enumerate(sequence_logits(model, text.sequences, text.rows), start=1):
            progress(TEXT, done, len(text.sequences))
            yield found

    try:
        if text.reference is None:
            scored: list[SequenceScores] = []
            for index, (found, ids) in enumerate(zip(logits(), text.sequences, strict=True)):
                scored.append(score_sequences(iter([found]), [ids]))
                yield Part(TEXT, logits=(index, found))
            scores = SequenceScores(tokens=scored[0].tokens, nll=tuple(each.nll[0] for each in scored))
        else:
            scores = score_sequences(logits(), text.sequences, text.reference)
        yield Part(TEXT, TextPiece(scores=scores, continuations=_continuations(model, tokenizer, text, batch_size)))
    except NonFiniteLogitsError:
        yield Part(TEXT, failure="the model's logits are NaN or infinite on running text")
    except VARIANT_ERRORS as error:
        yield Part(TEXT, failure=explain(error))


def _continuations(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: RunningText, batch_size: int
) -> TextQuality:
    prompts = [ids[0, : ids.shape[1] // 2].tolist() for ids in text.sequences]
    stop = Stop(tokenizer, (), end_tokens(model, tokenizer), text.new_tokens)
    texts = dict(generate(model, prompts, stop, batch_size))
    found = [texts[index] for index in range(len(prompts))]
    return text_quality(found, [stop.ended(tokens) for tokens in found], text.new_tokens)
