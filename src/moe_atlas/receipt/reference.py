"""Facts that a new receipt takes from earlier ones: the handoff reference of a baseline, and registered attempts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from moe_atlas.errors import UsageError
from moe_atlas.receipt.verify import intact_receipt
from moe_atlas.verdict.attempts import attempt_facts as facts_of_attempt
from moe_atlas.views.measured import LayerView, NoiseFloor
from moe_atlas.views.receipt import ReceiptView

REFERENCE_KEYS = ("overlap", "min_share", "smooth_overlap", "smooth_tail", "smooth_tail_published")


def reference_facts(path: Path | None) -> dict[str, Any] | None:
    """Return the handoff reference (Eq. 25, 31) in a baseline receipt: point values of each layer.

    Args:
        path: a receipt of kind ``baseline``; None: the reference is the base of the audit.

    Raises:
        AtlasError: for any fault of the receipt; ``E_KIND`` (UsageError) if it is no baseline.
    """
    if path is None:
        return None
    receipt = ReceiptView(intact_receipt(path))
    if not receipt.is_baseline:
        raise UsageError(
            "E_KIND",
            str(path),
            f"expected a receipt of kind baseline, found kind {receipt.kind}",
            "see `atlas baseline`",
        )
    return {
        "receipt_sha256": receipt.evidence.receipt_sha256,
        "digest": receipt.checkpoint("base").digest,
        "layers": [
            {"layer": layer.layer} | {key: _estimate(layer, key) for key in REFERENCE_KEYS}
            for layer in receipt.layers
        ],
    }


def stored_floor(path: Path | None) -> NoiseFloor | None:
    """Return the noise floor in a baseline receipt; None if it has none.

    Raises:
        AtlasError: as `reference_facts`, which reads the same file.
    """
    return None if path is None else ReceiptView(intact_receipt(path)).noise_floor


def attempt_facts(path: Path) -> dict[str, Any]:
    """Return what an attempt's audit receipt contributes to the third predicate.

    Raises:
        AtlasError: for any fault of the receipt; ``E_KIND`` (UsageError) if it is no audit, ``E_ATTEMPT`` if its
            base and tuned checkpoints hold the same values.
    """
    receipt = ReceiptView(intact_receipt(path))
    if receipt.kind != "audit":
        raise UsageError("E_KIND", str(path), f"expected the receipt of an audit, found a {receipt.kind}")
    facts = facts_of_attempt(receipt)
    if facts["nothing_tuned"]:
        problem = (
            "expected the audit of a tune, found base and tuned of the same values: nothing was attempted"
        )
        raise UsageError("E_ATTEMPT", str(path), problem)
    return facts


def _estimate(layer: LayerView, key: str) -> float | None:
    interval = layer.base and layer.base.interval(key)
    return interval.estimate if interval else None
