"""Number formats for weights: how many bits, in which groups, on which grid.

Names are the field's (compressed-tensors, vLLM): `w4a16` has 4-bit weights and 16-bit activations, `w8a8` rounds
activations too, with one scale per token, `w8a8-static` with one scale for all.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from mvquant.errors import nearest_name


class WeightScheme(BaseModel):
    """One number format for the rows of a weight matrix.

    A row is cut into groups of `group_size` neighbouring columns; each group has one scale and, if
    asymmetric, one zero point of `bits` bits. `group_size=-1` makes the whole row one group.
    `bits=16` (named `bf16`) keeps the rows in the model's dtype: no scale, no groups. `activations` says whether what
    the rows are multiplied with is rounded to 8 bits: with a scale per token, or one per tensor from calibration.

    >>> WeightScheme(bits=4, group_size=128).name
    'w4a16'
    >>> WeightScheme(bits=4, group_size=64, symmetric=False).name
    'w4a16-g64-asym'
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    bits: Literal[2, 3, 4, 8, 16]
    group_size: int = 128
    symmetric: bool = True
    activations: Literal["token", "tensor"] | None = Field(default=None, exclude_if=lambda value: value is None)

    @field_validator("group_size")
    @classmethod
    def _known_group_size(cls, group_size: int) -> int:
        if group_size not in (-1, 32, 64, 128):
            raise ValueError(f"group_size {group_size} is not one of 32, 64, 128, or -1 for the whole row")
        return group_size

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: object) -> object:
        return parse_scheme_name(value) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _integer_products(self) -> "WeightScheme":
        if self.activations and (self.bits, self.group_size, self.symmetric) != (8, -1, True):
            raise ValueError(
                "activations are rounded only with symmetric 8-bit weights and one group a row (group_size -1): "
                "products of integers need one scale for all of them"
            )
        return self

    @property
    def name(self) -> str:
        """The name that `scheme(name)` reads back."""
        if self.bits == 16:
            return "bf16"
        if self.activations:
            return "w8a8" if self.activations == "token" else "w8a8-static"
        group = {128: "", -1: "-row"}.get(self.group_size, f"-g{self.group_size}")
        return f"w{self.bits}a16{group}{'' if self.symmetric else '-asym'}"

    @property
    def is_quantized(self) -> bool:
        """False for rows kept in the model's dtype."""
        return self.bits < 16

    def groups(self, columns: int) -> int:
        """Number of groups in a row of `columns` weights; 0 where rows are not quantized."""
        if not self.is_quantized:
            return 0
        return 1 if self.group_size == -1 else columns // self.group_size

    def matrix_bytes(self, rows: int, columns: int, float_bits: int = 16) -> int:
        """Bytes of `rows` x `columns` weights on disk: integers, scales and zero points.

        Integers fill 32-bit words along each row, zero points along each group's column of rows.
        Scales, and rows of `bits=16`, are stored in the model's dtype of `float_bits` bits.

        >>> WeightScheme(bits=4, group_size=128).matrix_bytes(rows=1, columns=256)
        132
        """
        if not self.is_quantized:
            return rows * columns * float_bits // 8
        zero_points = 0 if self.symmetric else _words(rows, self.bits) * self.groups(columns)
        return 4 * (rows * _words(columns, self.bits) + zero_points) + rows * self.groups(columns) * float_bits // 8


def _words(integers: int, bits: int) -> int:
    """32-bit words that hold `integers` integers in one dense stream of bits."""
    return -(-integers * bits // 32)


def parse_scheme_name(name: str) -> dict[str, object]:
    """Read a name such as `w4a16-g64-asym` back into fields.

    Raises:
        ValueError: not a scheme name; the message says the nearest one.

    >>> parse_scheme_name("w3a16-g32")
    {'bits': 3, 'group_size': 32, 'symmetric': True}
    """
    if name not in _FIELDS:
        nearest = nearest_name(name, _FIELDS)
        raise ValueError(f"unknown weight scheme {name!r}: {nearest}({SCHEME_GRAMMAR})")
    return dict(_FIELDS[name])


SCHEME_GRAMMAR = (
    "w8a16, w4a16, w3a16 or w2a16, then -g64, -g32 or -row for the group, then -asym; or w8a8, w8a8-static, bf16"
)

_QUANTIZED: dict[str, dict[str, object]] = {
    f"w{bits}a16{group}{grid}": {"bits": bits, "group_size": group_size, "symmetric": not grid}
    for bits in (8, 4, 3, 2)
    for group, group_size in (("", 128), ("-g64", 64), ("-g32", 32), ("-row", -1))
    for grid in ("", "-asym")
}
_ROUNDED: dict[str, dict[str, object]] = {
    name: {"bits": 8, "group_size": -1, "symmetric": True, "activations": activations}
    for name, activations in (("w8a8", "token"), ("w8a8-static", "tensor"))
}
_FIELDS: dict[str, dict[str, object]] = {**_QUANTIZED, **_ROUNDED, "bf16": {"bits": 16}}

SCHEME_NAMES = tuple(_FIELDS)
"""Every weight scheme by name."""
