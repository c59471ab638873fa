"""Quantized weights: grids, packing, the state of one weight, and the modules that compute with it."""

from mvquant.quant.experts import QuantizedExperts
from mvquant.quant.grid import Grid, dequantize, fit_grid, quantize
from mvquant.quant.linear import MixedRowLinear
from mvquant.quant.packing import pack, packed_words, unpack
from mvquant.quant.replace import replace_weight, restore_weight
from mvquant.quant.rounded import RoundedWeight, mixed_state, round_to_nearest
from mvquant.quant.state import dequantize_state, empty_state, quantize_weight

__all__ = [
    "Grid",
    "MixedRowLinear",
    "QuantizedExperts",
    "RoundedWeight",
    "dequantize",
    "dequantize_state",
    "empty_state",
    "fit_grid",
    "mixed_state",
    "pack",
    "packed_words",
    "quantize",
    "quantize_weight",
    "replace_weight",
    "restore_weight",
    "round_to_nearest",
    "unpack",
]
