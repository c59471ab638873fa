"""Tasks of lm-evaluation-harness (0.4.13) by name, with one row per item, so that they pair like our own.

    prepare -> Prepared -> run_prepared -> TaskResult

The harness asks and scores; its logged samples become a `TaskResult`. It is an extra: `pip install 'mvquant[eval]'`.
"""

from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from mvquant.errors import EvaluationError, UsageError
from mvquant.evaluation.harness_data import Prepared, prepare, require_harness
from mvquant.evaluation.harness_rows import argument_lists, task_result
from mvquant.evaluation.missing import describe_missing
from mvquant.evaluation.result import TaskResult
from mvquant.evaluation.tasks import HarnessTask

__all__ = ["require_harness", "run_in_harness", "run_prepared"]

FEWSHOT_SEED = 1234
"""With which the harness itself draws examples."""

LoadedModel = tuple[PreTrainedModel, PreTrainedTokenizerBase]


def run_in_harness(
    model: LoadedModel | str,
    tasks: Sequence[HarnessTask],
    *,
    engine: str = "hf",
    folder: Path | None = None,
    limit: int | None = None,
    batch_size: int = 64,
    device: str | None = None,
    defaults: bool = True,
) -> list[TaskResult]:
    """Have the harness ask a model its own tasks: `prepare` and `run_prepared` in one.

    Raises:
        UsageError: the harness is not installed, or does not know the engine.
        EvaluationError: data that cannot be had, and everything that the two raise.
    """
    tokenizer = model if isinstance(model, str) else str(model[1].name_or_path)
    prepared = prepare(tasks, tokenizer or None, folder=folder, defaults=defaults)
    if prepared.missing:
        raise EvaluationError(describe_missing(prepared.missing))
    return run_prepared(model, prepared, engine=engine, limit=limit, batch_size=batch_size, device=device)


def run_prepared(
    model: LoadedModel | str,
    prepared: Prepared,
    *,
    engine: str = "hf",
    limit: int | None = None,
    batch_size: int = 64,
    device: str | None = None,
    chat_template: bool = False,
) -> list[TaskResult]:
    """Have the harness ask a model the tasks that it has prepared.

    Args:
        model: a loaded model with its tokenizer, or the folder that the engine is to load.
        prepared: the tasks.
        engine: how the harness runs a folder: `hf`, `vllm`, or any other model type that it knows.
        limit: the first so many items of each task; None for all.
        batch_size: prompts per batch.
        device: for a folder; None leaves it to the engine.
        chat_template: put prompts into the chat template.

    Returns:
        One result per task. Items that do not fit the model's positions are not asked (the harness would cut them),
        but named.

    Raises:
        UsageError: the harness does not know the engine.
        EvaluationError: logits that are NaN, a task of which no item fits the model, or a metric that says neither
            right nor wrong.
    """
    from lm_eval import evaluator

    names = [task.name for task in prepared.tasks]
    arguments = _arguments(model, engine, device, batch_size)
    reader: Any = _reader(Path(model)) if isinstance(model, str) else arguments["model"]
    chosen = {name: _choose(prepared.built[name], reader, limit, chat_template) for name in names}
    for name, (fitting, long) in chosen.items():
        if long and not fitting:
            message = f"task {name}: none of {len(long)} items fits the model's {reader.max_length} positions"
            raise EvaluationError(message)
    with _finite_logits(model, ", ".join(names)):
        found: Any = evaluator.simple_evaluate(
            **arguments,
            tasks=[prepared.built[name] for name in names],
            batch_size=batch_size,
            samples={name: fitting for name, (fitting, _) in chosen.items()},
            task_manager=prepared.manager,
            apply_chat_template=chat_template,
            bootstrap_iters=0,
            log_samples=True,
        )
    results: list[TaskResult] = []
    for task in prepared.tasks:
        # Examples are drawn anew where items are left out, so that a prompt may have become longer than it was.
        asked = found["samples"][task.name]
        cut = {sample["doc_id"] for sample in asked if not _is_read_whole(argument_lists(sample), reader)}
        kept = [sample for sample in asked if sample["doc_id"] not in cut]
        too_long = sorted({*chosen[task.name][1], *cut})
        results.append(task_result(task, kept, found["versions"].get(task.name), too_long))
    return results


@dataclass(frozen=True)
class _Reader:
    """What is known of a model that an engine loads: how it splits texts, and how much it reads."""

    tokenizer: PreTrainedTokenizerBase
    max_length: int
    max_gen_toks: int = 256
    tokenizer_name: str = ""

    def tok_encode(self, text: str) -> list[int]:
        return self.tokenizer(text, verbose=False)["input_ids"]  # pyright: ignore[reportReturnType]

    def apply_chat_template(self, messages: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        return str(
            self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt)
        )


def _reader(folder: Path) -> _Reader | None:
    """None where there is no config that says how much the model reads: then the engine is taken at its word."""
    if not (folder / "config.json").is_file():
        return None
    limit = getattr(AutoConfig.from_pretrained(folder).get_text_config(), "max_position_embeddings", None)
    return None if limit is None else _Reader(AutoTokenizer.from_pretrained(folder), limit)


def _choose(
    task: Any,  # noqa: ANN401 - the harness is not typed
    reader: Any,  # noqa: ANN401
    limit: int | None,
    chat_template: bool,
) -> tuple[list[int], list[int]]:
    """Numbers of the wanted items that the model can read whole, and of those that it cannot."""
    numbers = list(range(min(limit or len(task.eval_docs), len(task.eval_docs))))
    if reader is None:
        return numbers, []
    if task.get_config("num_fewshot") is None:
        task.set_config(key="num_fewshot", value=0)
    task.set_fewshot_seed(seed=FEWSHOT_SEED)
    task.build_all_requests(
        limit=limit,
        rank=0,
        world_size=1,
        apply_chat_template=chat_template,
        chat_template=reader.apply_chat_template if chat_template else None,
        tokenizer_name=reader.tokenizer_name if chat_template else "",
    )
    long = {request.doc_id for request in task.instances if not _is_read_whole([request.args], reader)}
    return [number for number in numbers if number not in long], sorted(long)


def _is_read_whole(requests: Iterable[Sequence[Any]], reader: Any) -> bool:  # noqa: ANN401 - the harness is not typed
    """Whether prompt and answer fit the model."""
    return reader is None or all(_tokens(each[0], each[1], reader) <= reader.max_length for each in requests)


def _tokens(prompt: str, answer: Any, reader: Any) -> int:  # noqa: ANN401 - the harness is not typed
    """Positions that a request takes; of an answer that is only scored, the last token is not read."""
    if isinstance(answer, Mapping):
        return len(reader.tok_encode(prompt)) + int(answer.get("max_gen_toks", reader.max_gen_toks))
    return len(reader.tok_encode(prompt + answer)) - 1


@contextmanager
def _finite_logits(model: LoadedModel | str, tasks: str) -> Generator[None]:
    """Stop at logits that are NaN: the harness would generate from them, and score what comes as wrong."""
    if isinstance(model, str):
        yield
        return

    def check(_model: nn.Module, _inputs: object, output: Any) -> None:  # noqa: ANN401 - as transformers has it
        logits = getattr(output, "logits", None)
        if isinstance(logits, Tensor) and not torch.isfinite(logits.amax(dim=-1)).all():
            message = f"task {tasks}: the model's logits are NaN or infinite: no answer can be scored"
            raise EvaluationError(message)

    hook = model[0].register_forward_hook(check)
    try:
        yield
    finally:
        hook.remove()


def _arguments(model: LoadedModel | str, engine: str, device: str | None, batch_size: int) -> dict[str, Any]:
    if isinstance(model, str):
        known = _known_engines()
        if engine not in known:
            raise UsageError(f"lm-evaluation-harness has no engine {engine!r}: hf, vllm, or one of {', '.join(known)}")
        return {"model": engine, "model_args": {"pretrained": model}, "device": device}
    from lm_eval.models import huggingface

    loaded, tokenizer = model
    adapter: Any = huggingface.HFLM
    return {"model": adapter(pretrained=loaded, tokenizer=tokenizer, batch_size=batch_size, device=str(loaded.device))}


def _known_engines() -> list[str]:
    from lm_eval.models import MODEL_MAPPING

    return sorted(MODEL_MAPPING)
