"""Block-GTQ's rule (Liang et al., arXiv 2606.24033): whole bits per RoPE block by energy, on rotated codebooks.

From the paper and the description in its public repository (JIA-Lab-research/blockgtq), code our own: the score of a
block is (E|q|^2 + E|k|^2) / 2; starting from 1 bit, the next bit always goes to the block with the largest score times
4^-bits, up to 8; blocks of equal bits form a group, which is rounded as TurboQuant does, with a norm and a rotation of
its own. Its cache holds keys after RoPE.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from benchmarks.peers.turboquant import rotated_rounding

MIN_BITS, MAX_BITS = 1, 8
Keys = Float[Tensor, "seq head head_dim"]


def block_bits(q: Float[Tensor, "seq q_head head_dim"], k: Keys, average: float) -> Int[Tensor, "head pair"]:
    """Choose the bits of every head's RoPE blocks (half-split) on calibration states.

    Query heads of a KV head are samples of their own, as in the paper. The budget is rounded down to whole bits.
    """
    half, heads = k.shape[-1] // 2, k.shape[1]
    energy = [
        (states[..., :half].square() + states[..., half:].square()).double().mean(dim=0).view(heads, -1, half).mean(1)
        for states in (q, k)
    ]
    return torch.stack([_greedy(score, int(average * half)) for score in (energy[0] + energy[1]) / 2])


def _greedy(score: Float[Tensor, " pair"], budget: int) -> Int[Tensor, " pair"]:
    bits = torch.full(score.shape, MIN_BITS)
    for _ in range(budget - MIN_BITS * len(score)):
        gain = score * 4.0 ** -bits.double()
        gain[bits >= MAX_BITS] = -1
        bits[gain.argmax()] += 1
    return bits


def block_gtq(k: Keys, bits: Int[Tensor, "head pair"], seed: int = 0) -> tuple[Keys, float]:
    """Round keys with these bits.

    Returns:
        Rounded keys, and bits per value with one float16 norm per key and group.
    """
    by_dim = torch.cat([bits, bits], dim=1)
    rounded = k.clone()
    groups = 0
    for head, head_bits in enumerate(by_dim):
        for width in head_bits.unique().tolist():
            dims = (head_bits == width).nonzero().flatten()
            rounded[:, head, dims] = rotated_rounding(k[:, head, dims], head_bits[dims], seed + width)
            groups += 1
    return rounded, float(bits.double().mean()) + 16 * groups / by_dim.numel()
