"""Ladders of noise: one object of a base at a time, at rising doses, until a base domain is certainly damaged."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from moe_atlas.auditing.copies.noise import OBJECTS, NoisyCopy
from moe_atlas.auditing.cost.machine import full_precision, memory_errors_named, threads
from moe_atlas.auditing.processes.group import Group
from moe_atlas.auditing.run import measure_copy, prepare_copy
from moe_atlas.base_alone.base import OpenBase
from moe_atlas.options import AuditOptions, Progress

DOSES = (0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28)
"""Doubled from rung to rung; a 4-bit copy lies near 0.1."""


@dataclass(frozen=True)
class Rung:
    """What one noisy copy of a base does.

    Attributes:
        object: the object that got noise.
        dose: standard deviation of the noise as a share of each tensor's RMS.
        measured: `layers` and `domains`, as in a receipt's `yardstick`.
    """

    object: str
    dose: float
    measured: dict[str, Any]


@dataclass(frozen=True)
class RungProgress:
    """A display that names the rung before each phase of its audit."""

    display: Progress
    rung: str

    def phase(self, name: str, steps: int) -> None:
        """Show the start of a phase of this rung."""
        self.display.phase(f"{self.rung}: {name}", steps)

    def step(self, detail: str, bytes_read: int) -> None:
        """Show the end of one step."""
        self.display.step(detail, bytes_read)


def climb(base: OpenBase, margin: float, options: AuditOptions, doses: Sequence[float] = DOSES) -> list[Rung]:
    """Audit a base against its noisy copies, object by object, from the smallest dose upwards.

    An object's ladder ends with the first dose at which a base domain certainly loses more than the margin.

    Args:
        base: the opened base.
        margin: mean rise of a base domain's NLL, nats per token.
        options: options of how the audits run.
        doses: the doses, ascending.

    Raises:
        AtlasError: for every error that a user can cause.
    """
    with memory_errors_named(), threads(options.threads), full_precision():
        rungs = [rung for name in OBJECTS for rung in _ladder(base, name, margin, options, doses)]
    base.folder.require_unchanged()
    return rungs


def _ladder(
    base: OpenBase, name: str, margin: float, options: AuditOptions, doses: Sequence[float]
) -> Iterator[Rung]:
    for number, dose in enumerate(doses, 1):
        said = f"noise on {name}, dose {dose:g}, rung {number} of at most {len(doses)}"
        shown = replace(options, progress=RungProgress(options.progress, said))
        copy = NoisyCopy(name, dose)
        walk = prepare_copy(base.checkpoint, base.spec, base.probes, shown, Group(), copy)
        measured = measure_copy(walk, base.probes)
        assert measured is not None, "a single process leads"
        yield Rung(name, dose, measured)
        if certainly_damaged(measured, margin):
            return


def certainly_damaged(measured: dict[str, Any], margin: float) -> bool:
    """Return whether the lower bound of a base domain's rise of NLL lies above the margin."""
    lows = [row["nll_increase"]["low"] for row in measured["domains"] if row["role"] == "base"]
    return any(low is not None and low > margin for low in lows)
