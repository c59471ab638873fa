"""What every variant of a comparison is asked, and whether all of them read it as the same tokens."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from jaxtyping import Int64
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from mvquant.errors import UsageError
from mvquant.evaluation.tasks import HarnessTask, Task

PROBES = 16
"""Prompts of each task on which the tokenizers of all variants must agree."""


@dataclass(frozen=True)
class Questions:
    """What every variant is asked.

    Attributes:
        tasks: our own.
        harness: those of lm-evaluation-harness, by name.
        sequences: running text as token ids, all of one length; empty to leave it out.
        without_data: tasks that were wanted too but whose data is not there, and why.
    """

    tasks: tuple[Task, ...] = ()
    harness: tuple[HarnessTask, ...] = ()
    sequences: tuple[Int64[Tensor, "1 length"], ...] = ()
    without_data: dict[str, str] = field(default_factory=dict[str, str])

    @property
    def names(self) -> list[str]:
        """Names of the tasks: contextual ones first."""
        known = [(task.knowledge, task.name) for task in (*self.tasks, *self.harness)]
        return [name for _, name in sorted(known, key=lambda each: each[0])]


def asked(task: Task) -> str:
    """SHA-256 of the items and of how they are asked: a stop string more is another question."""
    return hashlib.sha256(f"{task.data_hash}\n{task.file.model_dump_json()}".encode()).hexdigest()


def check_tokenizers(
    baseline: PreTrainedTokenizerBase,
    others: Mapping[str, PreTrainedTokenizerBase],
    tasks: Sequence[Task],
) -> None:
    """Refuse to compare models that read the same prompts as different tokens.

    Raises:
        UsageError: names every variant that differs, and the first prompt where it does.
    """
    probes = [item.prompt for task in tasks for item in task.items[:PROBES]] or ["The quick brown fox."]
    wanted = baseline(probes, verbose=False)["input_ids"]
    mistakes: list[str] = []
    for name, tokenizer in others.items():
        found = tokenizer(probes, verbose=False)["input_ids"]
        if found != wanted:
            where = next(probe for probe, ours, theirs in zip(probes, wanted, found, strict=True) if ours != theirs)
            mistakes.append(f"variant {name} reads {_beginning(where)} as other tokens than the baseline")
    if mistakes:
        message = (
            "only models with one tokenizer can be compared, item by item and token by token: "
            f"{'; '.join(mistakes)}. Leave them out, or compare each with a baseline of its own tokenizer"
        )
        raise UsageError(message)


def _beginning(prompt: str) -> str:
    return repr(prompt if len(prompt) <= 60 else f"{prompt[:60]}...")
