"""The weights ledger: for every tensor of the pair, whether and how much it changed, and whether it is intact.

The ledger catches faults that behaviour shows late or never: a tune that changed nothing, a router that should have
stayed frozen, a converter that dropped experts.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from moe_atlas.errors import InputRefused
from moe_atlas.probes.settings.policy import TENSOR_CLASSES
from moe_atlas.weights.comparison import TensorChange, relative


@dataclass
class WeightsLedger:
    """The rows of the ledger in reading order.

    Attributes:
        rows: one row per logical tensor; relabelled experts and router rows are compared with their match.
        as_stored: additional rows that compare relabelled tensors under the same index.
        changed_layers: layers with a tensor whose values changed; None stands for tensors outside the layers.
    """

    rows: list[TensorChange] = field(default_factory=list)
    as_stored: list[TensorChange] = field(default_factory=list)
    changed_layers: set[int | None] = field(default_factory=set)

    def enter(self, change: TensorChange, *, as_stored: bool = False) -> TensorChange:
        """Add a row and return it.

        Raises:
            InputRefused: E_NONFINITE if the base holds a NaN or an infinity. In the tuned checkpoint this is a FAIL; a
                base with such values cannot serve for comparison.
        """
        if change.nonfinite[0]:
            raise InputRefused(
                "E_NONFINITE",
                f"base checkpoint, tensor {change.name!r}",
                f"expected finite values, found {change.nonfinite[0]} NaN or infinite of {change.elements}",
                "a base with non-finite weights cannot anchor an audit; audit against an intact one",
            )
        (self.as_stored if as_stored else self.rows).append(change)
        if not change.identical and not as_stored:
            self.changed_layers.add(change.layer)
        return change

    def values(self, number: int) -> dict[str, str | None]:
        """Return value digests of the tensors of checkpoint `number` (0 base, 1 tuned), by its canonical names."""
        # For relabelled tensors, the rows `as_stored` have the tuned checkpoint's own names; they come last and win.
        return {row.name: row.values[number] for row in (*self.rows, *(self.as_stored if number else ()))}

    def facts(self) -> dict[str, Any]:
        """Return the receipt's `weights` block."""
        facts: dict[str, Any] = {"classes": summarise(self.rows), "tensors": [row.row() for row in self.rows]}
        if self.as_stored:
            facts["as_stored"] = {
                "classes": summarise(self.as_stored),
                "tensors": [row.row() for row in self.as_stored],
            }
        return facts

    def parameter_distance(self) -> float | None:
        """Return ‖θ1−θ0‖ / ‖θ0‖ over all tensors, the undifferentiated control."""
        return relative(sum(r.base_square for r in self.rows), sum(r.change_square for r in self.rows))


def summarise(rows: list[TensorChange]) -> dict[str, Any]:
    """Return per class the counts of tensors, identical tensors, zeros and non-finite values, and the change."""
    return {kind: _class_row([r for r in rows if r.kind == kind]) for kind in TENSOR_CLASSES}


def _class_row(rows: list[TensorChange]) -> dict[str, Any]:
    compared = [row for row in rows if row.identical is not None]
    tuned = bool(compared)
    identical = sum(bool(row.identical) for row in compared)
    square0, square1 = sum(r.base_square for r in rows), sum(r.change_square for r in compared)
    return {
        "tensors": len(rows),
        "identical": identical if tuned else None,
        "changed": len(compared) - identical if tuned else None,
        "relative_change": relative(square0, square1) if tuned else None,
        "zeros": _both(rows, "zeros"),
        "nonfinite": _both(rows, "nonfinite"),
        "all_zero_tensors": {
            "base": sum(r.zeros[0] == r.elements for r in rows),
            "tuned": sum(r.zeros[1] == r.elements for r in rows) if tuned else None,
        },
    }


def _both(rows: list[TensorChange], key: str) -> dict[str, int | None]:
    pairs = [getattr(row, key) for row in rows]
    tuned = [pair[1] for pair in pairs if pair[1] is not None]
    return {"base": sum(pair[0] for pair in pairs), "tuned": sum(tuned) if tuned else None}
