"""States: what protecting rows may and may not change, and what a state weighs."""

import itertools

import pytest
import torch
from compressed_tensors.compressors import PackedQuantizationCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from hypothesis import given, settings
from hypothesis import strategies as st

from mvquant.errors import PlanError
from mvquant.plan import ROW_INDEX_BYTES
from mvquant.quant.packing import pack, unpack
from mvquant.quant.state import base_rows, dequantize_state, empty_state, quantize_weight
from mvquant.scheme import WeightScheme

ROWS, COLUMNS = 40, 128
SHAPE = ROWS, COLUMNS
WEIGHT = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))

schemes = st.builds(
    WeightScheme,
    bits=st.sampled_from((2, 3, 4, 8)),
    group_size=st.sampled_from((32, 64, 128, -1)),
    symmetric=st.booleans(),
)
protected_schemes = st.builds(
    WeightScheme, bits=st.sampled_from((8, 16)), group_size=st.sampled_from((32, 64, -1)), symmetric=st.booleans()
)
row_sets = st.sets(st.integers(0, ROWS - 1), max_size=ROWS).map(sorted)
several = settings(max_examples=60, deadline=None)


def values_of(state, scheme, protected=None, dtype=torch.float32):
    return dequantize_state(state, scheme, protected, SHAPE, dtype)


def integers_of(state, scheme):
    return unpack(state["weight_packed"], scheme.bits, COLUMNS)


def zero_points_of(state, scheme, part="weight"):
    return unpack(state[f"{part}_zero_point"].T.contiguous(), scheme.bits, len(state[f"{part}_scale"])).T


@several
@given(scheme=schemes, protected=protected_schemes, rows=row_sets)
def test_protecting_rows_leaves_all_others_bit_identical(scheme, protected, rows):
    plain, mixed = quantize_weight(WEIGHT, scheme), quantize_weight(WEIGHT, scheme, protected, rows)
    others = [row for row in range(ROWS) if row not in rows]
    if others:
        assert torch.equal(integers_of(mixed, scheme), integers_of(plain, scheme)[others])
        assert torch.equal(mixed["weight_scale"], plain["weight_scale"][others])
        if not scheme.symmetric:
            assert torch.equal(zero_points_of(mixed, scheme), zero_points_of(plain, scheme)[others])
    else:
        assert "weight_packed" not in mixed
    assert torch.equal(values_of(mixed, scheme, protected)[others], values_of(plain, scheme)[others])


@several
@given(scheme=schemes, protected=schemes, order=st.randoms(use_true_random=False))
def test_all_rows_protected_equals_the_protected_scheme_bit_for_bit(scheme, protected, order):
    rows = list(range(ROWS))
    order.shuffle(rows)
    mixed, plain = quantize_weight(WEIGHT, scheme, protected, rows), quantize_weight(WEIGHT, protected)
    assert sorted(mixed) == sorted([*(name.replace("weight_", "protected_") for name in plain), "protected_rows"])
    for name, tensor in plain.items():
        assert torch.equal(mixed[name.replace("weight_", "protected_")], tensor)
    assert torch.equal(values_of(mixed, scheme, protected), values_of(plain, protected))


@several
@given(scheme=schemes, protected=protected_schemes)
def test_no_protected_rows_equals_the_plain_scheme_bit_for_bit(scheme, protected):
    plain, mixed = quantize_weight(WEIGHT, scheme), quantize_weight(WEIGHT, scheme, protected, [])
    assert plain.keys() == mixed.keys()
    assert all(torch.equal(plain[name], mixed[name]) for name in plain)


@several
@given(
    scheme=schemes.filter(lambda scheme: scheme.bits < 8),
    protected=protected_schemes,
    rows=row_sets,
    more=row_sets,
)
def test_more_protected_rows_never_more_error(scheme, protected, rows, more):
    protected = protected.model_copy(update={"group_size": scheme.group_size, "symmetric": scheme.symmetric})
    errors = [
        float((values_of(quantize_weight(WEIGHT, scheme, protected, chosen), scheme, protected) - WEIGHT).norm())
        for chosen in (rows, sorted({*rows, *more}))
    ]
    assert errors[1] <= errors[0]


def test_bf16_rows_are_kept_exactly():
    scheme, kept = WeightScheme(bits=2, group_size=64), WeightScheme(bits=16)
    weight = WEIGHT.bfloat16()
    state = quantize_weight(weight, scheme, kept, [7, 3])
    assert state["protected_rows"].tolist() == [3, 7]
    assert torch.equal(values_of(state, scheme, kept, torch.bfloat16)[[3, 7]], weight[[3, 7]])


@several
@given(
    scheme=schemes,
    protected=protected_schemes,
    rows=row_sets,
    dtype=st.sampled_from((torch.float32, torch.bfloat16, torch.float16)),
)
def test_empty_state_has_the_same_names_shapes_and_dtypes(scheme, protected, rows, dtype):
    state = quantize_weight(WEIGHT.to(dtype), scheme, protected, rows)
    empty = empty_state(SHAPE, scheme, protected, len(rows), dtype)
    described = [{name: (x.shape, x.dtype, x.is_contiguous()) for name, x in s.items()} for s in (state, empty)]
    assert described[0] == described[1]
    assert all(tensor.is_meta for tensor in empty.values())


@several
@given(scheme=schemes, protected=protected_schemes, rows=row_sets)
def test_a_state_weighs_exactly_what_the_plan_says(scheme, protected, rows):
    state = quantize_weight(WEIGHT.bfloat16(), scheme, protected, rows)
    base = scheme.matrix_bytes(ROWS - len(rows), COLUMNS)
    kept = protected.matrix_bytes(len(rows), COLUMNS) + ROW_INDEX_BYTES * len(rows)
    assert sum(tensor.nbytes for tensor in state.values()) == base + kept


@several
@given(scheme=schemes, protected=protected_schemes, rows=row_sets, edges=st.tuples(*[st.integers(0, ROWS)] * 2))
def test_a_window_of_rows_is_cut_out_of_the_whole(scheme, protected, rows, edges):
    state = quantize_weight(WEIGHT, scheme, protected, rows)
    start, stop = sorted(edges)
    window = dequantize_state(state, scheme, protected, SHAPE, torch.float32, start=start, stop=stop)
    assert torch.equal(window, values_of(state, scheme, protected)[start:stop])


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_awkward_columns_weigh_what_the_plan_says(bits):
    """Neither rows nor columns fill up words."""
    scheme = WeightScheme(bits=bits, group_size=-1, symmetric=False)
    state = quantize_weight(WEIGHT[:37, :77], scheme)
    assert sum(tensor.nbytes for tensor in state.values()) == scheme.matrix_bytes(37, 77, float_bits=32)
    assert dequantize_state(state, scheme, None, (37, 77), torch.float32).shape == (37, 77)


@pytest.mark.parametrize(("bits", "symmetric", "group"), list(itertools.product((2, 3, 4, 8), (True, False), (64, -1))))
def test_plain_state_is_read_by_compressed_tensors(bits, symmetric, group):
    """Its `pack-quantized` compressor decompresses our tensors to our values."""
    scheme = WeightScheme(bits=bits, group_size=group, symmetric=symmetric)
    state = quantize_weight(WEIGHT, scheme)
    args = QuantizationArgs(
        num_bits=bits,
        symmetric=symmetric,
        strategy="channel" if group == -1 else "group",
        group_size=None if group == -1 else group,
    )
    foreign = {**state, "weight_shape": torch.tensor(SHAPE)}
    their_scheme = QuantizationScheme(targets=["Linear"], weights=args)
    theirs = PackedQuantizationCompressor.decompress(foreign, their_scheme)["weight"]
    assert torch.equal(values_of(state, scheme), theirs)


def test_input_is_untouched():
    weight = WEIGHT.clone()
    quantize_weight(weight, WeightScheme(bits=3, group_size=32), WeightScheme(bits=16), [1])
    assert torch.equal(weight, WEIGHT)


def test_state_does_not_share_memory_with_the_weight():
    kept = WeightScheme(bits=16)
    state = quantize_weight(WEIGHT, WeightScheme(bits=4, group_size=32), kept, list(range(ROWS)))
    assert state["protected_weight"].data_ptr() != WEIGHT.data_ptr()


@pytest.mark.parametrize("rows", [[-1], [ROWS], [3, 3]], ids=["negative", "beyond", "twice"])
def test_impossible_rows_are_refused(rows):
    with pytest.raises(PlanError, match=r"not different rows of 0\.\.39"):
        quantize_weight(WEIGHT, WeightScheme(bits=4, group_size=32), WeightScheme(bits=8), rows)


def test_protected_rows_need_a_scheme():
    with pytest.raises(PlanError, match="2 protected rows have no scheme"):
        quantize_weight(WEIGHT, WeightScheme(bits=4, group_size=32), None, [1, 2])


def test_base_rows_and_protected_rows_are_all_rows():
    protected = torch.tensor([0, 5, 39], dtype=torch.int32)
    assert sorted([*protected.tolist(), *base_rows(protected, ROWS).tolist()]) == list(range(ROWS))


def test_zero_points_are_packed_along_the_rows():
    scheme = WeightScheme(bits=4, group_size=32, symmetric=False)
    state = quantize_weight(WEIGHT, scheme)
    assert state["weight_zero_point"].shape == (ROWS * 4 // 32, COLUMNS // 32)
    assert torch.equal(pack(zero_points_of(state, scheme).T.contiguous(), 4).T, state["weight_zero_point"])
