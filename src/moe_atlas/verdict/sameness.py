"""When two checkpoints are the same: equal weights, however they are stored, under an equal configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Receipt = Mapping[str, Any]


def weights_identity(checkpoint: Receipt) -> str | None:
    """What names a checkpoint's weights, however they are stored; None where the receipt does not say."""
    found = checkpoint.get("values_digest") or checkpoint.get("digest")
    return None if found is None else str(found)


def model_identity(checkpoint: Receipt) -> str | None:
    """Weights and config: the same weights under another config are another model, and another reference."""
    weights = weights_identity(checkpoint)
    return None if weights is None else f"{weights}:{checkpoint.get('config_sha256')}"


def replayed_alike(receipt: Receipt) -> bool:
    """Whether an audit found everything that it replays identical; other tensors may differ, or be missing."""
    identity = receipt.get("identity") or {}
    return any(identity.get(key) is True for key in ("identical_checkpoints", "identical_replayed"))


def nothing_tuned(receipt: Receipt) -> bool:
    """Whether this pair was not tuned: the audit found both alike, or their digests are equal."""
    if replayed_alike(receipt):
        return True
    checkpoints = receipt.get("checkpoints") or {}
    base, tuned = (model_identity(checkpoints.get(side) or {}) for side in ("base", "tuned"))
    return base is not None and base == tuned
