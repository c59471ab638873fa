"""How a model's free text looks: whether it repeats itself, and whether it ends."""

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict


class TextQuality(BaseModel):
    """Continuations of the same beginnings.

    Attributes:
        texts: how many.
        distinct_2: different pairs of neighbouring tokens over all pairs; 1 is no repetition at all, None is no
            text of two tokens.
        mean_tokens: length of a continuation.
        ended: continuations that ended by themselves; the others were cut at the limit.
        limit: the most tokens that a continuation could have.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    texts: int
    distinct_2: float | None
    mean_tokens: float
    ended: int
    limit: int


def distinct_n(texts: Sequence[Sequence[int]], n: int = 2) -> float | None:
    """Different n-grams over all n-grams of all texts (Li et al., NAACL 2016); None where there is no n-gram.

    >>> distinct_n([[1, 2, 1, 2], [1, 2]])
    0.5
    """
    grams = [tuple(text[start : start + n]) for text in texts for start in range(len(text) - n + 1)]
    return len(set(grams)) / len(grams) if grams else None


def text_quality(texts: Sequence[Sequence[int]], ended: Sequence[bool], limit: int) -> TextQuality:
    """Describe continuations, given as token ids.

    Args:
        texts: at least one.
        ended: which of them ended by themselves.
        limit: the most tokens that each could have.

    >>> text_quality([[1, 2, 3], [4]], [False, True], limit=3).mean_tokens
    2.0
    """
    return TextQuality(
        texts=len(texts),
        distinct_2=distinct_n(texts),
        mean_tokens=sum(map(len, texts)) / len(texts),
        ended=sum(ended),
        limit=limit,
    )
