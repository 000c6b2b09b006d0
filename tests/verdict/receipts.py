"""Receipts with hand-made intervals: what the predicates see, without a bootstrap."""

from __future__ import annotations

import copy
from typing import Any

from tests.receipt import synthetic

CHANNELS = (
    "coordinate_drift_z",
    "boundary_drift",
    "transition_drift",
    "content_drift",
    "expert_content",
    "overlap_drop",
    "dead_share_rise",
    "entropy_drop",
    "load_cv_rise",
)
BUDGETS = ("coordinate", "boundary", "transition", "content", *CHANNELS[4:])
BASE = "aa" * 32
TUNED = "cc" * 32
LOCK = "bb" * 32


def interval(low: float | None, high: float | None, **extra: Any) -> dict[str, Any]:
    middle = None if low is None or high is None else (low + high) / 2
    return {"estimate": middle, "low": low, "high": high, "windows": 100, "documents": 100} | extra


def gated(low: float | None, high: float | None, **extra: Any) -> dict[str, Any]:
    return interval(low, high, simultaneous_low=None if low is None else low - 0.001) | extra


def layer(number: int) -> dict[str, Any]:
    side = {"effective_experts": interval(7.0, 7.9), "set_margin": interval(0.2, 0.3)}
    return {
        "layer": number,
        "experts": 8,
        "top_k": 2,
        "pair": {key: gated(0.01, 0.05) for key in CHANNELS}
        | {"expert_coverage": {"guarded": 8, "thin": [], "unreached": []}},
        "changes": {key: [0.01] * 8 for key in ("experts", "router_rows")},
        "base": copy.deepcopy(side),
        "tuned": copy.deepcopy(side),
    }


def row(name: str, role: str) -> dict[str, Any]:
    made: dict[str, Any] = {
        "name": name,
        "role": role,
        "documents": 100,
        "windows": 100,
        "nll_increase": interval(-0.01, 0.01),
        "kl": interval(0.005, 0.015),
        "non_finite_windows": 0,
        "non_finite_base": 0,
        "non_finite_layer": None,
    }
    if role == "base":
        made["damaged_documents"] = {"count": 0, "documents": 100, "share": 0.0, "share_high": 0.036}
    if role == "canary":
        made["worst_window"] = {"nll_increase": 0.1, "limit": 0.5, "undefined": 0, "over": 0}
    if role == "task":
        made["success"] = {
            "metric": "nll",
            "relative_to_base": False,
            "at_most": 1.9,
            "value": interval(1.6, 1.7),
            "base": interval(2.4, 2.6),
        }
    return made


def receipt(stage: str = "chart-preserving") -> dict[str, Any]:
    """A clean pass under the chart-preserving stage."""
    classes = {
        name: {"tensors": 4, "identical": 2, "changed": 2, "nonfinite": {"base": 0, "tuned": 0}}
        for name in ("router", "routed_expert", "attention")
    }
    return {
        "kind": "audit",
        "probe": {
            "lock": {"sha256": LOCK},
            "protected_layers": [1, 2],
            "policy": {
                "stage": stage,
                "rewrite": dict.fromkeys(BUDGETS, 0.1) | {"refinement": {"mu": [1, 1, 0.5], "tau": 0.25}},
                "damage": {"nll": 0.02, "document_nll": 0.5, "document_share": 0.05},
                "weights": {"must_change": [], "must_not_change": []},
            },
        },
        "checkpoints": {"base": {"digest": BASE}, "tuned": {"digest": TUNED}},
        "layers": [layer(number) for number in (0, 1, 2)],
        "margins": {"refinement_margin": interval(0.1, 0.2, layer=1)},
        "domains": [row("prose", "base"), row("code", "base"), row("canary", "canary"), row("sft", "task")],
        "weights": {"classes": classes, "unreplayed": []},
        "vocabulary": {"embedding": synthetic.rows(), "head": None},
        "identity": {"identical_checkpoints": False, "breaches": []},
        "attempts": [],
    }


def tensors(
    kind: str, *, layers: int = 4, experts: int = 0, names: int = 2, changed: Any = (), **facts: Any
) -> list[dict[str, Any]]:
    """Rows of the weights ledger: `names` tensors for each layer, or for each of its experts.

    `changed` holds (layer, expert, number) of the tensors that changed, or "all"; `facts` go into those.
    """
    rows = []
    for layer in range(layers):
        for expert in range(experts) if experts else (None,):
            for number in range(names):
                moved = changed == "all" or (layer, expert, number) in changed
                row = {
                    "name": f"layers.{layer}.{kind}.{expert}.{number}",
                    "class": kind,
                    "layer": layer,
                    "expert": expert,
                    "identical": not moved,
                    "recast": False,
                    "rounded": False,
                }
                rows.append(row | (facts if moved else {}))
    return rows


def rewritten(made: dict[str, Any]) -> dict[str, Any]:
    made["layers"][1]["pair"]["boundary_drift"] = gated(0.3, 0.4)
    return made


def attempt(**changes: Any) -> dict[str, Any]:
    return {
        "receipt_sha256": "dd" * 32,
        "base_digest": BASE,
        "tuned_digest": "ee" * 32,
        "tuned_weights": "ee" * 32,
        "lock_digest": LOCK,
        "protected_atlas_rewrite": "preserved",
        "task_reached": False,
        "task_improved": True,
        "nothing_tuned": False,
    } | changes


def set_path(made: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """Replace or (with ``...``) delete one dotted entry; integers index lists."""
    *parents, last = path.split(".")
    here: Any = made
    for part in parents:
        here = here[int(part)] if isinstance(here, list) else here[part]
    if value is ...:
        del here[last]
    elif isinstance(here, list):
        here[int(last)] = value
    else:
        here[last] = value
    return made
