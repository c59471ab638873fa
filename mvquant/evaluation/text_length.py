"""How long a text is: in tokens of a model's tokenizer, or in words where no tokenizer is known."""

import re
from collections.abc import Callable
from functools import cache

from transformers import PreTrainedTokenizerBase

Count = Callable[[str], int]


def count_words(text: str) -> int:
    """Count words and punctuation marks; each digit counts.

    >>> count_words("Keep it in mind: 12345.")
    11
    """
    return len(re.findall(r"\d|[^\W\d]+|[^\w\s]", text))


def count_tokens(load: Callable[[], PreTrainedTokenizerBase]) -> Count:
    """Count the tokens of a text, special ones left out, with a tokenizer that is loaded when one is first needed."""
    loaded = cache(load)

    def count(text: str) -> int:
        encoded: list[int] = loaded()(text, add_special_tokens=False, verbose=False)["input_ids"]  # pyright: ignore[reportAssignmentType]
        return len(encoded)

    return count
