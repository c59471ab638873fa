"""Where a task's items come from: a shipped file, a generator, or a public data set turned into items.

A task file names a shipped file (`file: data/cities/items.jsonl`) or one of `SOURCES` (`source: gsm8k`) in its
`dataset_kwargs`; lm-evaluation-harness reads the same two through `harness_dataset`.
"""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from transformers import AutoTokenizer

from mvquant.errors import EvaluationError, UnknownNameError
from mvquant.evaluation.binding import binding_items
from mvquant.evaluation.hub_data import AQUA_RAT, GSM8K, IMDB, read_rows
from mvquant.evaluation.items import Item, as_items, read_items
from mvquant.evaluation.parsers import INVALID, number
from mvquant.evaluation.passkey import passkey_items
from mvquant.evaluation.text_length import Count, count_tokens, count_words
from mvquant.facts import conflict_items
from mvquant.resources import resource_folder

PlacedItems = Iterator[tuple[str, Item]]
"""Items, each after the place that it stands at."""

LETTERS = ("A", "B", "C", "D", "E")
IMDB_SEED = "imdb-1"
IMDB_PER_LABEL = 1000
IMDB_LABELS = ("negative", "positive")

GSM8K_PROMPT = (
    "Solve the following problem step by step. End with a line that holds #### and then the answer as a number, "
    "nothing else.\n\nProblem: {question}\n\nSolution:"
)
AQUA_PROMPT = (
    "Solve the following problem step by step. End with a line that says which option is right, such as "
    '"The answer is (C)".\n\nProblem: {question}\n\nOptions:\n{options}\n\nSolution:'
)
IMDB_PROMPT = "Review: {text}\n\nIs this review positive or negative?\nAnswer:"


def gsm8k(data: Path | None, _count: Count) -> PlacedItems:
    """GSM8K, one question and no examples; the answer is the number after `####`, in plain digits."""
    for index, (where, row) in enumerate(read_rows(GSM8K, data)):
        answer = number(row["answer"]) if "####" in row["answer"] else INVALID
        if answer == INVALID:
            message = f"{where}: answer: a number after #### is needed"
            raise EvaluationError(message)
        prompt = GSM8K_PROMPT.format(question=row["question"])
        yield where, Item(id=f"gsm8k-{index:04d}", prompt=prompt, answer=answer)


def aqua_rat(data: Path | None, _count: Count) -> PlacedItems:
    """AQUA-RAT with its options in the prompt; the answer is a letter."""
    for index, (where, row) in enumerate(read_rows(AQUA_RAT, data)):
        options, correct = row["options"], row["correct"]
        if [str(option)[:2] for option in options] != [f"{name})" for name in LETTERS] or correct not in LETTERS:
            message = f"{where}: options A) to E) and the right letter are needed, not {options!r} and {correct!r}"
            raise EvaluationError(message)
        listed = "\n".join(f"({option[0]}) {option[2:].strip()}" for option in options)
        prompt = AQUA_PROMPT.format(question=row["question"], options=listed)
        yield where, Item(id=f"aqua_rat-{index:04d}", prompt=prompt, answer=correct)


def imdb(data: Path | None, _count: Count) -> PlacedItems:
    """A thousand reviews of each label, drawn with a fixed seed, by turns (the Hub's file is ordered by label).

    Raises:
        EvaluationError: a label that is neither 0 nor 1, or of which there is no review.
    """
    found: list[list[tuple[str, Item]]] = [[], []]
    for index, (where, row) in enumerate(read_rows(IMDB, data)):
        if row["label"] not in {0, 1}:
            message = f"{where}: label: 0 (negative) or 1 (positive) is needed, not {row['label']!r}"
            raise EvaluationError(message)
        label = IMDB_LABELS[row["label"]]
        prompt = IMDB_PROMPT.format(text=row["text"].replace("<br />", "\n").strip())
        item = Item(id=f"imdb-{index:05d}", prompt=prompt, answer=label, choices=IMDB_LABELS)
        found[row["label"]].append((where, item))
    each = min(IMDB_PER_LABEL, *map(len, found))
    if each == 0:
        message = f"imdb: reviews of both labels are needed, and there are {len(found[0])} and {len(found[1])}"
        raise EvaluationError(message)
    rng = Random(IMDB_SEED)
    for pair in zip(*(rng.sample(items, each) for items in found), strict=True):
        yield from pair


def passkey(_data: Path | None, count: Count) -> PlacedItems:
    """Generated, to lengths in tokens where `count` is a tokenizer's."""
    return as_items("passkey", passkey_items(count=count))


def binding(_data: Path | None, _count: Count) -> PlacedItems:
    """Generated."""
    return as_items("binding", binding_items())


def knowledge_conflict(_data: Path | None, _count: Count) -> PlacedItems:
    """Generated; the text is right."""
    return as_items("knowledge_conflict", ({**item, "answer": item["context_answer"]} for item in conflict_items()))


def knowledge_conflict_memory(_data: Path | None, _count: Count) -> PlacedItems:
    """The same items; memory is right."""
    return as_items(
        "knowledge_conflict_memory", ({**item, "answer": item["memory_answer"]} for item in conflict_items())
    )


SOURCES: dict[str, Callable[[Path | None, Count], PlacedItems]] = {
    "gsm8k": gsm8k,
    "aqua_rat": aqua_rat,
    "imdb": imdb,
    "passkey": passkey,
    "binding": binding,
    "knowledge_conflict": knowledge_conflict,
    "knowledge_conflict_memory": knowledge_conflict_memory,
}


def source_items(source: str, data: Path | None, count: Count = count_words) -> PlacedItems:
    """Return the items of one of `SOURCES`.

    Args:
        source: its name.
        data: the folder of local data sets; None for the one that MVQUANT_DATA names, or the Hub.
        count: the length of a text.

    Raises:
        UnknownNameError: there is no such source.
        MissingDataError: its data cannot be had.
        EvaluationError: its data is malformed.
    """
    if source not in SOURCES:
        raise UnknownNameError("source of items", source, SOURCES)
    return SOURCES[source](data, count)


def harness_dataset(
    file: str | None = None,
    source: str | None = None,
    tokenizer: object = None,
    pretrained: object = None,
    data_dir: str | None = None,
    **_settings: object,
) -> dict[str, Any]:
    """Give lm-evaluation-harness the items of a task as the split `test` (its `custom_dataset`).

    The harness hands over the arguments of the model too, so that lengths are counted by its tokenizer.

    Args:
        file: of a shipped task, relative to the `eval/` folder of this package, from wherever the harness is started.
        source: one of `SOURCES`.
        tokenizer: of the model: a folder or a Hub id.
        pretrained: the model itself, for its tokenizer where none is named.
        data_dir: the folder of local data sets; the one that MVQUANT_DATA names, or the Hub, where none is given.
        _settings: the rest of the task's metadata and of the model's arguments.
    """
    from datasets import Dataset

    named = tokenizer or pretrained
    count = count_tokens(partial(AutoTokenizer.from_pretrained, named)) if isinstance(named, str) else count_words
    data = None if data_dir is None else Path(data_dir)
    placed = read_items(resource_folder("eval") / file) if file else source_items(source or "", data, count)
    rows: list[dict[str, Any]] = [item.model_dump(mode="json", exclude_unset=True) for _, item in placed]
    return {"test": Dataset.from_list(rows)}
