"""Row arithmetic: every (head, dim) has a row of its own, every pair two of them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mvquant.heads import HeadRows, pair_dims

HEADS = st.builds(
    lambda heads, half, rotary, layout, start, gap: HeadRows(
        module="q_proj",
        role="q",
        heads=heads,
        head_dim=2 * half,
        rotary_dim=2 * min(rotary, half),
        layout=layout,
        start=start,
        head_stride=2 * half + gap,
    ),
    heads=st.integers(1, 8),
    half=st.integers(1, 32),
    rotary=st.integers(0, 32),
    layout=st.sampled_from(["half-split", "interleaved"]),
    start=st.integers(0, 100),
    gap=st.integers(0, 64),
)


@given(HEADS)
def test_every_dim_has_its_own_row(rows):
    every = [rows.row(head, dim) for head in range(rows.heads) for dim in range(rows.head_dim)]

    assert len(set(every)) == rows.heads * rows.head_dim
    assert min(every) == rows.start


@given(HEADS)
def test_pairs_share_out_the_rotary_dims(rows):
    dims = [dim for pair in range(rows.pairs) for dim in pair_dims(pair, rows.rotary_dim, rows.layout)]

    assert sorted(dims) == list(range(rows.rotary_dim))


@given(HEADS)
def test_pair_rows_are_the_rows_of_its_dims(rows):
    for pair in range(rows.pairs):
        dims = pair_dims(pair, rows.rotary_dim, rows.layout)
        assert rows.pair_rows(pair, rows.heads - 1) == tuple(rows.row(rows.heads - 1, dim) for dim in dims)


@pytest.mark.parametrize(("head", "dim"), [(2, 0), (0, 8), (-1, 0), (0, -1)])
def test_rows_outside_the_heads_are_refused(head, dim):
    rows = HeadRows(module="k_proj", role="k", heads=2, head_dim=8, rotary_dim=8)

    with pytest.raises(IndexError, match=r"outside 2 heads of 8 dims \(k_proj\)"):
        rows.row(head, dim)


@pytest.mark.parametrize("pair", [-1, 4])
def test_pairs_outside_the_head_are_refused(pair):
    with pytest.raises(IndexError, match=r"outside 0\.\.3"):
        pair_dims(pair, rotary_dim=8)
