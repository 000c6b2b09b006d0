"""The whole explanation of one pair, as data: what a terminal and a page show."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from moe_atlas.explanation.categories import Category, by_category
from moe_atlas.explanation.documents import DomainDamage, damage_by_domain
from moe_atlas.explanation.evidence import F64, Evidence
from moe_atlas.explanation.flows import LayerFlows, flows
from moe_atlas.explanation.passages import Passage, passages, scale
from moe_atlas.views.receipt import ReceiptView

FLOWS = 5  # named in each layer


@dataclass(frozen=True)
class Spread:
    """How the tokens of one domain share its damage.

    Attributes:
        half: smallest share of its scored tokens that holds half of the loss gained; None if no loss rose.
        risen: share of its scored tokens whose loss rose.
    """

    half: float | None
    risen: float


@dataclass(frozen=True)
class Explanation:
    """The explanation of one pair.

    Attributes:
        path: the receipt's path.
        receipt: its content.
        has_tokens: whether there are token data.
        domains: the damage of every domain and document.
        worst: number of documents to name in each domain.
        spreads: by domain; empty without token data.
        categories: by domain; empty without token data.
        flows: by layer; empty without token data.
        passages: text of the worst documents of domains that the tune should keep, by domain.
        darkest: the change of loss that is shaded darkest, nats.
    """

    path: Path
    receipt: ReceiptView
    has_tokens: bool
    domains: list[DomainDamage]
    worst: int
    spreads: Mapping[str, Spread]
    categories: Mapping[str, list[Category]]
    flows: list[LayerFlows]
    passages: Mapping[str, list[Passage]]
    darkest: float


def explain(evidence: Evidence, path: Path, worst: int, length: int) -> Explanation:
    """Return the explanation of one pair.

    Args:
        evidence: the evidence.
        path: the receipt's path.
        worst: number of documents to name, and to show the text of, in each domain.
        length: most tokens of each passage.
    """
    domains = damage_by_domain(evidence)
    kept = evidence.tokens is not None
    return Explanation(
        path=path,
        receipt=evidence.receipt,
        has_tokens=kept,
        domains=domains,
        worst=worst,
        spreads=_spreads(evidence) if kept else {},
        categories=by_category(evidence) if kept else {},
        flows=flows(evidence, FLOWS) if kept else [],
        passages={
            domain.name: [
                p for document in domain.worse[:worst] for p in passages(evidence, document, length)
            ]
            for domain in domains
            if domain.role != "task"
        },
        darkest=scale(evidence) if kept else 0.0,
    )


def _spreads(evidence: Evidence) -> dict[str, Spread]:
    lengths = [len(window.tokens) for window in evidence.probes.windows]
    domain_T = np.repeat([window.domain for window in evidence.probes.windows], lengths)
    found = {}
    for number, domain in enumerate(evidence.probes.config.domains):
        here_T = domain_T == number
        increase_P = evidence.increase_T[here_T & evidence.scored_T]
        if len(increase_P):
            found[domain.name] = Spread(half_of(increase_P), float((increase_P > 0).mean()))
    return found


def half_of(increase_P: F64) -> float | None:
    """Return the smallest share of tokens that holds half of the loss gained; None if no loss rose."""
    gained_P = np.sort(np.where(np.isfinite(increase_P), np.maximum(increase_P, 0.0), 0.0))[::-1]
    held_P = np.cumsum(gained_P)
    if not held_P[-1]:
        return None
    return float(np.searchsorted(held_P, held_P[-1] / 2) + 1) / len(gained_P)
