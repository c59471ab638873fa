import pytest
import torch

from mvquant.backends.folder.packed import awq_weight, gptq_weight, zeros_are_less_one
from mvquant.errors import CheckpointError
from mvquant.quant import round_to_nearest
from mvquant.scheme import WeightScheme

ROWS, COLUMNS, GROUP = 64, 96, 32
AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]


def bits_of(values, bits):
    """The plain little-endian stream that classic packers make, one Python integer at a time."""
    stream = 0
    for place, value in enumerate(values):
        stream |= int(value) << (bits * place)
    words = [(stream >> 32 * word) & 0xFFFFFFFF for word in range(len(values) * bits // 32)]
    return [word - (1 << 32) if word >> 31 else word for word in words]


def packed_lines(matrix, bits):
    return torch.tensor([bits_of(line, bits) for line in matrix.tolist()], dtype=torch.int32)


def unsigned(rounded, scheme):
    half = 1 << (scheme.bits - 1)
    zeros = rounded.grid.zero_point
    zeros = torch.zeros(rounded.grid.scale.shape, dtype=torch.int64) if zeros is None else zeros.long()
    return rounded.integers.long() + half, zeros + half


def as_gptq(rounded, scheme, less_one, whole_words=False):
    integers, zeros = unsigned(rounded, scheme)
    lines = zeros.T
    if less_one and not whole_words:
        lines = (lines - 1) % (1 << scheme.bits)
    qzeros = packed_lines(lines, scheme.bits)
    if whole_words:
        qzeros -= sum(1 << start for start in range(0, 32, scheme.bits))
    return {
        "qweight": packed_lines(integers, scheme.bits).T.contiguous(),
        "qzeros": qzeros,
        "scales": rounded.grid.scale.T.contiguous(),
        "g_idx": torch.arange(COLUMNS, dtype=torch.int32) // (COLUMNS if scheme.group_size == -1 else GROUP),
    }


def weight_with_extreme_zeros():
    """Groups that begin at zero have the smallest zero point there is, 0, and those that end there the largest."""
    weight = torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(0))
    weight[::5] = weight[::5].abs()
    weight[1::7] = -weight[1::7].abs()
    return weight


def schemes():
    return [
        WeightScheme(bits=bits, group_size=group, symmetric=symmetric)
        for bits in (2, 3, 4, 8)
        for group in (GROUP, -1)
        for symmetric in (True, False)
    ]


def assert_same(read, rounded):
    assert torch.equal(read.integers, rounded.integers)
    assert torch.equal(read.grid.scale, rounded.grid.scale)
    if rounded.grid.zero_point is None:
        assert read.grid.zero_point is None
    else:
        assert torch.equal(read.grid.zero_point, rounded.grid.zero_point)


@pytest.mark.parametrize("scheme", schemes(), ids=lambda scheme: scheme.name)
@pytest.mark.parametrize("less_one", [True, False])
def test_gptq_is_read_back(scheme, less_one):
    rounded = round_to_nearest(weight_with_extreme_zeros(), scheme)
    whole_words = less_one and scheme.bits != 3  # as GPTQModel and AutoRound store them
    tensors = as_gptq(rounded, scheme, less_one, whole_words)
    assert_same(gptq_weight(tensors, scheme, torch.float32, less_one), rounded)


@pytest.mark.parametrize("scheme", schemes(), ids=lambda scheme: scheme.name)
@pytest.mark.parametrize("less_one", [True, False])
def test_versions_are_told_apart_by_the_data(scheme, less_one):
    weight = weight_with_extreme_zeros()
    tensors = as_gptq(round_to_nearest(weight, scheme), scheme, less_one, whole_words=less_one and scheme.bits != 3)
    assert zeros_are_less_one(tensors, scheme, weight) == less_one


@pytest.mark.parametrize("scheme", schemes(), ids=lambda scheme: scheme.name)
def test_awq_is_read_back(scheme):
    rounded = round_to_nearest(weight_with_extreme_zeros(), scheme)
    integers, zeros = (each.T for each in unsigned(rounded, scheme))
    if scheme.bits == 4:
        integers, zeros = (each.reshape(len(each), -1, 8)[..., AWQ_ORDER].flatten(1) for each in (integers, zeros))
    tensors = {
        "qweight": packed_lines(integers, scheme.bits),
        "qzeros": packed_lines(zeros, scheme.bits),
        "scales": rounded.grid.scale.T.contiguous(),
    }
    assert_same(awq_weight(tensors, scheme, torch.float32), rounded)


def test_symmetric_weights_with_other_zero_points_are_refused():
    scheme = WeightScheme(bits=4, group_size=GROUP)
    tensors = as_gptq(round_to_nearest(torch.randn(ROWS, COLUMNS), scheme), scheme, less_one=False)
    with pytest.raises(CheckpointError, match="zero points of a symmetric weight"):
        gptq_weight(tensors, scheme, torch.float32, zeros_less_one=True)


def test_columns_grouped_by_activation_order_are_refused():
    scheme = WeightScheme(bits=4, group_size=GROUP)
    tensors = as_gptq(round_to_nearest(torch.randn(ROWS, COLUMNS), scheme), scheme, less_one=False)
    with pytest.raises(CheckpointError, match="static groups"):
        gptq_weight({**tensors, "g_idx": tensors["g_idx"].flip(0)}, scheme, torch.float32, zeros_less_one=False)
