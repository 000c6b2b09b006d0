"""A logical tensor that is stored as several: values, scales and what else its format needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

Kind = Literal["fp8", "packed_integer", "mxfp4", "nvfp4", "nvfp4_rows", "gptq", "gptq_v2", "awq", "affine"]
TURNED = ("gptq", "gptq_v2", "awq")
"""Kinds whose parts are stored input by output: the rows of the tensor are their columns."""


@dataclass(frozen=True)
class Encoding:
    """A format with its parameters: everything that decides what the bytes mean."""

    kind: Kind
    block: tuple[int, int] | None = None
    """Rows and columns that share a scale; 0 for all there are. Never derived from the shapes: blocks at the
    edges may be smaller."""
    bits: int = 8
    symmetric: bool = True
    """False: a zero point is stored and subtracted."""
    exponents: bool = False
    """The scales are powers of two, stored as their exponents."""

    def rows_together(self, role: str) -> int:
        """How many rows of the tensor share one of a part; 0 for all there are, whatever the part's shape."""
        inside = 32 // self.bits
        if self.turned:
            values = inside if self.kind == "awq" else 1
            return {"values": values, "scale": 1, "zero_point": inside}.get(role, 0)
        if role == "scale":
            return self.block[0] if self.block else 0
        return {"values": 1, "offset": 1, "zero_point": inside}.get(role, 0)

    @property
    def turned(self) -> bool:
        """Whether the rows of the tensor are the columns of its parts."""
        return self.kind in TURNED

    def describe(self) -> dict[str, Any]:
        """The parameters as plain JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class Encoded:
    """A quantised tensor as it is meant.

    Attributes:
        name: the name an unquantised checkpoint gives it.
        shape: its shape once decoded.
        parts: stored tensors by role: `values`, `scale` and, where the format has them, `zero_point`, `offset`,
            `order`, `global_scale` (divides), `tensor_scale` (multiplies) and `shape`.
    """

    name: str
    shape: tuple[int, ...]
    encoding: Encoding
    parts: Mapping[str, str]
