"""Which experts took over whose tokens, on the windows of base domains, each checkpoint at its own states.

Legend: W windows, T tokens of the windows of base domains, M replaced members of their routed sets, E experts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moe_atlas.explanation.evidence import Evidence
from moe_atlas.token_arrays import move_names
from moe_atlas.views.measured import LayerView
from moe_atlas.window_arrays import LAYER_ARRAYS

COUNTS = LAYER_ARRAYS["base.counts"]


@dataclass(frozen=True)
class Flow:
    """Tokens that left one expert for another.

    Attributes:
        lost: the expert that they left.
        gained: the expert that took its place.
        tokens: how many did.
        of: the tokens that the base routes to the expert that they left.
    """

    lost: int
    gained: int
    tokens: int
    of: int


@dataclass(frozen=True)
class LayerFlows:
    """The flows of one routed layer.

    Attributes:
        layer: index of the layer.
        protected: whether the layer is protected.
        changed: share of tokens whose routed set changed.
        replaced: share of members of routed sets that are replaced.
        pairs: number of pairs of experts between which tokens flow.
        largest: the largest flows, largest first.
    """

    layer: int
    protected: bool
    changed: float
    replaced: float
    pairs: int
    largest: tuple[Flow, ...]


def flows(evidence: Evidence, most: int) -> list[LayerFlows]:
    """Return the flows of every routed layer; needs token data.

    Args:
        evidence: the evidence.
        most: number of flows to name in each layer.
    """
    windows = evidence.probes.base_windows
    tokens = sum(len(window.tokens) for window in windows)
    return [_layer_flows(evidence, facts, tokens, most) for facts in evidence.receipt.layers]


def _layer_flows(evidence: Evidence, facts: LayerView, tokens: int, most: int) -> LayerFlows:
    layer, experts = facts.layer, facts.experts
    names = move_names(layer)
    moved_T = evidence.kept[names.moved][:tokens].astype(np.int64)
    members = int(moved_T.sum())
    lost_M, gained_M = (evidence.kept[name][:members].astype(np.int64) for name in (names.lost, names.gained))
    pairs, counts = np.unique(lost_M * experts + gained_M, return_counts=True)
    largest = np.lexsort((pairs, -counts))[:most]
    load_E = evidence.windows[COUNTS.at(layer)].sum(0)
    return LayerFlows(
        layer=layer,
        protected=facts.protected,
        changed=float((moved_T > 0).mean()),
        replaced=members / (tokens * facts.top_k),
        pairs=len(pairs),
        largest=tuple(
            Flow(
                int(pairs[n] // experts),
                int(pairs[n] % experts),
                int(counts[n]),
                int(load_E[pairs[n] // experts]),
            )
            for n in largest
        ),
    )
