"""Facts and window arrays of an audit that never happened: right in form, random in content."""

from __future__ import annotations

from typing import Any

import numpy as np

PAIR = (
    "coordinate_drift",
    "coordinate_drift_z",
    "boundary_drift",
    "native_boundary_drift",
    "transition_drift",
    "content_drift",
    "smooth_boundary",
    "smooth_boundary_published",
    "smooth_content",
    "smooth_content_published",
    "smooth_content_coverage",
)
BUDGET = ("actual", "router_term", "content_term", "bound", "base_norm")
HEALTH = (
    "set_margin",
    "group_margin",
    "overlap",
    "overlap_specificity",
    "jump",
    "jump_idealised",
    "field_norm",
    "smooth_overlap",
)
POINTS = {
    **{f"{name}_{q}": 0.1 for name in ("set_margin", "group_margin") for q in ("p01", "p10", "p50")},
    "margin_undefined": 0,
    "ties": 0,
    "cells": 17,
    "cell_entropy": 2.5,
}
SHA = "ab" * 32


def folder() -> dict[str, Any]:
    """What the receipt keeps of a checkpoint's folder: an empty config.json, no file beside the weights."""
    return {
        "vocabulary": 1000,
        "config": {},
        "files": {"listed": [], "more": {"files": 0, "sha256": None}},
        "tokenizer": {"sha256": None, "result": "not-compared", "reason": "bytes"},
    }


def policy(**changes: Any) -> dict[str, Any]:
    out: dict[str, Any] = {
        "stage": "chart-preserving",
        "confidence": 0.95,
        "resamples": 400,
        "rewrite": {
            "coordinate": 0.05,
            "boundary": 0.2,
            "transition": 0.05,
            "content": 0.3,
            "expert_content": 0.35,
            "overlap_drop": 0.05,
            "dead_share_rise": 0.1,
            "entropy_drop": 0.2,
            "load_cv_rise": 0.5,
            "refinement": {"mu": [1.0, 1.0, 0.5], "tau": 0.9},
            "handoff": {"lambda": [1.0, 0.5]},
            "smooth": {"adjacency": 10.0, "occupancy": 30000.0, "handoff": 50.0, "refinement": 50.0},
        },
        "damage": {"nll": 0.05, "document_nll": 0.5, "document_share": 0.12},
        "weights": {"must_not_change": [], "must_change": []},
        "set_for": {"family": None, "top_k": None, "experts": None},
    }
    return out | changes


def domains() -> list[dict[str, Any]]:
    return [
        {"name": "prose", "role": "base", "source": "prose.jsonl", "documents": 36},
        {"name": "code", "role": "base", "source": "code.jsonl", "documents": 40},
        {
            "name": "canary",
            "role": "canary",
            "source": "canary.jsonl",
            "documents": 3,
            "max_nll_increase": 0.5,
        },
        {
            "name": "sft",
            "role": "task",
            "source": "sft.jsonl",
            "documents": 40,
            "success": {"metric": "nll", "at_most": 1.9, "relative_to_base": False},
        },
    ]


def rows(**changes: Any) -> dict[str, Any]:
    """Embedding or head of which every row moved a little."""
    none = {"seen": 0, "unseen": 0}
    return {
        "rows": 64000,
        "seen": 700,
        "changed": {"seen": 700, "unseen": 63300},
        "median_change": {"seen": 0.004, "unseen": 0.001},
        "largest_change": {"seen": 0.02, "unseen": 0.01},
        "outlying": none,
        "far_longer": 0,
        "permuted": 0,
        "named": [],
    } | changes


def facts(
    kind: str = "audit", layers: tuple[int, ...] = (1, 2, 4), experts: int = 8, top_k: int = 2
) -> dict[str, Any]:
    sides = ("base", "tuned") if kind == "audit" else ("base",)
    classes = ("router", "selection_bias", "routed_expert", "attention", "norm", "embedding", "head")
    tuned_count = 0 if kind == "audit" else None
    return {
        "schema": "atlas/receipt/v1",
        "kind": kind,
        "probe": {
            "name": "synthetic",
            "lock": {"sha256": SHA, "registered_at": "2026-01-01T00:00:00+00:00"},
            "tokenizer": {"kind": "bytes", "sha256": None},
            "policy": policy(),
            "domains": domains(),
            "windows": {"tokens": 32, "per_document": 1, "seed": 7},
            "evaluation": {"experts": "active", "token_stride": 1, "quantile": 0.9},
            "protected_layers": [layer for layer in layers if layer != 1],
            "overlaps": [],
            "special_tokens": "none",
            "chat_template": None,
            "left_out": [],
        },
        "checkpoints": {
            side: {
                "family": "test",
                "digest": SHA if side == "base" else "cd" * 32,
                "config_sha256": "ef" * 32,
                **folder(),
            }
            for side in sides
        },
        "layers": [
            {
                "layer": layer,
                "protected": layer != 1,
                "experts": experts,
                "top_k": top_k,
                "undefined": {},
                "assumptions": {side: {"rms_norm": True} for side in sides},
                **(
                    {
                        "exact": {"states": False, "gain": False, "router": False, "experts": False},
                        "changes": {key: [0.01] * experts for key in ("experts", "router_rows")},
                    }
                    if tuned_count == 0
                    else {}
                ),
                **{side: dict(POINTS) for side in sides},
            }
            for layer in layers
        ],
        "weights": {
            "classes": {
                name: {
                    "tensors": 3 if name != "selection_bias" else 0,
                    "identical": 1 if kind == "audit" else None,
                    "changed": 2 if kind == "audit" else None,
                    "relative_change": 0.01 if kind == "audit" else None,
                    "zeros": {"base": 0, "tuned": tuned_count},
                    "nonfinite": {"base": 0, "tuned": tuned_count if name != "selection_bias" else None},
                }
                for name in classes
            },
            "tensors": [],
            "unreplayed": [],
        },
        "identity": {"identical_checkpoints": False, "breaches": [], "layers": []},
        "vocabulary": {
            "embedding": rows() if kind == "audit" else None,
            "head": rows() if kind == "audit" else None,
        },
        "controls": {"parameter_distance": 0.01},
        "noise_floor": None,
        "reference": None,
        "attempts": [],
        "method": {"compute_dtype": "float32"},
        "environment": {"numpy": "x"},
        "timing": {"seconds": 1.0},
        "parent": None,
    }


def windows(
    made: dict[str, Any], seed: int = 0, per_document: int = 1, scale: float = 1.0, tokens: int = 32
) -> dict[str, np.ndarray]:
    """Random arrays that fit the facts; ``scale`` multiplies what the pair moved."""
    rng = np.random.default_rng(seed)
    domain, document = [], []
    for number, entry in enumerate(made["probe"]["domains"]):
        for index in range(entry["documents"]):
            domain += [number] * per_document
            document += [len(set(document)) if index == 0 else document[-1] + 1] * per_document
    domain_W = np.array(domain, dtype=np.int32)
    roles = np.array([entry["role"] for entry in made["probe"]["domains"]])[domain_W]
    total, base = len(domain_W), int((roles == "base").sum())
    out: dict[str, np.ndarray] = {
        "windows.domain": domain_W,
        "windows.document": np.array(document, dtype=np.int32),
        "windows.tokens": np.full(total, tokens, dtype=np.int32),
        "windows.scored": np.full(total, tokens - 1, dtype=np.int32),
    }
    pair = made["kind"] == "audit"
    out |= _outputs(rng, total, pair, scale)
    for layer in made["layers"]:
        for side in ("base", "tuned") if pair else ("base",):
            routed = tokens * layer["top_k"]
            out |= _health(rng, f"layers.{layer['layer']}.{side}", base, layer["experts"], routed)
            out[f"layers.{layer['layer']}.{side}.non_finite"] = np.zeros(total, dtype=np.int32)
        if pair:
            out |= _pair(rng, f"layers.{layer['layer']}", base, scale)
            counts = out[f"layers.{layer['layer']}.base.counts"]
            out |= _experts(layer["layer"], counts, scale)
    return out


def _outputs(rng: np.random.Generator, total: int, pair: bool, scale: float) -> dict[str, np.ndarray]:
    nll = 2.0 + 0.3 * rng.standard_normal(total)
    out = {"output.nll_base": nll}
    for side in ("base", "tuned") if pair else ("base",):
        out[f"output.token_accuracy_{side}"] = rng.uniform(0.3, 0.6, total)
        out[f"output.exact_match_{side}"] = rng.integers(0, 2, total).astype(float)
        out[f"output.non_finite_{side}"] = np.zeros(total)
    if pair:
        out["output.nll_tuned"] = (
            nll + scale * (0.005 + 0.02 * rng.standard_normal(total)) - 0.3 * (np.arange(total) >= 79)
        )
        out["output.kl"] = scale * rng.gamma(2.0, 0.01, total)
        out["output.top1_agreement"] = rng.uniform(0.9, 1.0, total)
    return out


def _health(
    rng: np.random.Generator, prefix: str, base: int, experts: int, routed: int
) -> dict[str, np.ndarray]:
    counts = np.stack(
        [rng.multinomial(routed, rng.dirichlet(np.linspace(20.0, 60.0, experts))) for _ in range(base)]
    )
    out = {
        f"{prefix}.counts": counts.astype(np.int32),
        f"{prefix}.rho": rng.dirichlet(np.full(experts, 50.0), base),
    }
    for key in HEALTH:
        out[f"{prefix}.{key}"] = np.abs(rng.normal(0.3, 0.05, base))
    for key in ("overlap_low", "overlap_high", "jump_low"):
        count = rng.integers(0, 9, base).astype(np.int32)
        out[f"{prefix}.{key}.count"] = count
        out[f"{prefix}.{key}.sum"] = count * rng.normal(0.3, 0.05, base)
    return out


def _pair(rng: np.random.Generator, prefix: str, base: int, scale: float) -> dict[str, np.ndarray]:
    out = {f"{prefix}.pair.{key}": scale * rng.gamma(2.0, 0.005, base) for key in PAIR}
    for key in BUDGET:
        out[f"{prefix}.pair.perturbation_budget.{key}"] = rng.gamma(5.0, 0.1, base)
    inside, outside = rng.integers(0, 3, base), rng.integers(0, 3, base)
    for key, values in (("inside", inside), ("outside", outside), ("changed", inside + outside)):
        out[f"{prefix}.pair.flips.{key}"] = values.astype(np.int32)
    for key in ("raw_norm_drift", "raw_state_drift"):
        out[f"{prefix}.control.{key}"] = rng.gamma(2.0, 0.01, base)
    return out


def _experts(layer: int, counts: np.ndarray, scale: float) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(layer)
    prefix = f"layers.{layer}.pair.expert_content"
    return {f"{prefix}.count": counts, f"{prefix}.sum": counts * scale * rng.gamma(2.0, 0.005, counts.shape)}


def audit(seed: int = 0, scale: float = 1.0, **kwargs: Any) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    made = facts("audit", **kwargs)
    return made, windows(made, seed, scale=scale)


def baseline(seed: int = 0) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    made = facts("baseline")
    return made, windows(made, seed)
