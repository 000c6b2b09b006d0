"""Measure a pair for a look: draw the documents, estimate the time where it may be long, replay."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from moe_atlas.auditing.cost.machine import threads
from moe_atlas.auditing.opening.sources import open_pair
from moe_atlas.auditing.plan import plan
from moe_atlas.auditing.run import Arrays, Facts, measure
from moe_atlas.checkpoint.source import TensorSource
from moe_atlas.look.probe import look_probes
from moe_atlas.look.request import Request
from moe_atlas.options import AuditOptions
from moe_atlas.probes.registration import ProbeSet
from moe_atlas.views.receipt import LOOK

SHORT_BYTES = 1 << 30
"""Bytes of both checkpoints below which a look takes no minutes, so that trials of the machine are not worth it."""
LONG_SECONDS = 120.0

Announce = Callable[[dict[str, Any]], None]


def look(
    base: Path, tuned: Path, request: Request, options: AuditOptions, announce: Announce | None = None
) -> tuple[Facts, Arrays]:
    """Measure a pair on documents that nobody registered.

    Args:
        base: the base checkpoint.
        tuned: the tuned checkpoint.
        request: which documents, and by which tokenizer.
        options: options of how the audit runs.
        announce: called with the estimate of `plan` if the look will be long.

    Returns:
        The facts of a receipt of kind ``look``, and the window arrays.

    Raises:
        AtlasError: for every error that a user can cause; nothing is written.
    """
    pair, _ = open_pair(base, tuned, options)
    with look_probes(pair[0], request) as (probes, drawn):
        options = replace(options, yardstick=True)
        if announce is not None:
            _estimate(pair, probes, options, announce)
        facts, arrays = measure(pair[0], pair[1], probes, options)
    return facts | {"kind": LOOK, "look": drawn}, arrays


def _estimate(
    pair: Sequence[TensorSource], probes: ProbeSet, options: AuditOptions, announce: Announce
) -> None:
    """Announce what a long look will cost."""
    stored = sum(tensor.nbytes for checkpoint in pair for tensor in checkpoint.tensors.values())
    if stored < SHORT_BYTES:
        return
    with threads(options.threads):
        found = plan(pair[0], pair[1], probes, options)
    if found["seconds"]["total"] + found["yardstick"]["seconds"]["total"] > LONG_SECONDS:
        announce(found)
