"""K as transformers' `QuantizedCache` rounds it, with its own code: backends `hqq` and `quanto`, if they are installed.

    pip install hqq optimum-quanto

A cache layer takes the keys of one text at once and gives them back. Both backends take whole bits alone. Their scales
and zero points are counted as they are held.
"""

from importlib.util import find_spec
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers.cache_utils import HQQQuantizedLayer, QuantoQuantizedLayer

Keys = Float[Tensor, "seq head head_dim"]

BACKEND_BITS = {"hqq": (2, 3, 4), "quanto": (2, 4)}


def installed(backend: str) -> bool:
    """Whether the backend's package is here."""
    try:
        return find_spec({"hqq": "hqq", "quanto": "optimum.quanto"}[backend]) is not None
    except ModuleNotFoundError:
        return False


def quantized_cache(k: Keys, bits: int, backend: str, axis: int = 0) -> tuple[Keys, float]:
    """Round keys in groups of 64, the default.

    Returns:
        Rounded keys, and bits per value, scales and zero points included.
    """
    keys = k.half().transpose(0, 1).unsqueeze(0).contiguous()
    layer: Any = {"hqq": HQQQuantizedLayer, "quanto": QuantoQuantizedLayer}[backend](nbits=bits, axis_key=axis)
    layer.keys = keys
    if backend == "hqq":
        # `_quantize` ends on a CUDA device; these are its two calls without the move.
        quantized, held = layer.quantizer.quantize(
            keys, axis=axis, device="cpu", compute_dtype=keys.dtype, nbits=bits, group_size=layer.q_group_size
        )
        decoded = layer.quantizer.dequantize(quantized, held)
        beside = [held["scale"], held["zero"]]
    else:
        quantized = layer._quantize(keys, axis)
        decoded = layer._dequantize(quantized)
        beside = [quantized._scale, quantized._shift]
    extra = sum(each.numel() * each.element_size() for each in beside) * 8 / k.numel()
    return decoded[0].transpose(0, 1).to(torch.float32), bits + extra
