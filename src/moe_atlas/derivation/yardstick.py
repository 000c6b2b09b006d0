"""The yardstick: what a 4-bit copy of the base does to every channel and to the loss, as a receipt's own intervals."""

from __future__ import annotations

from typing import Any

from moe_atlas.channels import GATED
from moe_atlas.derivation.intervals.context import Arrays, Facts, make_context
from moe_atlas.derivation.intervals.domains import derive_domains
from moe_atlas.derivation.intervals.layers import derive_layer

SHOWN = ("estimate", "low", "high", "not_applicable", "reason")
"""The part of an interval that a yardstick keeps: nothing is gated on it."""


def derive_yardstick(facts: Facts, windows: Arrays) -> dict[str, Any]:
    """Return per layer the interval of each gated channel, and per domain the intervals of its change of loss.

    Args:
        facts: `kind`, `probe`, `layers` and `identity` of an audit of the base against its copy.
        windows: the window arrays of that audit.
    """
    context = make_context(facts, windows)
    layers = [derive_layer(context, layer, None).derived for layer in facts["layers"]]
    domains = derive_domains(context, [layer["layer"] for layer in layers])
    return {
        "layers": [
            {"layer": layer["layer"]} | {channel.key: _shown(layer["pair"][channel.key]) for channel in GATED}
            for layer in layers
        ],
        "domains": [
            {"name": row["name"], "role": row["role"], "documents": row["documents"]}
            | {key: _shown(row[key]) for key in ("nll_increase", "kl")}
            for row in domains
        ],
    }


def _shown(interval: Facts) -> dict[str, Any]:
    return {key: interval[key] for key in SHOWN if key in interval}
