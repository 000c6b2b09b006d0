"""Which claims the receipt licenses (Tables 4, 5 and 11 of the paper), and what each rests on.

Each receipt answers for its own object. A claim of health needs every protected layer (its bound holds in each),
a claim of harm needs one, by a simultaneous bound. Loss alone never licenses preservation, occupancy alone never
licenses compatibility, and a rising set margin never licenses health.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from moe_atlas.channels import CHANNELS, GATED, OCCUPANCY, Channel
from moe_atlas.verdict.gates.gate import is_number
from moe_atlas.verdict.qualifications import in_words, provisional_origin
from moe_atlas.verdict.rewrite import PRESERVED, REWRITTEN
from moe_atlas.verdict.success import base_reached
from moe_atlas.verdict.task import CHART_PRESERVING, KNOWLEDGE_EXPANSIVE
from moe_atlas.views.judged import Claim
from moe_atlas.views.measured import Interval, LayerView
from moe_atlas.views.receipt import ReceiptView

Layers = Sequence[LayerView]

LICENSED = "licensed"
CONTRADICTED = "contradicted"
UNLICENSED = "unlicensed"
NOTHING = Interval({})
BROAD = 0.5  # usage is broad where the effective experts are more than this share of all experts
NARROWING = tuple(channel.key for channel in OCCUPANCY)


def derive_claims(receipt: ReceiptView) -> list[dict[str, Any]]:
    """Return every claim with its status, what it rests on and what it does not say."""
    if receipt.is_baseline:
        return _baseline_claims(receipt)
    layers = receipt.protected
    first = [
        *_objective(receipt),
        _usage_broad(layers, "tuned"),
        _usage_narrowing(receipt, layers),
        *_overlaps(layers),
        *_boundary_sharpness(layers),
        *(_moved(channel, layers) for channel in CHANNELS if channel.claim),
        _preserved(receipt),
        _matched_success(receipt),
    ]
    return [*first, _scalar_without_geometry(first)]


def status_of(claims: Iterable[Claim], name: str) -> str:
    """Return a claim's status, ``unlicensed`` when the receipt does not make it."""
    return next((claim.status for claim in claims if claim.claim == name), UNLICENSED)


def _claim(
    name: str, statement: str, status: str, rests_on: list[str], not_about: str, **numbers: Any
) -> dict[str, Any]:
    return {
        "claim": name,
        "statement": statement,
        "status": status,
        "rests_on": rests_on,
        "does_not_say": not_about,
    } | numbers


def _decide(licensed: bool, contradicted: bool) -> str:
    if licensed:
        return LICENSED
    return CONTRADICTED if contradicted else UNLICENSED


def _every(layers: Layers, test: Callable[[LayerView], bool]) -> bool:
    return bool(layers) and all(test(layer) for layer in layers)


def _pair(layer: LayerView, key: str) -> Interval:
    return layer.channel(key) or NOTHING


def _of_side(layer: LayerView, side: str, key: str) -> Interval:
    found = layer.side(side)
    return (found and found.interval(key)) or NOTHING


def _above(bound: float | None, value: float) -> bool:
    return is_number(bound) and bound > value


def _below(bound: float | None, value: float) -> bool:
    return is_number(bound) and bound < value


def _objective(receipt: ReceiptView) -> list[dict[str, Any]]:
    out = []
    for role, name, words in (
        ("task", "objective_improved", "The objective improved"),
        ("canary", "canary_nll_improved", "Canary NLL improved"),
    ):
        rows = receipt.domains_of(role)
        increases = [row.nll_increase or NOTHING for row in rows]
        better = bool(rows) and all(_below(increase.high, 0.0) for increase in increases)
        worse = any(_above(increase.low, 0.0) for increase in increases)
        rests = [f"domains.{row.name}.nll_increase" for row in rows]
        silent = "atlas preservation, overlap compatibility, or whether the gain came from a narrowed region"
        out.append(_claim(name, f"{words} on the visited region.", _decide(better, worse), rests, silent))
    return out


def _usage_broad(layers: Layers, side: str) -> dict[str, Any]:
    """Broad: more than half of the experts are effectively used in every protected layer."""

    def effective(layer: LayerView) -> Interval:
        return _of_side(layer, side, "effective_experts")

    broad = _every(layers, lambda layer: _above(effective(layer).low, BROAD * layer.experts))
    narrow = any(_below(effective(layer).high, BROAD * layer.experts) for layer in layers)
    return _claim(
        "usage_broad",
        "The checkpoint uses a broad subset of its experts (more than half effectively, in every protected layer).",
        _decide(broad, narrow),
        [f"layers.{layer.layer}.{side}.effective_experts" for layer in layers],
        "whether co-active experts are compatible, or whether a resume preserved the atlas",
    )


def _usage_narrowing(receipt: ReceiptView, layers: Layers) -> dict[str, Any]:
    budgets = {key: receipt.probe.policy.budget(key) for key in NARROWING}
    limits = {key: 0.0 if budget is None else budget for key, budget in budgets.items()}
    narrowing = any(
        _above(_pair(layer, key).simultaneous_low, limit) for layer in layers for key, limit in limits.items()
    )
    stable = _every(
        layers, lambda layer: all(_below(_pair(layer, key).high, limit) for key, limit in limits.items())
    )
    stable = stable or _every(layers, lambda layer: all(_pair(layer, key).exact for key in NARROWING))
    return _claim(
        "usage_narrowing",
        "Usage of the atlas narrows by more than the registered budgets.",
        _decide(narrowing, stable),
        [f"layers.*.pair.{key}" for key in NARROWING],
        "whether the experts that remain in use are compatible",
    )


def _overlaps(layers: Layers) -> list[dict[str, Any]]:
    worse = any(_above(_pair(layer, "overlap_drop").simultaneous_low, 0.0) for layer in layers)
    better = _every(layers, lambda layer: _below(_pair(layer, "overlap_drop").high, 0.0))
    rests = ["layers.*.pair.overlap_drop"]
    silent = "whether the atlas is broadly used: overlap cannot see an occupancy collapse"
    return [
        _claim(
            "overlaps_more_compatible",
            "Adjacent co-active charts are more compatible in every protected layer.",
            _decide(better, worse),
            rests,
            silent,
        ),
        _claim(
            "overlaps_less_compatible",
            "Adjacent co-active charts are less compatible in a protected layer.",
            _decide(worse, better),
            rests,
            silent,
        ),
    ]


def _boundary_sharpness(layers: Layers) -> list[dict[str, Any]]:
    """State1: disjoint intervals of the mean set margin, in every protected layer."""

    def margins(layer: LayerView) -> tuple[Interval, Interval]:
        return _of_side(layer, "base", "set_margin"), _of_side(layer, "tuned", "set_margin")

    def sharper(layer: LayerView) -> bool:
        base, tuned = margins(layer)
        return is_number(base.high) and _above(tuned.low, base.high)

    def noisier(layer: LayerView) -> bool:
        base, tuned = margins(layer)
        return is_number(base.low) and _below(tuned.high, base.low)

    status = _decide(_every(layers, sharper), _every(layers, noisier))
    silent = "global routed health: under an occupancy collapse wider margins do not mean healthier routing"
    return [
        _claim(
            "boundaries_sharper",
            "Top-k competitions are sharper near the boundary in every protected layer.",
            status,
            ["layers.*.base.set_margin", "layers.*.tuned.set_margin"],
            silent,
        )
    ]


def _moved(channel: Channel, layers: Layers) -> dict[str, Any]:
    """By how much: the worst protected layer. Contradicted only by inputs of equal values."""
    found = [(layer.layer, _pair(layer, channel.key)) for layer in layers]
    known = [(pair.estimate, number, pair) for number, pair in found if is_number(pair.estimate)]
    moved = any(_above(pair.simultaneous_low, 0.0) for _, _, pair in known)
    still = bool(known) and len(known) == len(found) and all(pair.exact for _, _, pair in known)
    numbers: dict[str, Any] = {}
    if known:
        estimate, number, pair = max(known, key=lambda item: item[0])
        numbers = {"layer": number, "estimate": estimate, "low": pair.low, "high": pair.high}
    return _claim(
        f"{channel.claim}_moved",
        f"{channel.claim.capitalize()} moved by this much (worst protected layer).",
        _decide(moved, still),
        [f"layers.*.pair.{channel.key}"],
        "whether that motion is acceptable for the declared stage",
        **numbers,
    )


def _preserved(receipt: ReceiptView) -> dict[str, Any]:
    outcome = receipt.predicates["protected_atlas_rewrite"].outcome
    origin = provisional_origin(receipt.probe.policy)
    return _claim(
        "preserved",
        _preserved_statement(receipt, "The protected atlas was preserved", "The tune moved"),
        _decide(outcome == PRESERVED, outcome == REWRITTEN),
        ["predicates.protected_atlas_rewrite", *(f"layers.*.pair.{channel.key}" for channel in GATED)],
        "anything about what happens after this checkpoint" if origin is None else _PROVISIONAL_LIMIT,
    )


_PROVISIONAL_LIMIT = "that the tune behaves like a healthy tune: no healthy tune set a budget"


def _preserved_statement(receipt: ReceiptView, plainly: str, moved: str) -> str:
    """Return the statement of preservation; under provisional budgets it says only how far the tune moved."""
    origin = provisional_origin(receipt.probe.policy)
    if origin is None:
        return f"{in_words(plainly, receipt.qualified)}."
    copy = f"{origin.factor:g} × what a {origin.bits}-bit copy of its base does"
    return f"{moved} no further than {copy} (every gated channel, worst protected layer)."


def _matched_success(receipt: ReceiptView) -> dict[str, Any]:
    """Never licensed where nothing changed (which is no chart-preserving outcome) or the base may meet the target."""
    outcome = receipt.predicates["knowledge_expansive"].outcome
    licensed = outcome == CHART_PRESERVING and base_reached(receipt) is False
    contradicted = outcome in ("task-not-reached", "chart-redefining", "misclassified", KNOWLEDGE_EXPANSIVE)
    return _claim(
        "preserved_at_matched_task_success",
        _preserved_statement(
            receipt,
            "The task was reached with the protected atlas preserved",
            "The task was reached and the tune moved",
        ),
        _decide(licensed, contradicted),
        [
            "predicates.knowledge_expansive",
            "predicates.protected_atlas_rewrite",
            *(f"domains.{row.name}.success" for row in receipt.domains_of("task")),
        ],
        "success on anything but the registered task domains",
    )


def _scalar_without_geometry(claims: list[dict[str, Any]]) -> dict[str, Any]:
    """Fourth row of Table 11: loss improves, overlap worsens, occupancy narrows, read jointly."""
    parts = ("objective_improved", "overlaps_less_compatible", "usage_narrowing")
    made = [Claim(claim) for claim in claims]
    statuses = [status_of(made, part) for part in parts]
    licensed = all(status == LICENSED for status in statuses)
    return _claim(
        "scalar_improvement_without_geometric_recovery",
        "The objective improved while the routed object degraded.",
        _decide(licensed, CONTRADICTED in statuses),
        [f"claims.{part}" for part in parts],
        "which intervention repairs it",
    )


def _baseline_claims(receipt: ReceiptView) -> list[dict[str, Any]]:
    return [
        _claim(
            "state_at_this_point",
            "This is the state of the atlas at this point.",
            LICENSED,
            ["layers.*.base", "domains"],
            "preservation: untested until the next comparison",
        ),
        _usage_broad(receipt.protected, "base"),
        _claim(
            "preserved",
            "The protected atlas was preserved.",
            UNLICENSED,
            [],
            "a baseline is one checkpoint: preservation is untested until the next comparison",
        ),
    ]
