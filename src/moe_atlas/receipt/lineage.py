"""What a receipt says of the one before it: the run's state at this point, and whether a resume has the same values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from moe_atlas.receipt.verify import intact_receipt

NO_CLASSES = "the earlier receipt holds no digests per tensor class"


def previous_facts(path: Path) -> dict[str, Any]:
    """Return what an earlier receipt of the run says of its latest checkpoint.

    Raises:
        AtlasError: whatever is wrong with the receipt; one that does not verify is no reference.
    """
    receipt = intact_receipt(path)
    checkpoint = receipt["checkpoints"]["tuned" if receipt["kind"] == "audit" else "base"]
    return {
        "receipt_sha256": receipt["evidence"]["receipt_sha256"],
        "kind": receipt["kind"],
        "verdict": receipt["verdict"],
        "checkpoint": checkpoint["digest"],
        "classes": checkpoint.get("classes"),
    }


def against_previous(previous: Mapping[str, Any], checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Return the receipt's ``parent.receipt``: the earlier receipt, and which tensors are not what they were.

    Args:
        previous: the facts of `previous_facts`.
        checkpoint: the receipt's own ``checkpoints.base``.

    Returns:
        The earlier receipt's digest, kind, verdict and checkpoint, and ``same_tensors`` (every tensor holds the same
        values, whatever dtype and layout it is stored in), with one row for each tensor class, or null and a reason
        where the earlier receipt cannot tell; then ``same_tensors`` is whether the stored tensors are the same.
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
        Objects of ``class``, ``same`` and ``changed_layers`` (null stands for outside the layers).
    """
    before, after = (
        {(row["class"], row["layer"]): (row["tensors"], row["values"]) for row in rows}
        for rows in (earlier, now)
    )
    places = sorted({*before, *after}, key=lambda place: (place[0], -1 if place[1] is None else place[1]))
    changed: dict[str, list[int | None]] = {kind: [] for kind, _ in places}
    for place in places:
        if before.get(place) != after.get(place):
            changed[place[0]].append(place[1])
    return [{"class": kind, "same": not layers, "changed_layers": layers} for kind, layers in changed.items()]
