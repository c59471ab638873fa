"""One layer of a quantized cache, as transformers' `Cache(layers=[...])` wants it.

What a forward pass of several tokens reads of its own tokens is a choice, `Prefill`:

    "rounded"   every query reads what it would read had the tokens come one at a time: keys and values that the
                cache would have packed by then are rounded, its own included where no window is kept
    "exact"     the tokens of this forward pass are read as they came, older ones as the cache holds them: what
                engines and KIVI (arXiv 2402.02750) do, which attend to a prompt before they quantize it

"exact" leaves a text that is scored in one forward pass untouched: nothing is measured then.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin

from mvquant.cache_recipe import Prefill
from mvquant.errors import PlanError, UsageError
from mvquant.kvcache.held import HeldStates
from mvquant.kvcache.keeping import HeldBytes, Keeping, RowStarts


@dataclass(frozen=True)
class LayerKeeping:
    """How one layer's keys and values are kept."""

    layer: int
    keys: Keeping
    values: Keeping
    heads: int
    head_dim: int
    sliding_window: int | None = None
    """Tokens that a query may look back to, itself included, where the model's layer has such a limit."""

    @property
    def lossless(self) -> bool:
        """Whether all is kept as it comes."""
        return self.keys.lossless and self.values.lossless


@dataclass(frozen=True)
class Passing:
    """What became packed in a forward pass of several tokens: for its first queries it was not yet.

    Attributes:
        seen: columns before this forward pass.
        first: first column of the states that `update` returned.
        keys, values: columns `start` to `start + len - 1` as they came, of those that are packed by now.
    """

    seen: int
    first: int
    keys: "ExactColumns"
    values: "ExactColumns"


@dataclass(frozen=True)
class ExactColumns:
    """Some columns of K or V as they came, and the settings that say when each was packed."""

    start: int
    states: Float[Tensor, "batch head column head_dim"]
    keeping: Keeping

    @property
    def stop(self) -> int:
        """The column after the last."""
        return self.start + self.states.shape[2]

    @property
    def differ(self) -> bool:
        """Whether some query reads one of them exact: not if each is packed as soon as it comes."""
        return self.stop > self.start and (self.keeping.window > 0 or self.keeping.codec.chunk > 1)


class QuantizedKVLayer(CacheLayerMixin):
    """Keys and values of one decoder layer, packed as a plan says.

    A layer with a sliding window returns and keeps as much as transformers' `DynamicSlidingWindowLayer`. `crop` may cut
    what has been packed; after `activate_past_recording` nothing is packed or dropped before the next `crop`, so that
    a rollback leaves no trace.
    """

    is_croppable = True

    def __init__(self, keeping: LayerKeeping, prefill: Prefill) -> None:
        super().__init__()
        self.keeping = keeping
        self.prefill: Prefill = prefill
        self.is_sliding = keeping.sliding_window is not None
        self.record_past = False
        self.keep_passing = False
        """Set by whoever takes `passing` after each update."""
        self.passing: Passing | None = None
        self.starts: RowStarts | None = None
        """Set before an update by whoever knows them."""
        self._forget()

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Note dtype, device and batch; refuse states of another model.

        Raises:
            PlanError: heads or head_dim are not the plan's.
        """
        for name, states in (("keys", key_states), ("values", value_states)):
            found, expected = (states.shape[1], states.shape[3]), (self.keeping.heads, self.keeping.head_dim)
            if found != expected:
                message = (
                    f"layer {self.keeping.layer}: {name} have {found[0]} heads of {found[1]} dims, the plan is for "
                    f"{expected[0]} heads of {expected[1]}: make the cache with a plan for this model"
                )
                raise PlanError(message)
        self.dtype, self.device = key_states.dtype, key_states.device
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:  # noqa: ANN401, ARG002
        """Add new columns, and return those that the new tokens may read.

        Args:
            key_states: `[batch, head, column, head_dim]`, after RoPE.
            value_states: the same shape.
            *args: ignored.
            **kwargs: ignored.

        Raises:
            PlanError: states of another model.
            UsageError: another batch than before.
        """
        self._check(key_states, value_states)
        starts = self._row_starts(key_states)
        seen = self.get_seq_length()
        first = self._first_readable(seen)
        self.keys_held.append(key_states, starts)
        self.values_held.append(value_states, starts)
        if self.prefill == "exact":
            states = self.keys_held.read(first), self.values_held.read(first)
            self._pack()
        else:
            self.passing = self._passing(seen, first)
            self._pack()
            states = _rounded(self.keys_held, first), _rounded(self.values_held, first)
        self._drop_unreadable()
        return states

    def get_seq_length(self) -> int:
        """Columns seen so far."""
        return self.keys_held.length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Columns that the next `update` will return, and the first of them."""
        seen = self.get_seq_length()
        first = self._first_readable(seen)
        return seen - first + query_length, first

    def get_max_length(self) -> int:
        """The sliding window; -1 where there is none."""
        return self.keeping.sliding_window or -1

    def activate_past_recording(self) -> None:
        """Pack and drop nothing until the next `crop`."""
        self.record_past = True

    def crop(self, tokens_to_remove: int | Tensor) -> None:
        """Forget the newest tokens, and pack and drop what the settings want by now.

        Args:
            tokens_to_remove: how many, as a number below 0; 0 forgets none. `generate` gives a tensor.

        Raises:
            UsageError: a number above 0, which transformers gave up, or more columns than a sliding window still has.
        """
        tokens_to_remove = int(tokens_to_remove)
        if tokens_to_remove > 0:
            message = f"crop({tokens_to_remove}): say how many tokens to remove as a negative number"
            raise UsageError(message)
        if not self.is_initialized:
            return
        length = max(self.get_seq_length() + tokens_to_remove, 0)
        if length < self.get_seq_length() and self._first_readable(length) < self.keys_held.first:
            message = (
                f"layer {self.keeping.layer}: crop({tokens_to_remove}) asks for tokens that the sliding window of "
                f"{self.keeping.sliding_window} has dropped: call activate_past_recording() before they are added"
            )
            raise UsageError(message)
        for held in (self.keys_held, self.values_held):
            held.crop(length)
            held.pack()
            held.drop_before(self._first_readable(length))

    def reset(self) -> None:
        """Forget everything."""
        self._forget()

    def reorder_cache(self, beam_idx: Int[Tensor, " row"]) -> None:
        """Take over other rows' pasts, as beam search does."""
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row of the batch."""
        if self.get_seq_length() > 0:
            self.batch_select_indices(torch.arange(self._rows(), device=self.device).repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows of the batch, by number or by a mask."""
        if self.get_seq_length() == 0:
            return
        rows = torch.arange(self._rows(), device=self.device)[indices.to(self.device)]
        self.keys_held.select(rows)
        self.values_held.select(rows)
        self.starts = None if self.starts is None else self.starts.to(rows.device).select(rows)

    def offload(self) -> None:
        """Refuse: only the decoded states of one layer at a time are large, and they are not kept."""
        raise UsageError("a quantized cache is not offloaded: make it without offloading")

    def prefetch(self) -> None:
        """Refuse, as `offload` does."""
        self.offload()

    @property
    def nbytes(self) -> HeldBytes:
        """Bytes held."""
        return self.keys_held.nbytes + self.values_held.nbytes

    def _forget(self) -> None:
        self.keys_held, self.values_held = HeldStates(self.keeping.keys), HeldStates(self.keeping.values)
        self.starts = None
        self.passing = None
        self.is_initialized = False

    def _rows(self) -> int:
        return self.keys_held.rows

    def _first_readable(self, seen: int) -> int:
        """First column that the token after `seen` columns may read."""
        window = self.keeping.sliding_window
        return 0 if window is None else max(seen - window + 1, 0)

    def _check(self, key_states: Tensor, value_states: Tensor) -> None:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        if self.get_seq_length() and key_states.shape[0] != self._rows():
            message = (
                f"layer {self.keeping.layer}: the cache holds a batch of {self._rows()} rows and was given "
                f"{key_states.shape[0]}: begin every batch with a new cache, or call reset()"
            )
            raise UsageError(message)

    def _row_starts(self, key_states: Tensor) -> RowStarts:
        """Where each row begins: in the first column where nobody told."""
        if self.starts is not None:
            return self.starts.to(key_states.device)
        if self.keeping.keys.frame is not None and key_states.shape[0] > 1:
            message = (
                "keys are packed as they were before RoPE, for which the position of every token has to be known, and "
                "rows may be padded: call cache.note_padding(attention_mask) first, or use quantized_cache(model, plan)"
            )
            raise UsageError(message)
        zero = torch.zeros(key_states.shape[0], dtype=torch.long, device=key_states.device)
        return RowStarts(zero, zero)

    def _passing(self, seen: int, first: int) -> Passing | None:
        """What `Passing` says, if anybody wants it and it is not nothing."""
        if not self.keep_passing or self.get_seq_length() - seen == 1:
            return None
        keys, values = (_becoming_packed(held, first) for held in (self.keys_held, self.values_held))
        return Passing(seen, first, keys, values) if keys.differ or values.differ else None

    def _pack(self) -> None:
        if not self.record_past:
            self.keys_held.pack()
            self.values_held.pack()

    def _drop_unreadable(self) -> None:
        """Forget what no later token may read."""
        if not self.record_past:
            first = self._first_readable(self.get_seq_length())
            self.keys_held.drop_before(first)
            self.values_held.drop_before(first)


def _rounded(held: HeldStates, first: int) -> Tensor:
    return held.read(first, held.due)


def _becoming_packed(held: HeldStates, first: int) -> ExactColumns:
    """The columns from `first` on that are due to be packed, and are not yet; none where packing changes nothing."""
    start = max(held.packed, first)
    until = start if held.keeping.lossless else max(held.due, start)
    return ExactColumns(start, held.exact(start, until), held.keeping)
