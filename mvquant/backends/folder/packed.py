"""The layouts of the classic GPTQ and AWQ checkpoints, as pure functions.

GPTQ keeps a weight of `[rows, columns]` as `qweight` int32 `[words of a column's integers, rows]`, packed along the
columns of a row; `scales` `[groups, rows]`; `qzeros` int32 `[groups, words]`, packed along the rows; and `g_idx`, the
group of every column. Integers are unsigned. In the first version of the format ("v1", `gptq`) zero points are stored
less one, in the second (`gptq_v2`) as they are.

AWQ (GEMM) keeps `qweight` int32 `[columns, words]` and `qzeros` `[groups, words]`, both packed along the rows, at 4
bits with every eight of them in another order, and `scales` `[groups, rows]`.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float, Int8, Int32
from torch import Tensor

from mvquant.errors import CheckpointError
from mvquant.quant.grid import Grid
from mvquant.quant.packing import unpack
from mvquant.quant.rounded import RoundedWeight
from mvquant.scheme import WeightScheme

AWQ_POSITIONS = (0, 4, 1, 5, 2, 6, 3, 7)
"""Where in a word of AWQ each of eight neighbouring rows lies."""


def gptq_weight(
    tensors: Mapping[str, Tensor], scheme: WeightScheme, dtype: torch.dtype, zeros_less_one: bool
) -> RoundedWeight:
    """Read one weight of a GPTQ checkpoint.

    Args:
        tensors: `qweight`, `qzeros`, `scales` and, perhaps, `g_idx`.
        scheme: that it was rounded in.
        dtype: for the scales.
        zeros_less_one: whether zero points are stored less one (v1).

    Raises:
        CheckpointError: columns that are not grouped as they lie.
    """
    scales = tensors["scales"]
    groups, rows = scales.shape
    columns = _columns(tensors, scheme)
    _require_plain_groups(tensors.get("g_idx"), columns, groups)
    integers = unpack(tensors["qweight"].T.contiguous(), scheme.bits, columns)
    zeros = (
        _plus_one(tensors["qzeros"], scheme.bits, rows)
        if zeros_less_one
        else unpack(tensors["qzeros"], scheme.bits, rows)
    )
    return RoundedWeight(integers, _grid(scales, zeros, scheme, dtype))


def zeros_are_less_one(
    tensors: Mapping[str, Tensor], scheme: WeightScheme, weight: Float[Tensor, "rows columns"]
) -> bool:
    """Tell the two versions of GPTQ apart by the data: labels have been wrong.

    A zero point that is off by one moves every weight by one step, where rounding moves it by a quarter on average.

    Args:
        tensors: of one weight of the checkpoint.
        scheme: that it was rounded in.
        weight: that it was made of.
    """

    def distance(*, less_one: bool) -> float:
        # symmetric grids are read as asymmetric ones here: their zero point is what is in question
        loose = scheme.model_copy(update={"symmetric": False})
        read = gptq_weight(tensors, loose, torch.float32, less_one).dequantize(loose, torch.float32)
        return (read - weight.float()).abs().mean().item()

    return distance(less_one=True) < distance(less_one=False)


def awq_weight(tensors: Mapping[str, Tensor], scheme: WeightScheme, dtype: torch.dtype) -> RoundedWeight:
    """Read one weight of an AWQ checkpoint (GEMM).

    Args:
        tensors: `qweight`, `qzeros` and `scales`.
        scheme: that it was rounded in.
        dtype: for the scales.
    """
    scales = tensors["scales"]
    rows = scales.shape[1]
    integers = _awq_rows(tensors["qweight"], scheme.bits, rows)
    zeros = _awq_rows(tensors["qzeros"], scheme.bits, rows)
    return RoundedWeight(integers.T.contiguous(), _grid(scales, zeros, scheme, dtype))


def _grid(
    scales: Float[Tensor, "groups rows"], zeros: Int8[Tensor, "groups rows"], scheme: WeightScheme, dtype: torch.dtype
) -> Grid:
    scale = scales.T.to(dtype).contiguous()
    if not scheme.symmetric:
        return Grid(scale, zeros.T.contiguous())
    if bool(zeros.any()):
        raise CheckpointError("zero points of a symmetric weight are not in the middle: the checkpoint is corrupt")
    return Grid(scale)


def _columns(tensors: Mapping[str, Tensor], scheme: WeightScheme) -> int:
    g_idx = tensors.get("g_idx")
    return tensors["qweight"].shape[0] * 32 // scheme.bits if g_idx is None else len(g_idx)


def _require_plain_groups(g_idx: Tensor | None, columns: int, groups: int) -> None:
    if g_idx is None:
        return
    plain = torch.arange(columns, device=g_idx.device) // (columns // groups)
    if not torch.equal(g_idx.long(), plain):
        raise CheckpointError("columns are grouped by activation order (g_idx): quantize with static groups instead")


def _plus_one(words: Int32[Tensor, "groups words"], bits: int, rows: int) -> Int8[Tensor, "groups rows"]:
    """Unpack zero points that were stored less one.

    A zero point of 0 wraps around. Where none straddles two words, packages subtract from whole words, so that it takes
    from its neighbour: what undoes it is adding to whole words.
    """
    if bits == 3:
        return ((unpack(words, bits, rows).to(torch.int16) + 5) % 8 - 4).to(torch.int8)
    ones = sum(1 << start for start in range(0, 32, bits))
    return unpack(words + ones, bits, rows)


def _awq_rows(words: Int32[Tensor, "lines words"], bits: int, rows: int) -> Int8[Tensor, "lines rows"]:
    loose = unpack(words, bits, rows)
    if bits != 4:
        return loose
    return loose.view(len(words), -1, 8)[..., list(AWQ_POSITIONS)].reshape(len(words), rows)
