"""The receipt as a pure function of the measured facts and the window arrays.

An audit measures facts and window arrays. `derive` computes every interval, margin, predicate, claim and the verdict
from them. A verifier calls `derive` on the stored facts and compares the results. `derive` reads no derived key, so its
result for a whole receipt is that receipt.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moe_atlas.channels import GATED
from moe_atlas.derivation.differences import derive_differences
from moe_atlas.derivation.intervals.aggregates import derive_aggregates
from moe_atlas.derivation.intervals.context import Arrays, Context, Facts, make_context
from moe_atlas.derivation.intervals.domains import derive_domains
from moe_atlas.derivation.intervals.expert_content import simultaneous_low
from moe_atlas.derivation.intervals.layers import LayerResult, derive_layer
from moe_atlas.derivation.intervals.margins import derive_margins
from moe_atlas.derivation.look import derive_look
from moe_atlas.derivation.warnings import derive_warnings
from moe_atlas.statistics.resampled import Resampled, finite
from moe_atlas.statistics.simultaneous import simultaneous_lower
from moe_atlas.verdict.claims import derive_claims
from moe_atlas.verdict.next_steps import derive_next_steps
from moe_atlas.verdict.predicates import derive_predicates
from moe_atlas.views.receipt import LOOK, ReceiptView

SCHEMA = "atlas/receipt/v1"
# The version of the rules that derive intervals, predicates, claims and the verdict from facts and window data. Raise
# it with every change that derives anything else from the same evidence. `verify` then says that a receipt follows
# other rules, instead of saying that somebody edited it.
DERIVATION = 4
ORDER = (
    "schema",
    "derivation",
    "kind",
    "verdict",
    "qualified",
    "predicates",
    "claims",
    "next_steps",
    "warnings",
    "look",
    "margins",
    "aggregates",
    "domains",
    "layers",
    "weights",
    "differences",
    "identity",
    "vocabulary",
    "controls",
    "noise_floor",
    "yardstick",
    "probe",
    "checkpoints",
    "reference",
    "attempts",
    "method",
    "environment",
    "timing",
    "parent",
    "evidence",
)
# The gated quantities with one number per layer. Expert content has one per expert, bounded in `expert_content`.
SAMPLED = tuple(channel.key for channel in GATED if channel.kind != "expert")


def derive(facts: Mapping[str, Any], windows: Arrays) -> dict[str, Any]:
    """Return the whole receipt.

    Args:
        facts: the measured part of the receipt: ``kind``, ``probe``, ``layers`` with their point facts, ``weights``,
            ``identity`` and the other facts that the audit records. `derive` overwrites derived keys.
        windows: the window arrays by name. NaN: the quantity is undefined in that window. +-inf: the audit computed a
            value that is not finite.

    Returns:
        A new receipt with its top-level keys in reading order. All numbers are finite, so the receipt is strict JSON.

    Raises:
        UsageError: ``E_NO_WINDOWS`` if the audit measured no window of a base-role domain.
    """
    context = make_context(facts, windows)
    reference = _reference_layers(facts)
    results = [
        derive_layer(context, layer, None if reference is None else reference.get(layer["layer"], {}))
        for layer in facts["layers"]
    ]
    _add_gate_bounds(context, results)
    receipt = dict(facts) | {
        "schema": SCHEMA,
        "derivation": DERIVATION,
        "margins": derive_margins(context, results, reference),
        "aggregates": derive_aggregates(context, results),
        "domains": derive_domains(context, [layer["layer"] for layer in facts["layers"]]),
        "layers": [result.derived for result in results],
    }
    receipt |= {"differences": derive_differences(ReceiptView(receipt))}
    receipt |= derive_predicates(ReceiptView(receipt))
    receipt |= {"warnings": derive_warnings(ReceiptView(receipt))}
    receipt |= {"claims": derive_claims(ReceiptView(receipt))}
    receipt |= {"next_steps": derive_next_steps(ReceiptView(receipt))}
    if receipt["kind"] == LOOK:
        receipt |= {"look": derive_look(ReceiptView(receipt), windows)}
    return {key: receipt[key] for key in (*ORDER, *sorted(set(receipt) - set(ORDER))) if key in receipt}


def _reference_layers(facts: Facts) -> dict[int, Facts] | None:
    reference = facts.get("reference")
    return None if not reference else {layer["layer"]: layer for layer in reference["layers"]}


def _add_gate_bounds(context: Context, results: list[LayerResult]) -> None:
    """Add to each gated interval of the protected layers the bounds that decide FAIL and PASS."""
    protected = [result for result in results if result.facts["layer"] in context.protected]
    if not context.is_pair:
        return
    for key in SAMPLED:
        samples: list[Resampled] = [result.pair[key] for result in protected]
        for result, bound in zip(protected, simultaneous_lower(samples, context.tail), strict=True):
            result.derived["pair"][key]["simultaneous_low"] = None if bound is None else finite(bound)
            result.derived["pair"][key] |= context.passing(result.pair[key], key)
    experts = [result.experts for result in protected if result.experts is not None]
    for found, low in zip(experts, simultaneous_low(experts, context.tail), strict=True):
        found.shown["simultaneous_low"] = low
