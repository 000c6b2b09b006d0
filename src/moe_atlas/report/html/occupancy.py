"""Rows of the experts: occupancy, margin and overlap by layer, shifts of share, experts by name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from moe_atlas.report.words import spelled
from moe_atlas.text import number
from moe_atlas.views.measured import HealthView, LayerView
from moe_atlas.views.receipt import ReceiptView
from moe_atlas.views.weights import IdentityLayer

HEALTH = {
    "load_entropy": "load entropy, nats",
    "effective_experts": "effective experts",
    "load_cv": "load CV",
    "dead_experts": "dead experts",
    "set_margin": "set margin (State1)",
    "overlap": "overlap (State2)",
}
SHIFTS_SHOWN = 12
LISTED = 24  # experts of a layer before the rest is counted
SIDES = ("base", "tuned")


class Finding(NamedTuple):
    """Something wrong with experts of one layer.

    Attributes:
        layer: the layer's number, in words.
        what: the kind of finding.
        detail: which experts, and what is known.
    """

    layer: str
    what: str
    detail: str


def health(receipt: ReceiptView) -> list[dict[str, Any]]:
    """Occupancy, margin and overlap of both checkpoints, layer by layer."""
    return [
        {
            "layer": layer.layer,
            "protected": layer.protected,
            "cells": [{side: _health(layer.side(side), key) for side in SIDES} for key in HEALTH],
        }
        for layer in receipt.layers
    ]


def _health(side: HealthView | None, key: str) -> str:
    return spelled(side.interval(key) if side else None)


def shifts(receipt: ReceiptView) -> list[dict[str, Any]]:
    """The experts whose share of tokens changed most."""
    found = [
        (abs(after - before), layer, expert, before, after)
        for layer in receipt.layers
        for expert, (before, after) in enumerate(zip(*layer.shares, strict=False))
    ]
    found.sort(key=lambda item: -item[0])
    return [
        {
            "layer": layer.layer,
            "protected": layer.protected,
            "expert": expert,
            "before": f"{100 * before:.2f} %",
            "after": f"{100 * after:.2f} %",
            "change": f"{100 * (after - before):+.2f}",
        }
        for _, layer, expert, before, after in found[:SHIFTS_SHOWN]
    ]


def named_experts(receipt: ReceiptView) -> Iterator[Finding]:
    """Experts with something wrong, by name: newly dead, cloned, init-like, relabelled, and every breach."""
    for layer in receipt.layers:
        yield from _dead(layer)
    identity = receipt.identity
    for known in (identity.layers if identity else None) or ():
        yield from _identity(known)
    for breach in (identity.breaches if identity else None) or ():
        yield Finding(str(breach.layer), f"breach: {breach.kind}", breach.detail)


def _dead(layer: LayerView) -> Iterator[Finding]:
    base, tuned = layer.shares
    dead = [e for e, share in enumerate(tuned) if share == 0 and (e >= len(base) or base[e] > 0)]
    if dead:
        chance = number(layer.tuned.dead_by_chance if layer.tuned else None)
        said = f"saw tokens before, none after: {_listed(dead)} (by chance {chance} would be unseen)"
        yield Finding(str(layer.layer), "dead experts", said)


def _identity(layer: IdentityLayer) -> Iterator[Finding]:
    where = str(layer.layer)
    for group in layer.clones.tuned or ():
        if group not in (layer.clones.base or ()):
            yield Finding(where, "clones", f"hold the same values: {_listed(group)}")
    if layer.match:
        yield Finding(where, "relabelled", "a consistent permutation of experts; not a rewrite")
    fresh = sorted(set(layer.init_like.tuned or ()) - set(layer.init_like.base or ()))
    if fresh:
        yield Finding(where, "init-like", f"look untrained, unlike before: {_listed(fresh)}")


def _listed(experts: Sequence[int]) -> str:
    some = ", ".join(str(expert) for expert in experts[:LISTED])
    return some if len(experts) <= LISTED else f"{some} and {len(experts) - LISTED} more"
