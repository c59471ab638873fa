"""Where the heads of Q, K and V lie in the rows of a projection, and where RoPE pairs lie in a head.

Pure arithmetic, no torch: plans are made of it. `d` is head_dim, `r` the rotary dims of a head.

    half-split   (transformers)   pair p turns dims (p, p + r/2)
    interleaved  (Meta, GPT-J)    pair p turns dims (2p, 2p + 1)
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict

Role = Literal["q", "k", "v"]
RotaryLayout = Literal["half-split", "interleaved"]


def pair_dims(pair: int, rotary_dim: int, layout: RotaryLayout = "half-split") -> tuple[int, int]:
    """Return the two dims of a head that RoPE pair `pair` (fastest first) turns.

    >>> pair_dims(1, rotary_dim=8), pair_dims(1, rotary_dim=8, layout="interleaved")
    ((1, 5), (2, 3))
    """
    if not 0 <= pair < rotary_dim // 2:
        raise IndexError(f"pair {pair} is outside 0..{rotary_dim // 2 - 1}")
    return (pair, pair + rotary_dim // 2) if layout == "half-split" else (2 * pair, 2 * pair + 1)


class HeadRows(BaseModel):
    """The rows of one module that hold the heads of one role.

    Row of (head, dim) is `start + head * stride + dim`. A plain `q_proj` has `start=0, stride=d`;
    Phi-3's fused `qkv_proj` has its keys at `start=heads*d`; GPT-NeoX's `query_key_value` interleaves
    the roles head by head, so that `stride=3d`.

    >>> HeadRows(module="k_proj", role="k", heads=2, head_dim=8, rotary_dim=8).pair_rows(pair=3, head=1)
    (11, 15)
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    module: str
    role: Role
    heads: int
    head_dim: int
    rotary_dim: int
    layout: RotaryLayout = "half-split"
    start: int = 0
    head_stride: int | None = None

    @property
    def stride(self) -> int:
        """Rows from one head to the next."""
        return self.head_dim if self.head_stride is None else self.head_stride

    @property
    def pairs(self) -> int:
        """RoPE pairs in one head; 0 without RoPE."""
        return self.rotary_dim // 2

    def row(self, head: int, dim: int) -> int:
        """Row of dimension `dim` of head `head`."""
        if not (0 <= head < self.heads and 0 <= dim < self.head_dim):
            raise IndexError(
                f"head {head}, dim {dim} is outside {self.heads} heads of {self.head_dim} dims ({self.module})"
            )
        return self.start + head * self.stride + dim

    def pair_rows(self, pair: int, head: int) -> tuple[int, int]:
        """The two rows of RoPE pair `pair` of head `head`."""
        first, second = pair_dims(pair, self.rotary_dim, self.layout)
        return self.row(head, first), self.row(head, second)
