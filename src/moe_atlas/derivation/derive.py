"""The receipt as a pure function of the measured facts and the window arrays.

The audit writes what it measured; every interval, margin, predicate, claim and the verdict follows from that
here. A verifier runs the same function on the stored facts and compares: `derive` reads no derived key, so
running it on a whole receipt gives that receipt again.
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
from moe_atlas.derivation.warnings import derive_warnings
from moe_atlas.statistics.sample import Sample, finite
from moe_atlas.statistics.simultaneous import simultaneous_lower
from moe_atlas.verdict.claims import derive_claims
from moe_atlas.verdict.next_steps import derive_next_steps
from moe_atlas.verdict.predicates import derive_predicates
from moe_atlas.views.receipt import ReceiptView

SCHEMA = "atlas/receipt/v1"
# How intervals, predicates, claims and the verdict follow from facts and window data. Raise it with every change that
# derives anything else from the same evidence: a receipt of other rules is then refused by name, not called edited.
DERIVATION = 3
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
# The gated quantities that have one sample a layer; experts have a family of bounds of their own.
SAMPLED = tuple(channel.key for channel in GATED if channel.kind != "expert")


def derive(facts: Mapping[str, Any], windows: Arrays) -> dict[str, Any]:
    """Return the whole receipt.

    Args:
        facts: the receipt's measured part: ``kind``, ``probe``, ``layers`` with their point facts, ``weights``,
            ``identity`` and whatever else the audit records; keys that are derived are overwritten.
        windows: the window arrays by name; NaN = undefined for that window, +-inf = computed but not finite.

    Returns:
        A new receipt with its top-level keys in reading order; only finite numbers, so it is strict JSON.

    Raises:
        UsageError: ``E_NO_WINDOWS`` when no window of a base-role domain was measured.
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
    receipt |= {"differences": derive_differences(receipt)}
    receipt |= derive_predicates(ReceiptView(receipt))
    receipt |= {"warnings": derive_warnings(receipt)}
    receipt |= {"claims": derive_claims(ReceiptView(receipt))}
    receipt |= {"next_steps": derive_next_steps(ReceiptView(receipt))}
    return {key: receipt[key] for key in (*ORDER, *sorted(set(receipt) - set(ORDER))) if key in receipt}


def _reference_layers(facts: Facts) -> dict[int, Facts] | None:
    reference = facts.get("reference")
    return None if not reference else {layer["layer"]: layer for layer in reference["layers"]}


def _add_gate_bounds(context: Context, results: list[LayerResult]) -> None:
    """Put the bounds that FAIL and PASS are gated on beside each gated interval of the protected layers."""
    protected = [result for result in results if result.facts["layer"] in context.protected]
    if not context.is_pair:
        return
    for key in SAMPLED:
        samples: list[Sample] = [result.pair[key] for result in protected]
        for result, bound in zip(protected, simultaneous_lower(samples, context.tail), strict=True):
            result.derived["pair"][key]["simultaneous_low"] = None if bound is None else finite(bound)
            result.derived["pair"][key] |= context.passing(result.pair[key], key)
    experts = [result.experts for result in protected if result.experts is not None]
    for found, low in zip(experts, simultaneous_low(experts, context.tail), strict=True):
        found.shown["simultaneous_low"] = low
