"""Refuse receipts that may not set budgets: failed, untuned, repeated, or of the same run. Torch-free."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from moe_atlas.errors import UsageError
from moe_atlas.text import shown
from moe_atlas.verdict.sameness import nothing_tuned, weights_identity
from moe_atlas.views.receipt import ReceiptView

ACCEPTABLE = {
    "failed": "receipts whose verdict is FAIL, under budgets that were too tight",
    "one-run": "checkpoints of one training run, which are no independent tunes",
}
"""Names for `--accept`; the policy file records the accepted names."""

_STEP = re.compile(r"(.*?)(?:checkpoint|ckpt|global_?step|step|iter|iteration|epoch)[-_]?\d+", re.IGNORECASE)


@dataclass(frozen=True)
class Origin:
    """The origin of a receipt's pair.

    Attributes:
        verdict: the receipt's verdict.
        tuned: identity of the tuned weights, however they are stored.
        windows: digest of the window data.
        untuned: whether the checkpoints hold the same values.
        run: name of the training run, from its ledger or from the folder of its numbered checkpoints; None without
            both.
    """

    verdict: str
    tuned: str
    windows: str
    untuned: bool
    run: str | None


def origin_of(receipt: Mapping[str, Any]) -> Origin:
    """Return the origin of an audit's receipt."""
    view = ReceiptView(receipt)
    return Origin(
        verdict=str(view.verdict),
        tuned=str(weights_identity(view.checkpoint("tuned"))),
        windows=view.evidence.sha256,
        untuned=nothing_tuned(view),
        run=_run(view),
    )


def _run(receipt: ReceiptView) -> str | None:
    head = receipt.parent.ledger if receipt.parent else None
    if head:
        return f"run {head.run}"
    path = PurePath(receipt.checkpoint("tuned").stored_at or "")
    found = _STEP.fullmatch(path.name)
    return None if found is None else f"the run in {path.parent / found[1]}"


def require_healthy(origins: Sequence[tuple[str, Origin]], accepted: Collection[str] = ()) -> None:
    """Refuse receipts that are no evidence about the next healthy tune.

    Args:
        origins: the name and origin of each receipt.
        accepted: names out of `ACCEPTABLE`.

    Raises:
        UsageError: ``E_NOT_HEALTHY`` for a verdict of FAIL or a pair of equal values; ``E_REPEATED`` for the same tuned
            checkpoint in two receipts; ``E_ONE_RUN`` for two checkpoints of one training run.
    """
    seen: dict[str, str] = {}
    for name, origin in origins:
        _require_tune(name, origin, accepted)
        for evidence in (origin.tuned, origin.windows):
            if other := seen.get(evidence):
                problem = f"holds the same tuned checkpoint as {other}"
                raise UsageError(
                    "E_REPEATED", shown(name), shown(problem, 400), "give one receipt for each tune"
                )
        if origin.run is not None and "one-run" not in accepted and (other := seen.get(origin.run)):
            problem = f"is of {origin.run}, as is {other}: checkpoints of one run resemble each other"
            step = "give one receipt for each run, or count them as tunes of their own with --accept one-run"
            raise UsageError("E_ONE_RUN", shown(name), shown(problem, 400), step)
        seen |= dict.fromkeys((origin.tuned, origin.windows, origin.run or ""), name)


def _require_tune(name: str, origin: Origin, accepted: Collection[str]) -> None:
    if origin.untuned:
        problem = "nothing was tuned: base and tuned hold the same values, so it would lower every budget"
        raise UsageError("E_NOT_HEALTHY", shown(name), problem, "leave it out")
    if origin.verdict == "fail" and "failed" not in accepted:
        step = (
            "give it with --damaged; if only its budgets were too tight, audit it with budgets null "
            "or accept it with --accept failed"
        )
        raise UsageError("E_NOT_HEALTHY", shown(name), "its verdict is FAIL", step)
