"""A logical tensor that is stored as several: values, scales and what else its format needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

Kind = Literal["fp8", "packed_integer", "mxfp4", "nvfp4"]


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
        if role == "scale":
            return self.block[0] if self.block else 0
        return {"values": 1, "zero_point": 32 // self.bits}.get(role, 0)

    def describe(self) -> dict[str, Any]:
        """The parameters as plain JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class Encoded:
    """A quantised tensor as it is meant.

    Attributes:
        name: the name an unquantised checkpoint gives it.
        shape: its shape once decoded.
        parts: stored tensors by role: `values`, `scale` and, where the format has them, `zero_point`,
            `global_scale` and `shape`.
    """

    name: str
    shape: tuple[int, ...]
    encoding: Encoding
    parts: Mapping[str, str]
