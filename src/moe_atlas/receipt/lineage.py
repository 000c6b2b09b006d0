"""Compare a checkpoint with an earlier receipt of its run: does a resumed run hold the same values?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from moe_atlas.errors import UsageError
from moe_atlas.receipt.verify import intact_receipt
from moe_atlas.text import shown
from moe_atlas.views.receipt import ReceiptView
from moe_atlas.views.registered import ClassDigest

NO_CLASSES = "the earlier receipt holds no digests per tensor class"


def previous_facts(path: Path) -> dict[str, Any]:
    """Return the facts about its latest checkpoint in an earlier receipt of the run.

    Raises:
        AtlasError: for any fault of the receipt; a receipt that does not verify is no reference. ``E_KIND``
            (UsageError) for a look, which belongs to no run.
    """
    receipt = ReceiptView(intact_receipt(path))
    if receipt.is_look:
        problem = "expected the receipt of an audit or a baseline, found a look"
        raise UsageError("E_KIND", shown(str(path)), problem, "give an earlier receipt of the run")
    checkpoint = receipt.checkpoint("base" if receipt.is_baseline else "tuned")
    return {
        "receipt_sha256": receipt.evidence.receipt_sha256,
        "kind": receipt.kind,
        "verdict": receipt.verdict,
        "checkpoint": checkpoint.digest,
        "classes": None if checkpoint.classes is None else [row.facts for row in checkpoint.classes],
    }


def against_previous(previous: Mapping[str, Any], checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``parent.receipt`` of a receipt: the earlier receipt, and the tensors that differ from it.

    Args:
        previous: the facts of `previous_facts`.
        checkpoint: the receipt's own ``checkpoints.base``.

    Returns:
        Digest, kind, verdict and checkpoint of the earlier receipt; ``classes``, one row for each tensor class; and
        ``same_tensors``, whether every tensor holds the same values in any dtype and layout. If the earlier receipt
        has no digests of classes, ``classes`` is null with a reason, and ``same_tensors`` compares the stored bytes.
    """
    facts = {key: previous[key] for key in ("receipt_sha256", "kind", "verdict", "checkpoint")}
    if previous["classes"] is None:
        same = previous["checkpoint"] == checkpoint["digest"]
        return facts | {"same_tensors": same, "classes": None, "reason": NO_CLASSES}
    classes = same_classes(previous["classes"], checkpoint["classes"])
    return facts | {"same_tensors": all(row["same"] for row in classes), "classes": classes}


def same_classes(
    earlier: Sequence[Mapping[str, Any]], now: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Compare the rows of two checkpoints, class by class.

    Returns:
        Objects with ``class``, ``same`` and ``changed_layers`` (null: outside the layers).
    """
    before, after = (
        {(row.kind, row.layer): (row.tensors, row.values) for row in map(ClassDigest, rows)}
        for rows in (earlier, now)
    )
    places = sorted({*before, *after}, key=lambda place: (place[0], -1 if place[1] is None else place[1]))
    changed: dict[str, list[int | None]] = {kind: [] for kind, _ in places}
    for place in places:
        if before.get(place) != after.get(place):
            changed[place[0]].append(place[1])
    return [{"class": kind, "same": not layers, "changed_layers": layers} for kind, layers in changed.items()]
