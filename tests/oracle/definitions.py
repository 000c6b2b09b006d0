"""The published definitions, token by token in float64 loops; slow, plain, sharing no code with the product."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from tests.oracle.model import MASKED, Array, Decision, Layer, combine, decide

Values = dict[str, list[list[float]]]
WORD = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15


@dataclass
class Scope:
    """What was registered: experts to evaluate, stride, quantile, β_adj, the seed, and the noise band if any."""

    everyone: bool
    stride: int
    quantile: float
    adjacency: float
    seed: int


@dataclass
class Token:
    """One token in front of one checkpoint's experts."""

    x: Array
    z: Array | None
    g: Array
    route: Decision


def look(layer: Layer, x: Array) -> Token:
    z = layer.standardise(x)
    g = layer.gate(z, x)
    return Token(x, z, g, decide(layer, layer.read(z, g)))


def anchored(layer: Layer, base: Token) -> Token:
    """θ1 at the base's canonical state (at its residual, where there is no norm in front of the router)."""
    g = layer.gate(base.z, base.x)
    return Token(base.x, base.z, g, decide(layer, layer.read(base.z, g)))


def visible_update(layer: Layer, token: Token, e: int) -> Array:
    """v_e = P_z E_e(g); where the gate weight scales the expert's input, that of the router's own logit."""
    g = token.g
    if layer.family == "llama4_text":
        g = g * combine(layer, token.route.logits, [e])[0]
    return layer.visible(token.z, layer.expert(e, g))


def field_weights(layer: Layer, weights: Sequence[float]) -> list[float]:
    """What multiplies expert outputs in the routed sum: 1 where the input was weighted."""
    return [1.0] * len(weights) if layer.family == "llama4_text" else list(weights)


def kappa(a: Array, b: Array) -> float:
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b) + 1e-12))


def relative(a: Array, b: Array) -> float:
    return float(np.linalg.norm(b - a) / (np.linalg.norm(a) + np.linalg.norm(b) + 1e-12))


def one_minus_cos(a: Array, b: Array) -> float:
    return float(1.0 - a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def jensen_shannon(p: Array, q: Array) -> float:
    middle = (p + q) / 2
    return float(
        sum(0.5 * a * math.log(a / m) for r in (p, q) for a, m in zip(r, middle, strict=True) if a > 0)
    )


def set_drift(a: Sequence[int], b: Sequence[int]) -> float:
    return 1.0 - len(set(a) & set(b)) / len(a)


# --- one token of one checkpoint ---------------------------------------------------------------------------


def mix(state: int) -> int:
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & WORD
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & WORD
    return state ^ (state >> 31)


def partner(seed: int, layer: int, window: int, position: int, route: Decision) -> int | None:
    """The expert of the specificity contrast: uniform outside S ∪ {e_{k+1}}, by a documented pure function."""
    free = [e for e in range(len(route.scores)) if e not in route.chosen and e != route.rival]
    key = mix(mix((mix((seed + GOLDEN) & WORD) + layer * GOLDEN) & WORD))
    bits = mix((key + mix((window << 32) | position)) & WORD)
    return free[((bits >> 33) * len(free)) >> 31] if free else None


def state2(layer: Layer, token: Token, scope: Scope, other: int | None) -> dict[str, float]:
    route, k = token.route, len(token.route.chosen)
    members = list(route.chosen) + ([] if route.rival is None else [route.rival])
    if scope.everyone:
        members = list(range(len(route.scores)))
    v = {e: visible_update(layer, token, e) for e in {*members, *([] if other is None else [other])}}
    out = {"smooth_overlap": smooth_overlap(route, v, members, scope.adjacency)}
    if k > 1:
        pairs = list(zip(route.chosen[:-1], route.chosen[1:], strict=True))
        mass = [route.rho[a] * route.rho[b] for a, b in pairs]
        out["overlap"] = sum(m * kappa(v[a], v[b]) for m, (a, b) in zip(mass, pairs, strict=True)) / sum(mass)
        if other is not None:
            out["overlap_specificity"] = out["overlap"] - kappa(v[route.chosen[0]], v[other])
    weights = field_weights(layer, route.weights)
    total = sum(w * v[e] for w, e in zip(weights, route.chosen, strict=True))
    out["field_norm"] = float(np.linalg.norm(total))
    if route.rival is not None:
        swapped = [*route.chosen[:-1], route.rival]
        after = field_weights(layer, combine(layer, route.logits, swapped))
        moved = sum(w * v[e] for w, e in zip(after, swapped, strict=True))
        out["jump"] = float(np.linalg.norm(moved - total))
        out["jump_idealised"] = weights[-1] * float(np.linalg.norm(v[route.rival] - v[route.chosen[-1]]))
    return out


def smooth_overlap(route: Decision, v: dict[int, Array], members: Sequence[int], beta: float) -> float:
    members = [e for e in members if route.scores[e] > MASKED]
    top = bottom = 0.0
    for a in members:
        for b in members:
            if a != b:
                gap = abs(route.scores[a] - route.scores[b])
                weight = route.rho[a] * route.rho[b] * math.exp(-beta * gap)
                top += weight * kappa(v[a], v[b])
                bottom += weight
    return top / bottom


# --- one token of the pair ---------------------------------------------------------------------------------


def channels(layers: tuple[Layer, Layer], base: Token, there: Token, tuned: Token) -> dict[str, float]:
    """The channels that need no expert; `there` is θ1 at the anchor."""
    out = {
        "coordinate_drift": one_minus_cos(base.g, tuned.g),
        "boundary_drift": set_drift(base.route.chosen, there.route.chosen),
        "native_boundary_drift": set_drift(base.route.chosen, tuned.route.chosen),
        "transition_drift": jensen_shannon(base.route.rho, there.route.rho),
        "smooth_boundary": disagreement(base.route.rho, there.route.rho),
        "smooth_boundary_published": 1.0 - float(base.route.rho @ tuned.route.rho),
    }
    if base.z is not None and tuned.z is not None:
        out["coordinate_drift_z"] = one_minus_cos(base.z, tuned.z)
    return out


def disagreement(p: Array, q: Array) -> float:
    return float(0.5 * ((p - q) @ (p - q)) / (0.5 * (p @ p + q @ q)))


def contents(
    layers: tuple[Layer, Layer], base: Token, there: Token, tuned: Token, scope: Scope
) -> dict[str, float]:
    one, two = layers
    rival = [] if base.route.rival is None else [base.route.rival]
    evaluated = sorted({*base.route.chosen, *there.route.chosen, *rival})
    if scope.everyone:
        evaluated = list(range(len(base.route.scores)))
    v0 = {e: visible_update(one, base, e) for e in evaluated}
    v1 = {e: visible_update(two, there, e) for e in evaluated}
    native = {e: visible_update(two, tuned, e) for e in evaluated}
    mass = {e: (base.route.rho[e] + there.route.rho[e]) / 2 for e in evaluated}
    native_mass = {e: (base.route.rho[e] + tuned.route.rho[e]) / 2 for e in evaluated}
    covered = sum(mass.values())
    out = {
        "content_drift": float(np.quantile([relative(v0[e], v1[e]) for e in evaluated], scope.quantile)),
        "smooth_content": sum(mass[e] * relative(v0[e], v1[e]) for e in evaluated) / covered,
        "smooth_content_published": sum(native_mass[e] * relative(v0[e], native[e]) for e in evaluated)
        / sum(native_mass.values()),
        "smooth_content_coverage": covered,
    }
    w0 = dict(zip(base.route.chosen, field_weights(one, base.route.weights), strict=True))
    w1 = dict(zip(there.route.chosen, field_weights(two, there.route.weights), strict=True))
    union = sorted({*w0, *w1})
    before = sum(w0.get(e, 0.0) * v0[e] for e in union)
    after = sum(w1.get(e, 0.0) * v1[e] for e in union)
    router = sum(abs(w1.get(e, 0.0) - w0.get(e, 0.0)) * np.linalg.norm(v0[e]) for e in union)
    content = sum(w1.get(e, 0.0) * np.linalg.norm(v1[e] - v0[e]) for e in union)
    return out | {
        "actual": float(np.linalg.norm(after - before)),
        "router_term": float(router),
        "content_term": float(content),
        "bound": float(router + content),
        "base_norm": float(np.linalg.norm(before)),
    }


def expert_changes(layers: tuple[Layer, Layer], base: Token, there: Token) -> dict[int, float]:
    """Relative change of the visible update of every expert that either checkpoint uses at the anchor."""
    one, two = layers
    used = {*base.route.chosen, *there.route.chosen}
    return {e: relative(visible_update(one, base, e), visible_update(two, there, e)) for e in used}


def controls(base: Token, tuned: Token) -> dict[str, float]:
    size = np.linalg.norm(base.x)
    return {
        "raw_norm_drift": float(abs(np.linalg.norm(tuned.x) - size) / size),
        "raw_state_drift": float(np.linalg.norm(tuned.x - base.x) / size),
    }


# --- a layer of all base-role windows ----------------------------------------------------------------------


@dataclass
class Table:
    """Values of one layer by quantity, window and token; a token without the quantity is left out."""

    domains: list[int]
    values: dict[str, dict[tuple[int, int], float]] = field(default_factory=dict)

    def put(self, key: str, window: int, position: int, value: float) -> None:
        self.values.setdefault(key, {})[window, position] = value

    def mean(self, key: str) -> float | None:
        """Tokens within windows, windows within domains, domains: each averaged in its turn."""
        return by_domain(self.domains, self.window_means(key)) if key in self.values else None

    def window_means(self, key: str) -> dict[int, float]:
        cells = self.values[key]
        windows = sorted({window for window, _ in cells})
        return {w: float(np.mean([value for (v, _), value in cells.items() if v == w])) for w in windows}

    def tail_mean(self, key: str, chosen: Callable[[tuple[int, int]], bool]) -> float:
        """Mean over the chosen tokens of each domain, then over domains."""
        means = []
        for domain in sorted(set(self.domains)):
            cells = self.values[key].items()
            means.append(np.mean([v for at, v in cells if chosen(at) and self.domains[at[0]] == domain]))
        return float(np.mean(means))


def by_domain(domains: Sequence[int], values: dict[int, float]) -> float:
    each = [
        np.mean([value for window, value in values.items() if domains[window] == domain])
        for domain in sorted(set(domains))
    ]
    return float(np.mean(each))


def health(layer: Layer, domains: list[int], scope: Scope) -> dict[str, object]:
    """Everything of one checkpoint at one layer."""
    table = Table(domains)
    routes: list[Decision] = []
    radial, rho_means = [], []
    for window, states in enumerate(layer.states[: len(domains)]):
        decisions = []
        for position, x in enumerate(states):
            token = look(layer, x)
            decisions.append(token.route)
            if token.route.margin is not None:
                table.put("set_margin", window, position, token.route.margin)
            if token.route.group_margin is not None:
                table.put("group_margin", window, position, token.route.group_margin)
            if layer.norm != "none":
                centred = x - x.mean() if layer.norm == "layer" else x
                radial.append(layer.eps / (np.mean(centred**2) + layer.eps))
            if layer.tangent and position % scope.stride == 0:
                other = partner(scope.seed, layer.index, window, position, token.route)
                for key, value in state2(layer, token, scope, other).items():
                    table.put(key, window, position, value)
        rho_means.append(np.mean([route.rho for route in decisions], axis=0))
        routes += decisions
    found: dict[str, object] = {key: table.mean(key) for key in table.values}
    found |= quantiles(table) | tails(table, scope) | occupancy(layer, routes)
    found["smooth_share"] = np.mean(rho_means, axis=0)
    found["radial_to_tangent"] = float(np.mean(radial)) if radial else None
    found["table"] = table
    return found


def quantiles(table: Table) -> dict[str, float | None]:
    out: dict[str, float | None] = {}
    for key in ("set_margin", "group_margin"):
        values = list(table.values.get(key, {}).values())
        for name, q in (("p01", 0.01), ("p10", 0.1), ("p50", 0.5)):
            out[f"{key}_{name}"] = float(np.quantile(values, q)) if values else None
    return out


def tails(table: Table, scope: Scope) -> dict[str, float]:
    """Lowest decile and the outer quartiles of the margin, pooled over the tokens whose experts are evaluated."""
    if "jump" not in table.values:
        return {}
    margin = {at: m for at, m in table.values["set_margin"].items() if at[1] % scope.stride == 0}
    cut = {q: float(np.quantile(list(margin.values()), q)) for q in (0.1, 0.25, 0.75)}
    out = {"jump_near_boundary": table.tail_mean("jump", lambda at: margin[at] <= cut[0.1])}
    jump, norm = table.mean("jump"), table.mean("field_norm")
    assert jump is not None
    assert norm is not None
    out["jump_relative"] = jump / norm
    if "overlap" in table.values:
        low = table.tail_mean("overlap", lambda at: margin[at] <= cut[0.25])
        out["overlap_boundary_contrast"] = low - table.tail_mean(
            "overlap", lambda at: margin[at] >= cut[0.75]
        )
    return out


def occupancy(layer: Layer, routes: list[Decision]) -> dict[str, object]:
    experts, k, tokens = len(layer.router), layer.top_k, len(routes)
    counts = np.zeros(experts)
    sets: dict[tuple[int, ...], int] = {}
    for route in routes:
        counts[route.chosen] += 1
        cell = tuple(sorted(route.chosen))
        sets[cell] = sets.get(cell, 0) + 1
    load = counts / counts.sum()
    entropy = -sum(p * math.log(p) for p in load if p > 0)
    return {
        "expert_share": counts / tokens,
        "load_cv": math.sqrt(np.mean((counts - counts.mean()) ** 2)) / counts.mean(),
        "load_entropy": entropy,
        "effective_experts": math.exp(entropy),
        "max_violation": (counts.max() - counts.mean()) / counts.mean(),
        "dead_experts": float((counts == 0).sum()),
        "active_experts": float((counts > 0).sum()),
        "dead_by_chance": experts * (1 - k / experts) ** tokens,
        "min_share": (counts.min() + 0.5) / (tokens + 1),
        "cells": len(sets),
        "cell_entropy": -sum(n / tokens * math.log(n / tokens) for n in sets.values()),
        "ties": sum(route.margin == 0 for route in routes),
        "margin_undefined": sum(route.margin is None for route in routes),
    }


def pair(
    layers: tuple[Layer, Layer], domains: list[int], scope: Scope, band: tuple[float, float] = (0.0, 0.0)
) -> dict[str, object]:
    """Everything of the pair at one layer."""
    table, flips = Table(domains), {"changed": 0, "inside": 0, "outside": 0}
    experts: dict[tuple[int, int], list[float]] = {}
    one, two = layers
    for window, (states, others) in enumerate(
        zip(one.states[: len(domains)], two.states[: len(domains)], strict=True)
    ):
        for position, (x, y) in enumerate(zip(states, others, strict=True)):
            base, tuned = look(one, x), look(two, y)
            there = anchored(two, base)
            found = channels(layers, base, there, tuned) | controls(base, tuned)
            if one.tangent and position % scope.stride == 0:
                found |= contents(layers, base, there, tuned, scope)
                for e, change in expert_changes(layers, base, there).items():
                    experts.setdefault((window, e), []).append(change)
            for key, value in found.items():
                table.put(key, window, position, value)
            if set(base.route.chosen) != set(there.route.chosen):
                flips["changed"] += 1
                flips["inside" if in_band(base.route, band) else "outside"] += 1
    out: dict[str, object] = {key: table.mean(key) for key in table.values}
    return out | {"flips": flips, "table": table, "experts": experts}


def in_band(route: Decision, band: tuple[float, float]) -> bool:
    near = route.margin is not None and route.margin <= 2 * band[0]
    return near or (route.group_margin is not None and route.group_margin <= 2 * band[1])


# --- margins -----------------------------------------------------------------------------------------------


def soft_minimum(values: Sequence[float], beta: float, *, published: bool) -> float:
    total = sum(math.exp(-beta * (value - min(values))) for value in values)
    return min(values) - math.log(total / (1 if published else len(values))) / beta


def soft_maximum(values: Sequence[float], beta: float, *, published: bool) -> float:
    return -soft_minimum([-value for value in values], beta, published=published)
