"""A logical tensor that is stored as several tensors: values, scales and the other parts of its format."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

Kind = Literal["fp8", "packed_integer", "mxfp4", "nvfp4", "nvfp4_rows", "gptq", "gptq_v2", "awq", "affine"]
TURNED = ("gptq", "gptq_v2", "awq")
"""Kinds whose parts are stored input by output: the columns of a part are the rows of the tensor."""


@dataclass(frozen=True)
class Encoding:
    """A format with all parameters that decide the meaning of its bytes."""

    kind: Kind
    block: tuple[int, int] | None = None
    """Numbers of rows and columns that share a scale; 0 means all. Never derived from the shapes, because blocks at the
    edges may be smaller."""
    bits: int = 8
    symmetric: bool = True
    """False: a zero point is stored and subtracted."""
    exponents: bool = False
    """True: the scales are powers of two, stored as exponents."""

    def rows_together(self, role: str) -> int:
        """Return how many rows of the tensor share an entry of a part; 0 means all, whatever the part's shape."""
        inside = 32 // self.bits
        if self.turned:
            values = inside if self.kind == "awq" else 1
            return {"values": values, "scale": 1, "zero_point": inside}.get(role, 0)
        if role == "scale":
            return self.block[0] if self.block else 0
        return {"values": 1, "offset": 1, "zero_point": inside}.get(role, 0)

    @property
    def turned(self) -> bool:
        """Return whether the rows of the tensor are the columns of its parts."""
        return self.kind in TURNED

    def describe(self) -> dict[str, Any]:
        """Return the parameters as plain JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class Encoded:
    """A quantised tensor as a logical tensor.

    Attributes:
        name: the tensor's name in an unquantised checkpoint.
        shape: the shape of the decoded tensor.
        parts: names of stored tensors by role: `values`, `scale` and, if the format has them, `zero_point`, `offset`,
            `order`, `global_scale` (divides), `tensor_scale` (multiplies) and `shape`.
    """

    name: str
    shape: tuple[int, ...]
    encoding: Encoding
    parts: Mapping[str, str]
