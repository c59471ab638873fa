"""Where the rows of a batch begin, read off what a model is given."""

import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from mvquant.errors import UsageError
from mvquant.kvcache.keeping import RowStarts


def left_padding(attention_mask: Shaped[Tensor, "row column"]) -> Int[Tensor, " row"]:
    """Count the columns before the first token of each row.

    >>> left_padding(torch.tensor([[0, 0, 1], [1, 1, 0]])).tolist()
    [2, 0]
    """
    return (attention_mask.long().cumsum(dim=1) == 0).sum(dim=1)


def position_starts(
    position_ids: Int[Tensor, "row_or_one column"],
    attention_mask: Shaped[Tensor, "row columns"],
    seen: int,
    before: RowStarts | None,
) -> Int[Tensor, " row"]:
    """Find the column whose position is 0, in each row.

    Args:
        position_ids: positions of the new columns.
        attention_mask: 0 where there is no token, from the first column on.
        seen: columns before the new ones.
        before: what was found then; None if there were none.

    Raises:
        UsageError: positions that do not rise by one from token to token, as of several texts in one row.

    >>> mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    >>> position_starts(torch.tensor([[1, 1, 0, 1], [0, 1, 2, 3]]), mask, 0, None).tolist()
    [2, 0]
    """
    columns = torch.arange(seen, seen + position_ids.shape[1], device=position_ids.device)
    token = attention_mask[:, seen : seen + position_ids.shape[1]].bool()
    starts = (columns - position_ids).expand(token.shape)
    first = starts.gather(1, token.long().argmax(dim=1, keepdim=True)).squeeze(1)
    known = torch.zeros_like(first) if before is None else before.position
    had_tokens = attention_mask[:, :seen].bool().any(dim=1)
    found = torch.where(had_tokens | ~token.any(dim=1), known, first)
    if (token & (starts != found[:, None])).any():
        message = (
            "position_ids do not rise by one from token to token, so a cache that packs keys as they were before RoPE "
            "cannot follow them: give each text a row of its own, or use a plan with stage 'post-rope'"
        )
        raise UsageError(message)
    return found
