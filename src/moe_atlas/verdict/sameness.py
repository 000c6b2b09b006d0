"""When two checkpoints are the same: equal weights, however they are stored, under an equal configuration."""

from __future__ import annotations

from moe_atlas.views.receipt import ReceiptView
from moe_atlas.views.registered import CheckpointFacts


def weights_identity(checkpoint: CheckpointFacts) -> str | None:
    """What names a checkpoint's weights, however they are stored; None where the receipt does not say."""
    return checkpoint.values_digest or checkpoint.digest


def model_identity(checkpoint: CheckpointFacts) -> str | None:
    """Weights and config: the same weights under another config are another model, and another reference."""
    weights = weights_identity(checkpoint)
    return None if weights is None else f"{weights}:{checkpoint.config_sha256}"


def replayed_alike(receipt: ReceiptView) -> bool:
    """Whether an audit found everything that it replays identical; other tensors may differ, or be missing."""
    found = receipt.identity
    return found is not None and (found.identical_checkpoints is True or found.identical_replayed is True)


def nothing_tuned(receipt: ReceiptView) -> bool:
    """Whether this pair was not tuned: the audit found both alike, or their digests are equal."""
    if replayed_alike(receipt):
        return True
    base, tuned = (model_identity(receipt.checkpoint(side)) for side in ("base", "tuned"))
    return base is not None and base == tuned
