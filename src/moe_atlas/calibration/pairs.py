"""Read pairs from receipts: for each gate, the bounds that a budget is compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_atlas.calibration.healthy import Origin, origin_of
from moe_atlas.channels import GATED
from moe_atlas.errors import InputRefused, UsageError
from moe_atlas.probes.settings.protected_layers import mid_band, ranges
from moe_atlas.receipt.verify import intact_receipt
from moe_atlas.receipt.window_file import recorded_windows
from moe_atlas.text import shown
from moe_atlas.views.measured import DomainRow, Interval, LayerView, no_interval
from moe_atlas.views.receipt import ReceiptView
from moe_atlas.views.registered import Policy

F64 = NDArray[np.float64]


@dataclass(frozen=True)
class Pair:
    """An audited pair.

    Attributes:
        name: the receipt's path.
        receipt_sha256: the receipt's digest.
        setting: the facts on which budgets depend; all pairs of a calibration must agree in all of them.
        bounds: per budget, the largest upper bound over the protected layers or base domains, which must be below the
            budget for a pass. None with the reason in `missing`.
        certain: per budget, the largest lower bound, which must be above the budget for a FAIL.
        missing: per budget, why its bound is None.
        floors: per budget, the largest noise floor over the protected layers; empty if none was measured.
        policy: the registered policy.
        documents: the fewest documents of a base domain.
        experts: the fewest experts of a protected layer.
        origin: the origin of the pair.
        guarded: the protected layers as a probe file spells them; None if ``all`` and ``mid-band`` are the same layers.
    """

    name: str
    receipt_sha256: str
    setting: Mapping[str, Any]
    bounds: Mapping[str, float | None]
    certain: Mapping[str, float | None]
    missing: Mapping[str, str]
    floors: Mapping[str, float]
    policy: Policy
    documents: int
    experts: int
    origin: Origin
    guarded: str | list[int | str] | None = None


def receipt_paths(given: Sequence[Path]) -> list[Path]:
    """Return the given receipts; a folder stands for every `.json` file in it.

    Raises:
        UsageError: ``E_NO_RECEIPT`` for a folder without a `.json` file.
    """
    found: list[Path] = []
    for path in given:
        inside = sorted(path.glob("*.json")) if path.is_dir() else [path]
        if not inside:
            raise UsageError("E_NO_RECEIPT", shown(str(path)), "is a folder without a receipt (*.json)")
        found += inside
    return found


def read_pair(path: Path) -> Pair:
    """Verify a receipt against its window data and read its pair.

    Raises:
        AtlasError: every refusal of `intact_receipt`; ``E_KIND`` (UsageError) if the receipt is no audit.
    """
    body = intact_receipt(path)
    return pair_of(body, recorded_windows(path, body), str(path))


def pair_of(body: Mapping[str, Any], windows: Mapping[str, NDArray[Any]], name: str) -> Pair:
    """Return the pair of a receipt that was verified already.

    Raises:
        UsageError: ``E_KIND`` if the receipt is no audit.
        InputRefused: ``E_CALIBRATION`` if it protects no layer or has no base domain.
    """
    receipt = ReceiptView(body)
    if receipt.kind != "audit":
        raise UsageError("E_KIND", shown(name), f"expected the receipt of an audit, found a {receipt.kind}")
    layers = [layer for layer in receipt.layers if layer.protected]
    base = receipt.domains_of("base")
    if not layers or not base:
        raise InputRefused("E_CALIBRATION", shown(name), "protects no layer or has no base domain")
    highs = _intervals(layers, base)
    bounds = {key: _largest([one.high for one in found if _defined(one)]) for key, found in highs.items()}
    certain = {
        key: _largest([one.simultaneous_low for one in found if _defined(one)])
        for key, found in highs.items()
    }
    certain |= {key: _largest([one.low for one in highs[key] if _defined(one)]) for key in ("nll", "kl")}
    bounds["tau"], certain["tau"] = _loads(receipt)
    bounds["document_nll"] = certain["document_nll"] = _worst_document(receipt, windows)
    missing = {key: _reason(found) for key, found in highs.items() if bounds[key] is None}
    return Pair(
        name=name,
        receipt_sha256=receipt.evidence.receipt_sha256,
        setting=_setting(receipt, layers),
        bounds=bounds,
        certain=certain,
        missing=missing,
        floors=_floors(receipt, layers),
        policy=receipt.probe.policy,
        documents=min(row.documents for row in base),
        experts=min(layer.experts for layer in layers),
        guarded=guarded(receipt.probe.protected_layers, [layer.layer for layer in receipt.layers]),
        origin=origin_of(body),
    )


def _intervals(layers: Sequence[LayerView], base: Sequence[DomainRow]) -> dict[str, list[Interval]]:
    """Return the intervals that each budget is compared with; one that is missing has no numbers."""
    found: dict[str, list[Interval | None]] = {
        channel.budget: [layer.channel(channel.key) for layer in layers] for channel in GATED
    }
    found |= {"nll": [row.nll_increase for row in base], "kl": [row.kl for row in base]}
    return {key: [one or no_interval() for one in some] for key, some in found.items()}


def guarded(protected: Sequence[int], routed: Sequence[int]) -> str | list[int | str] | None:
    """Return the protected layers as a probe file spells them; None if ``all`` and ``mid-band`` are the same layers."""
    chosen, every = list(protected), list(routed)
    if chosen == mid_band(every):
        return None if chosen == every else "mid-band"
    return "all" if chosen == every else ranges(chosen)


def require_one_setting(pairs: Sequence[Pair]) -> None:
    """Refuse pairs of different families, k, evaluation or probe sets: a budget fits only one of each.

    Raises:
        UsageError: ``E_MIXTURE``, naming the first difference; ``E_REPEATED`` for a receipt given twice.
    """
    first = pairs[0]
    for other in pairs[1:]:
        for key, value in first.setting.items():
            if other.setting[key] != value:
                problem = f"has {key} {other.setting[key]!r}, but {first.name} has {value!r}"
                hint = "budgets fit one family, k, evaluation and probe set: calibrate each by itself"
                raise UsageError("E_MIXTURE", shown(other.name), shown(problem, 400), hint)
    digests = [pair.receipt_sha256 for pair in pairs]
    for number, pair in enumerate(pairs):
        if pair.receipt_sha256 in digests[:number]:
            raise UsageError("E_REPEATED", shown(pair.name), "is the same receipt as another one given")


def require_one_fate(healthy: Sequence[Pair], damaged: Sequence[Pair]) -> None:
    """Refuse a tuned checkpoint that is given as healthy and as damaged.

    Raises:
        UsageError: ``E_REPEATED``.
    """
    known = {pair.origin.tuned: pair.name for pair in healthy}
    for pair in damaged:
        if other := known.get(pair.origin.tuned):
            problem = f"holds the same tuned checkpoint as {other}, which is given as healthy"
            raise UsageError("E_REPEATED", shown(pair.name), shown(problem, 400))


def _setting(receipt: ReceiptView, layers: Sequence[LayerView]) -> dict[str, Any]:
    probe = receipt.probe
    refinement = probe.policy.rewrite.refinement
    return {
        "family": receipt.checkpoint("base").family,
        "top_k": sorted({layer.top_k for layer in layers}),
        "experts": sorted({layer.experts for layer in layers}),
        "evaluation": probe.evaluation.facts,
        "windows": probe.windows.facts,
        "protected_layers": list(probe.protected_layers),
        "domains": [[row.name, row.role, row.documents, row.windows] for row in receipt.domains],
        "confidence": probe.policy.confidence,
        "refinement mu": None if refinement is None else list(refinement.mu),
    }


def _defined(interval: Interval) -> bool:
    """Return whether the architecture defines the quantity."""
    return not interval.not_applicable


def _largest(bounds: Sequence[float | None]) -> float | None:
    """Return the largest bound; None if no layer defines the quantity or if a layer does not bound it."""
    known = [float(bound) for bound in bounds if bound is not None]
    return max(known) if known and len(known) == len(bounds) else None


def _reason(intervals: Sequence[Interval]) -> str:
    reasons = [interval.reason for interval in intervals if interval.reason]
    return reasons[0] if reasons else "a layer has no upper bound"


def _loads(receipt: ReceiptView) -> tuple[float | None, float | None]:
    """Return the bounds of the load that tau must cover (Eq. 32): tau minus the refinement margin."""
    refinement = receipt.probe.policy.rewrite.refinement
    margin = receipt.margins.refinement_margin if receipt.margins else None
    if refinement is None or margin is None:
        return None, None
    high, low = (None if end is None else refinement.tau - end for end in (margin.low, margin.high))
    return high, low


def _worst_document(receipt: ReceiptView, windows: Mapping[str, NDArray[Any]]) -> float | None:
    """Return the largest mean NLL increase of a document of a base domain; None if a window is not finite."""
    increase_W = windows["output.nll_tuned"] - windows["output.nll_base"]
    roles = np.array([row.role for row in receipt.domains])
    base_W = roles[windows["windows.domain"]] == "base"
    keys = np.stack([windows["windows.domain"], windows["windows.document"]])[:, base_W]
    _, document_W = np.unique(keys, axis=1, return_inverse=True)
    means_C = np.bincount(document_W.ravel(), increase_W[base_W]) / np.bincount(document_W.ravel())
    return float(means_C.max()) if np.isfinite(means_C).all() else None


def _floors(receipt: ReceiptView, layers: Sequence[LayerView]) -> dict[str, float]:
    floor = receipt.noise_floor
    if floor is None:
        return {}
    numbers = {layer.layer for layer in layers}
    rows = [row for row in floor.layers if row.layer in numbers]
    out = {}
    for channel in GATED:
        values = [value for row in rows if (value := row.number_at(channel.key)) is not None]
        if values:
            out[channel.budget] = float(max(values))
    return out | {"nll": float(floor.largest_nll_change)}
