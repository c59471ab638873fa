"""Packed chunks in memory: a queue that neither loses nor copies more than it must."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mvquant.kvcache.store import PackedStore

STEPS = st.lists(
    st.tuples(st.sampled_from(["append", "first", "last", "select"]), st.integers(min_value=0, max_value=40)),
    max_size=25,
)


@settings(deadline=None, max_examples=60)
@given(steps=STEPS)
def test_it_holds_what_a_plain_tensor_would(steps: list[tuple[str, int]]):
    store, plain, made = PackedStore(), torch.empty(2, 1, 0, 3, dtype=torch.int64), 0
    for step, count in steps:
        if step == "append":
            part = torch.arange(made, made + 6 * count).view(2, 1, count, 3)
            made += 6 * count
            store.append({"integers": part})
            plain = torch.cat([plain, part], dim=2)
        elif step == "first":
            store.drop_first(min(count, len(store)))
            plain = plain[:, :, min(count, plain.shape[2]) :]
        elif step == "last":
            store.drop_last(min(count, len(store)))
            plain = plain[:, :, : plain.shape[2] - min(count, plain.shape[2])]
        else:
            rows = torch.tensor([count % 2, 0])
            store.select(rows)
            plain = plain[rows]
        assert len(store) == plain.shape[2]
        held = store.read(0, len(store))
        assert not held or torch.equal(held["integers"], plain)
        assert store.nbytes == plain.nbytes or not held


def test_appending_one_by_one_copies_each_chunk_a_few_times_only():
    store, moves, place = PackedStore(), 0, None
    for _ in range(4096):
        store.append({"integers": torch.zeros(1, 1, 1, 1, dtype=torch.uint8)})
        found = store.read(0, 1)["integers"].data_ptr()
        moves += len(store) if place is not None and found != place else 0
        place = found
    assert moves < 10 * 4096
    assert store.reserved <= 4096 // 8


def test_a_queue_that_is_dropped_at_the_front_does_not_grow():
    store = PackedStore()
    for _ in range(1000):
        store.append({"integers": torch.zeros(1, 1, 1, 1, dtype=torch.uint8)})
        store.drop_first(max(len(store) - 16, 0))
    assert store.nbytes == 16
    assert store.reserved <= 16
