"""What a receipt says of the one before it: the run's state at this point, and whether a resume is the same bytes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moe_atlas.receipt.verify import intact_receipt
from moe_atlas.weights.class_digests import same_classes

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
        The earlier receipt's digest, kind, verdict and checkpoint, and ``same_tensors`` (all bytes are the same),
        with one row for each tensor class, or null and a reason where the earlier receipt cannot tell.
    """
    facts = {key: previous[key] for key in ("receipt_sha256", "kind", "verdict", "checkpoint")}
    facts["same_tensors"] = previous["checkpoint"] == checkpoint["digest"]
    if previous["classes"] is None:
        return facts | {"classes": None, "reason": NO_CLASSES}
    return facts | {"classes": same_classes(previous["classes"], checkpoint["classes"])}
