"""Where rows begin, from masks and positions."""

import pytest
import torch

from mvquant.errors import UsageError
from mvquant.kvcache.keeping import RowStarts
from mvquant.kvcache.starts import position_starts

MASK = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])


@pytest.mark.parametrize(
    ("positions", "expected"),
    [
        ([[0, 0, 0, 1, 2, 3], [0, 1, 2, 3, 4, 5]], [2, 0]),
        ([[0, 1, 2, 3, 4, 5]], [0, 0]),  # of all rows: padding is counted
        ([[1, 1, 7, 8, 9, 10], [0, 1, 2, 3, 4, 5]], [-5, 0]),
    ],
)
def test_the_column_of_position_zero_is_found_at_once_and_in_pieces(positions: list[list[int]], expected: list[int]):
    ids = torch.tensor(positions)
    assert position_starts(ids, MASK, 0, None).tolist() == expected
    before = None
    for column in range(6):
        found = position_starts(ids[:, column : column + 1], MASK[:, : column + 1], column, before)
        before = RowStarts(found, found)
    assert found.tolist() == expected


def test_rows_that_end_before_others_do_not_matter():
    mask = torch.tensor([[1, 1, 1, 0, 0]])
    assert position_starts(torch.tensor([[0, 1, 2, 1, 1]]), mask, 0, None).tolist() == [0]


@pytest.mark.parametrize(("seen", "positions"), [(0, [[0, 1, 0, 1]]), (2, [[0, 1]])])
def test_several_texts_in_one_row_are_refused(seen: int, positions: list[list[int]]):
    before = RowStarts(torch.zeros(1, dtype=torch.long), torch.zeros(1, dtype=torch.long)) if seen else None
    with pytest.raises(UsageError, match=r"do not rise by one.*'post-rope'"):
        position_starts(torch.tensor(positions), torch.ones(1, 4), seen, before)
