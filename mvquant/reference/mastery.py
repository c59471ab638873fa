"""How well each exercise of the curriculum is answered: a running average over training rows."""

from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mvquant.reference.corpus import Source

MASTERED = 0.93
_ROW_WEIGHT = 0.02
_ROWS_NEEDED = 50


class Mastery:
    """Running share of right answers by source, equal in all workers.

    Args:
        sources: whatever may occur; their order is that of `row_sums`.
    """

    def __init__(self, sources: Sequence[Source]) -> None:
        self._index = {source: place for place, source in enumerate(sources)}
        self.share = torch.zeros(len(sources))
        self.rows = torch.zeros(len(sources))

    def row_sums(
        self, drawn: Sequence[Source], right: Bool[Tensor, "rows length"], asked: Bool[Tensor, "rows length"]
    ) -> Float[Tensor, "2 source"]:
        """Return, by source, the sum over rows of the share answered right, and the number of rows with an answer."""
        sums = torch.zeros(2, len(self._index))
        answers = asked.sum(1)
        shares = (right & asked).sum(1) / answers.clamp(min=1)
        for row, source in enumerate(drawn):
            if answers[row]:
                sums[:, self._index[source]] += torch.stack([shares[row], torch.ones(())])
        return sums

    def add(self, sums: Float[Tensor, "2 source"]) -> None:
        """Take in the sums of all workers' rows of one step."""
        total, rows = sums
        # Rows of one step count as if they had come one after another.
        kept = (1 - _ROW_WEIGHT) ** rows
        started = self.rows > 0
        mean = total / rows.clamp(min=1)
        blended = torch.where(started, kept * self.share + (1 - kept) * mean, mean)
        self.share = torch.where(rows > 0, blended, self.share)
        self.rows += rows

    def mastered(self, sources: Iterable[Source]) -> bool:
        """Tell whether all of the sources, of which there must be one, are answered right often enough."""
        places = [self._index[source] for source in sources]
        return bool(places) and all(self.share[p] > MASTERED and self.rows[p] >= _ROWS_NEEDED for p in places)

    def forget(self, sources: Iterable[Source]) -> None:
        """Start anew with some sources."""
        for source in sources:
            self.share[self._index[source]] = self.rows[self._index[source]] = 0.0
