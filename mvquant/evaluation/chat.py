"""Prompts as a chat model expects them: one message of the user, and the beginning of the answer."""

from collections.abc import Sequence
from dataclasses import replace

from transformers import PreTrainedTokenizerBase

from mvquant.errors import EvaluationError
from mvquant.evaluation.items import Item, hash_items
from mvquant.evaluation.tasks import Task


def as_chat(tasks: Sequence[Task], tokenizer: PreTrainedTokenizerBase) -> list[Task]:
    """Put every prompt into the tokenizer's chat template; what is chosen from then follows without a space.

    The hash becomes that of the prompts that are asked: with and without template are two different tests.

    Raises:
        EvaluationError: the tokenizer has no chat template.
    """
    if not tokenizer.chat_template:
        message = f"{tokenizer.name_or_path or 'the tokenizer'} has no chat template: leave out --chat-template"
        raise EvaluationError(message)
    return [_chat_task(task, tokenizer) for task in tasks]


def _chat_task(task: Task, tokenizer: PreTrainedTokenizerBase) -> Task:
    items = tuple(_chat_item(item, tokenizer) for item in task.items)
    file = task.file.model_copy(update={"target_delimiter": ""})
    return replace(task, file=file, items=items, data_hash=hash_items(items))


def _chat_item(item: Item, tokenizer: PreTrainedTokenizerBase) -> Item:
    message = [{"role": "user", "content": item.prompt}]
    prompt = str(tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True))
    # The tokenizer will begin the text with this token by itself: not twice.
    starts_by_itself = tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id]
    if starts_by_itself and isinstance(tokenizer.bos_token, str):
        prompt = prompt.removeprefix(tokenizer.bos_token)
    return item.model_copy(update={"prompt": prompt})
