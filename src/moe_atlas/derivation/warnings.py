"""Warnings: conditions that a reader should know before trusting a number. They do not change the verdict."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from moe_atlas.channels import BUDGETS, DRIFTS
from moe_atlas.derivation.unreached_warnings import unseen_warnings
from moe_atlas.derivation.unreplayed_warnings import unmeasured
from moe_atlas.probes.lock import left_out_sentence, overlap_sentences
from moe_atlas.probes.settings.cannot_fail import Measured, cannot_fail, loose_tail_guard
from moe_atlas.probes.settings.ceilings import FLOOR_FACTOR
from moe_atlas.text import ranges
from moe_atlas.verdict.sameness import nothing_tuned
from moe_atlas.verdict.success import base_reaches
from moe_atlas.views.measured import NoiseFloor
from moe_atlas.views.receipt import ReceiptView

NEVER_ZERO = ("routed_expert", "shared_expert", "dense_mlp", "attention", "embedding", "head")

OF_A_POLICY = ("cannot-fail", "loose-tail-guard", "kl-not-gated", "budgets-set-for")
"""Codes of what to know of a registered policy; a look has none."""


def derive_warnings(receipt: ReceiptView) -> list[dict[str, Any]]:
    """Return the receipt's warnings: objects with a stable ``code`` and a one-line ``message``."""
    found = _warnings(receipt)
    if not receipt.is_look:
        return found
    return [one for one in found if one["code"] not in OF_A_POLICY]


def _warnings(receipt: ReceiptView) -> list[dict[str, Any]]:
    return [
        *_adapter(receipt),
        *_nothing_tuned(receipt),
        *_cannot_fail(receipt),
        *unmeasured(receipt),
        *_smoothing(receipt),
        *_floors(receipt),
        *_zeros(receipt),
        *_tail_guard(receipt),
        *_divergence(receipt),
        *_left_out(receipt),
        *_set_for(receipt),
        *_formats(receipt),
        *unseen_warnings(receipt),
        *_recast(receipt),
        *_resumed(receipt),
        *_overlaps(receipt),
        *_accepted(receipt),
    ]


def _adapter(receipt: ReceiptView) -> list[dict[str, Any]]:
    """An adapter that changes nothing, or that names another base."""
    adapter, out = receipt.checkpoint("tuned").adapter, []
    if adapter is not None and adapter.changes_nothing:
        message = "this adapter changes nothing: every factor B is zero, as it is before the first step of a training"
        out.append({"code": "adapter-zero", "message": message})
    if adapter is not None and adapter.other_base:
        message = (
            f"the adapter names {adapter.named_base} as its base, and the audit read it on a base in a folder of "
            "another name: the numbers hold only if both hold the same weights"
        )
        out.append({"code": "adapter-base", "message": message})
    return out


def _nothing_tuned(receipt: ReceiptView) -> list[dict[str, Any]]:
    """Warn that base and tuned hold the same values: every difference is exactly 0 and says nothing about a tune."""
    if receipt.is_baseline or not nothing_tuned(receipt):
        return []
    message = (
        "nothing was tuned: base and tuned hold the same values in all that is replayed, so every difference is "
        "exactly 0"
    )
    return [{"code": "nothing-tuned", "message": message}]


def _cannot_fail(receipt: ReceiptView) -> list[dict[str, Any]]:
    """Warn about each part of the policy that cannot fail."""
    protected = set(receipt.probe.protected_layers)
    rows = [(row.layer, row.experts, row.top_k) for row in receipt.layers]
    measured = Measured(
        routed=[layer for layer, _, _ in rows],
        layers=[(experts, top_k) for layer, experts, top_k in rows if layer in protected],
        met=base_reaches(receipt) if receipt.kind == "audit" else [],
    )
    passed = receipt.verdict == "pass"
    said = "PASS under a policy that could not have failed" if passed else "a part of the policy cannot fail"
    return [
        {"code": "cannot-fail", "message": f"{said}: {line}"}
        for line in cannot_fail(receipt.probe.facts, measured)
    ]


def _smoothing(receipt: ReceiptView) -> list[dict[str, Any]]:
    """Warn about an occupancy temperature so low that the smooth tail cannot fall."""
    smooth = receipt.probe.policy.rewrite.smooth
    experts = max((layer.experts for layer in receipt.layers), default=0)
    if smooth is None or experts < 2:
        return []
    needed = 20.0 * experts * math.log(experts)
    if smooth.occupancy >= needed:
        return []
    message = (
        f"the occupancy temperature {smooth.occupancy:g} is below 20 E ln E = {needed:.0f}: "
        "the smooth tail cannot fall far below a balanced share"
    )
    return [{"code": "smooth-occupancy", "message": message}]


def _floors(receipt: ReceiptView) -> list[dict[str, Any]]:
    """Warn about budgets below ten times the measured noise floor of a protected layer."""
    budgets = receipt.probe.policy.rewrite.facts
    worst = within_floor(receipt.noise_floor, budgets, receipt.probe.protected_layers)
    out = []
    for name, floor in worst.items():
        budget = f"the budget of {BUDGETS[name].key}, {budgets[name]:g}"
        message = f"{budget}, is below ten times its noise floor {floor:.3g}"
        out.append({"code": "noise-floor", "message": message})
    return out


def within_floor(
    floor: NoiseFloor | None, budgets: Mapping[str, Any], protected: Sequence[int]
) -> dict[str, float]:
    """Return the budgets below ten times their noise floor, each with the largest floor over the protected layers."""
    if floor is None:
        return {}
    rows = [row for row in floor.layers if row.layer in set(protected)]
    out = {}
    for channel in DRIFTS:
        values = [row.number_at(channel.key) for row in rows]
        worst = max((value for value in values if value is not None), default=0.0)
        budget = budgets.get(channel.budget)
        if budget is not None and budget < FLOOR_FACTOR * worst:
            out[channel.budget] = float(worst)
    return out


def _zeros(receipt: ReceiptView) -> list[dict[str, Any]]:
    """Warn about tensors that are zero throughout. A stalled download leaves a file of zeros of the right size."""
    out = []
    classes = (receipt.weights and receipt.weights.classes) or {}
    for side in ("base", "tuned"):
        zeros = {kind: found.all_zero_tensors for kind, found in classes.items() if kind in NEVER_ZERO}
        counts = {kind: count.side(side) for kind, count in zeros.items() if count is not None}
        found = ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)
        if found:
            message = f"tensors of the {side} checkpoint that are zero throughout: {found}; compare the files' sha256"
            out.append({"code": "all-zero-tensors", "message": message})
    return out


def _tail_guard(receipt: ReceiptView) -> list[dict[str, Any]]:
    """Warn about a per-document limit so high that tolerated documents alone can use up the mean's budget."""
    message = loose_tail_guard(receipt.probe.policy.damage)
    return [] if message is None else [{"code": "loose-tail-guard", "message": message}]


def _divergence(receipt: ReceiptView) -> list[dict[str, Any]]:
    """Warn that no budget limits the KL divergence: losses that fell can then hide losses that rose."""
    if receipt.probe.policy.damage.get("kl", 0.0) is not None:
        return []
    message = (
        "damage.kl is registered as null: predictions that became sharper or flatter can pay for damage elsewhere in a "
        "domain, and the mean NLL increase does not show it"
    )
    return [{"code": "kl-not-gated", "message": message}]


def _left_out(receipt: ReceiptView) -> list[dict[str, Any]]:
    """Warn about documents that are too short for their windows and that the probe file leaves out."""
    rows = receipt.probe.left_out or ()
    return [{"code": "documents-left-out", "message": left_out_sentence(row.facts)} for row in rows]


def _set_for(receipt: ReceiptView) -> list[dict[str, Any]]:
    """Warn about budgets that were set for another family, another k, another evaluation set or another base."""
    registered, base = receipt.probe.policy.set_for, receipt.checkpoint("base")
    if registered is None:
        return []
    compared: tuple[tuple[str, str | int | None, str | int | None], ...] = (
        ("family", registered.family, base.family),
        ("top_k", registered.top_k, next((layer.top_k for layer in receipt.layers), None)),
        ("experts", registered.experts, receipt.probe.evaluation.experts),
        ("the base of digest", registered.from_base.base if registered.from_base else None, base.digest),
    )
    return [
        {
            "code": "budgets-set-for",
            "message": f"the budgets were set for {key} {set_for}, this audit has {value}",
        }
        for key, set_for, value in compared
        if set_for is not None and value is not None and set_for != value
    ]


def _formats(receipt: ReceiptView) -> list[dict[str, Any]]:
    """Warn that the checkpoints store experts in two formats: content drift then includes the error of the format."""
    found = [(layer.channel("content_quantisation"), layer.layer) for layer in receipt.layers]
    costs = [(cost.estimate, layer) for cost, layer in found if cost and cost.estimate is not None]
    if not costs:
        return []
    value, layer = max(costs)
    if value == 0.0:  # the tuned checkpoint's format holds the base's experts exactly
        return []
    message = (
        "the experts of the two checkpoints are stored in different formats: content_drift includes what the format "
        f"costs, which content_quantisation puts at up to {value:.3g} (layer {layer})"
    )
    return [{"code": "two-formats", "message": message}]


def _recast(receipt: ReceiptView) -> list[dict[str, Any]]:
    """Warn about tensors that are stored in another way than the base's, with equal values or with rounded values."""
    rows = (receipt.weights and receipt.weights.tensors) or ()
    recast, rounded = sum(row.recast is True for row in rows), sum(row.rounded is True for row in rows)
    said = {
        "values-recast": (
            recast,
            "hold the base's values in another dtype, or zeros of the other sign: these count as unchanged, and are "
            "computed with as the base stores them",
        ),
        "values-rounded": (
            rounded,
            "hold the base's values rounded to another format and nothing else: must_change takes them as unchanged, "
            "must_not_change as changed",
        ),
    }
    return [
        {"code": code, "message": f"{count} of {len(rows)} tensors of the tuned checkpoint {what}"}
        for code, (count, what) in said.items()
        if count
    ]


def _resumed(receipt: ReceiptView) -> list[dict[str, Any]]:
    """Warn about tensors whose values differ from those in an earlier receipt of the run."""
    earlier = receipt.parent.receipt if receipt.parent else None
    if earlier is None or earlier.same_tensors:
        return []
    changed = [row for row in earlier.classes or () if not row.same]
    what = ", ".join(f"{row.kind} ({_places(row.changed_layers)})" for row in changed)
    message = f"resumed: other values than in the earlier receipt: {what or 'its digests tell no more'}"
    return [{"code": "resumed-changed", "message": message}]


def _places(layers: Sequence[int | None]) -> str:
    numbers = [layer for layer in layers if layer is not None]
    word = f"{len(numbers)} layer{'s' if len(numbers) > 1 else ''}: {ranges(numbers)}" if numbers else ""
    return word or "outside the layers"


def _overlaps(receipt: ReceiptView) -> list[dict[str, Any]]:
    """Warn about documents with the same text, within a domain or in two domains."""
    return [
        {"code": code, "message": message}
        for row in receipt.probe.overlaps
        for code, message in overlap_sentences(row.facts)
    ]


def _accepted(receipt: ReceiptView) -> list[dict[str, Any]]:
    """Warn about configuration keys that nothing reads and that somebody accepted."""
    out = []
    for side, facts in receipt.checkpoints.items():
        keys = ", ".join(f"{one.key} = {one.value}" for one in facts.accepted_config_keys or ())
        if keys:
            message = (
                f"config.json of the {side} checkpoint holds keys that nothing reads and that were accepted by hand: "
                f"{keys}; the numbers hold only if they change nothing"
            )
            out.append({"code": "accepted-config-keys", "message": message})
    return out
