"""Small worlds to evaluate in: a byte tokenizer, tasks on disk, and results without a model."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.modeling_outputs import CausalLMOutputWithPast

from mvquant.evaluation import EvalResult, GroupResult, ItemRow, Subject, TaskResult
from mvquant.evaluation.statistics import accuracy, chance_corrected, mean
from mvquant.evaluation.task_file import CUSTOM_DATASET

PAD, BOS, EOS = 0, 1, 2


def tiny_tokenizer(merges: Sequence[tuple[str, str]] = ()) -> PreTrainedTokenizerFast:
    """One token per byte (a space is written "Ġ"), and one for each merge; every text begins with <s>."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = ["<pad>", "<s>", "</s>", *alphabet, *(left + right for left, right in merges)]
    bpe = Tokenizer(models.BPE(vocab={name: index for index, name in enumerate(names)}, merges=list(merges)))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, pad_token="<pad>", bos_token="<s>", eos_token="</s>", clean_up_tokenization_spaces=False
    )


def task_yaml(name: str, *, choice: bool = False, knowledge: str = "contextual", chance: float = 0.0) -> dict:
    """A task file like those under eval/tasks."""
    answer = (
        {"output_type": "multiple_choice", "doc_to_target": "answer", "doc_to_choice": "choices"}
        if choice
        else {
            "output_type": "generate_until",
            "doc_to_target": "{{answer}}",
            "generation_kwargs": {"max_gen_toks": 8, "do_sample": False, "until": ["\n"]},
        }
    )
    return {
        "task": name,
        "tag": knowledge,
        "custom_dataset": CUSTOM_DATASET,
        "dataset_kwargs": {"file": f"data/{name}.jsonl"},
        "test_split": "test",
        "doc_to_text": "{{prompt}}",
        **answer,
        "metric_list": [
            {"metric": "acc" if choice else "exact_match", "aggregation": "mean", "higher_is_better": True}
        ],
        "metadata": {
            "version": 1,
            "chance": chance,
            "knowledge": knowledge,
            "answer_by": "choice" if choice else "generation",
        },
    }


def with_whole_path(file: dict, folder: Path) -> dict:
    """A task file whose items lie in `folder`, for the harness too, which looks in the package's own folder."""
    return file | {"dataset_kwargs": {"file": str(folder / file["dataset_kwargs"]["file"])}}


def task_text(file: Mapping[str, object]) -> str:
    """A task file as YAML, with names of functions as the harness reads them."""
    return re.sub(r"'(!function [\w.]+)'", r"\1", yaml.safe_dump(dict(file)))


def write_task(folder: Path, file: dict, items: Sequence[Mapping[str, object]]) -> None:
    """Write a task file and its data where load_tasks looks for them."""
    (folder / "tasks").mkdir(parents=True, exist_ok=True)
    (folder / "data").mkdir(exist_ok=True)
    (folder / "tasks" / f"{file['task']}.yaml").write_text(task_text(file))
    lines = "".join(json.dumps(item) + "\n" for item in items)
    (folder / "data" / f"{file['task']}.jsonl").write_text(lines)


def make_result(
    model: str,
    accuracies: Mapping[str, float],
    *,
    items: int = 400,
    chances: Mapping[str, float] | None = None,
    bits_per_weight: float | None = None,
    limit: int | None = None,
) -> EvalResult:
    """A result whose tasks have the given accuracies; tasks named recall_* are parametric.

    Item i of a task is right where its fixed random difficulty is below the accuracy: models are paired.
    """
    chances = chances or {}
    tasks = {name: _task_result(name, wanted, items, chances.get(name, 0.0)) for name, wanted in accuracies.items()}
    groups = {}
    for group in ("contextual", "parametric"):
        inside = [task for task in tasks.values() if task.knowledge == group]
        if inside:
            groups[group] = GroupResult(
                tasks=tuple(task.task for task in inside),
                accuracy=mean([task.accuracy for task in inside]),
                corrected=mean([task.corrected for task in inside]),
            )
    return EvalResult(
        subject=Subject(model=model, bits_per_weight=bits_per_weight),
        versions={"python": "3.11"},
        dtype="bfloat16",
        device="cpu",
        batch_size=64,
        limit=limit,
        tasks=tasks,
        groups=groups,
    )


def _task_result(name: str, wanted: float, items: int, chance: float) -> TaskResult:
    difficulty = np.random.default_rng(len(name)).permutation(items) / items
    right = [bool(value < wanted) for value in difficulty]
    estimate = accuracy(sum(right), items)
    return TaskResult(
        task=name,
        version=1,
        knowledge="parametric" if "recall" in name else "contextual",
        answer_by="generation",
        seed=None,
        data_hash="0" * 64,
        chance=chance,
        n=items,
        accuracy=estimate,
        corrected=chance_corrected(estimate, chance),
        too_long=(),
        rows=tuple(ItemRow(f"{name}-{i}", "a" if ok else "b", "a", ok) for i, ok in enumerate(right)),
    )


class Seen(DynamicCache):
    """What an AnsweringModel has read so far."""

    ids: torch.Tensor

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.ids.shape[1]


class AnsweringModel(LlamaForCausalLM):
    """Continues each known prompt with its answer, byte by byte, then ends the text."""

    def __init__(self, answers: Mapping[str, str], tokenizer: PreTrainedTokenizerFast) -> None:
        super().__init__(
            LlamaConfig(
                vocab_size=len(tokenizer),
                hidden_size=8,
                intermediate_size=8,
                num_hidden_layers=1,
                num_attention_heads=1,
                max_position_embeddings=64,
                eos_token_id=EOS,
            )
        )
        self.texts = [tokenizer(prompt + answer)["input_ids"] for prompt, answer in answers.items()]

    def forward(self, input_ids, attention_mask, past_key_values=None, use_cache=None):
        ids = input_ids if past_key_values is None else torch.cat([past_key_values.ids, input_ids], dim=1)
        seen = Seen()
        seen.ids = ids
        logits = torch.zeros(*ids.shape, self.config.vocab_size)
        for row, mask, scores in zip(ids, attention_mask, logits, strict=True):
            scores[-1, self._next(row[mask.bool()].tolist())] = 1.0
        return CausalLMOutputWithPast(logits=logits[:, -input_ids.shape[1] :], past_key_values=seen)

    def _next(self, read: list[int]) -> int:
        (text,) = [text for text in self.texts if text[: len(read)] == read] or [read]
        return [*text, EOS][len(read)]
