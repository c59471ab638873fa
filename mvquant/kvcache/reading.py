"""Attention of several tokens at once, each reading what it would have read had they come one at a time.

A key is exact for the queries that come before it is packed, and rounded for those that come after. So the columns that
change while a text passes are given to the model's own attention twice, exact and rounded, with a mask that shows each
query one of the two. Softmax over both is softmax over the one that is seen.
"""

from itertools import product

import torch
from jaxtyping import Bool
from torch import Tensor

from mvquant.errors import UnsupportedModelError
from mvquant.kvcache.layers import ExactColumns, Passing

MASKED = ("sdpa", "eager")
"""Attention implementations of transformers that take a mask for each query and key."""


def as_decoded(
    passing: Passing, queries: int, keys: Tensor, values: Tensor, mask: Tensor | None, implementation: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Return keys, values and mask for an attention in which each query sees its own past.

    Args:
        passing: which columns became packed, and how they came.
        queries: how many, the newest columns.
        keys: `[batch, head, column, head_dim]` as the cache holds them after the last query.
        values: the same.
        mask: what the attention would have got, `[batch, 1, query, column]`: true where seen, or added to the scores;
            None where it is causal.
        implementation: of the attention, as transformers calls it.

    Raises:
        UnsupportedModelError: an implementation that takes no such mask, as flash or flex attention.
    """
    if implementation not in MASKED:
        message = (
            f"attention implementation {implementation!r} takes no mask for each query and key, so a text cannot be "
            "read as if token by token: use 'sdpa' or 'eager', a plan without window and with chunks of 1, or "
            "prefill='exact'"
        )
        raise UnsupportedModelError(message)
    mask = _seen(passing, queries, keys, boolean=implementation == "sdpa") if mask is None else mask
    start = min(passing.keys.start, passing.values.start)
    stop = max(passing.keys.stop, passing.values.stop)
    packed = [_packed(columns, passing.seen, queries, start, stop) for columns in (passing.keys, passing.values)]
    columns = slice(start - passing.first, stop - passing.first)
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    for key_is_packed, value_is_packed in product((True, False), repeat=2):
        visible = (packed[0] == key_is_packed) & (packed[1] == value_is_packed)
        if visible.any():
            key_states = (
                keys[:, :, columns] if key_is_packed else _exact(passing.keys, keys, start, stop, passing.first)
            )
            value_states = (
                values[:, :, columns] if value_is_packed else _exact(passing.values, values, start, stop, passing.first)
            )
            parts.append((key_states, value_states, _hidden(mask[..., columns], visible)))
    rest = [slice(0, columns.start), slice(columns.stop, None)]
    parts += [(keys[:, :, side], values[:, :, side], mask[..., side]) for side in rest]
    every_key, every_value, every_mask = zip(*parts, strict=True)
    return torch.cat(every_key, dim=2), torch.cat(every_value, dim=2), torch.cat(every_mask, dim=-1)


def _packed(columns: ExactColumns, seen: int, queries: int, start: int, stop: int) -> Bool[Tensor, "query column"]:
    """For which queries the cache's state of a column stands: where it was packed by then, or never exact here."""
    device = columns.states.device
    lengths = torch.arange(seen + 1, seen + queries + 1, device=device)
    chunk, window = columns.keeping.codec.chunk, columns.keeping.window
    packed_by_then = (lengths - window).clamp(min=0) // chunk * chunk
    column = torch.arange(start, stop, device=device)
    passing = (column >= columns.start) & (column < columns.stop)
    return ~passing | (column < packed_by_then[:, None])


def _exact(columns: ExactColumns, held: Tensor, start: int, stop: int, first: int) -> Tensor:
    """Columns `start` to `stop - 1` as they came, where they are among the passing ones."""
    states = held[:, :, start - first : stop - first].clone()
    states[:, :, columns.start - start : columns.stop - start] = columns.states
    return states


def _hidden(mask: Tensor, visible: Bool[Tensor, "query column"]) -> Tensor:
    """Hide from each query what is not visible to it."""
    if mask.dtype == torch.bool:
        return mask & visible
    return mask.masked_fill(~visible, torch.finfo(mask.dtype).min)


def _seen(passing: Passing, queries: int, keys: Tensor, *, boolean: bool) -> Tensor:
    """Make the causal mask that an attention implementation implies where it is given none."""
    query = torch.arange(passing.seen, passing.seen + queries, device=keys.device)
    column = torch.arange(passing.first, passing.first + keys.shape[2], device=keys.device)
    causal = (column <= query[:, None])[None, None]
    return (
        causal
        if boolean
        else torch.zeros_like(causal, dtype=keys.dtype).masked_fill(~causal, torch.finfo(keys.dtype).min)
    )
