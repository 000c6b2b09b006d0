"""The damage of each document, from the window data alone, and its distribution in each domain.

Legend: W windows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from moe_atlas.explanation.evidence import F64, Evidence
from moe_atlas.window_arrays import LAYER_ARRAYS, OUTPUTS

NATIVE = LAYER_ARRAYS["pair.native_boundary_drift"]
QUANTILES = (0.0, 0.1, 0.5, 0.9, 1.0)


@dataclass(frozen=True)
class Document:
    """The damage of one document; near-copies are one document, under the name of the first of them.

    Attributes:
        name: the document's own id.
        windows: numbers of its windows.
        base: loss of the base, nats per token, as the mean over its windows; infinite where it is not finite.
        tuned: loss of the tuned checkpoint.
        increase: tuned minus base; infinite where the tuned loss is not finite.
        replaced: share of members of routed sets that are replaced, over its tokens and all layers; None where it is
            not measured.
    """

    name: str
    windows: tuple[int, ...]
    base: float
    tuned: float
    increase: float
    replaced: float | None


@dataclass(frozen=True)
class DomainDamage:
    """The documents of one domain.

    Attributes:
        name: the domain's name.
        role: its role.
        documents: its documents, worst first.
        quantiles: of the documents' finite increases, at `QUANTILES`; empty if no document has one.
    """

    name: str
    role: str
    documents: tuple[Document, ...]
    quantiles: tuple[float, ...]

    @property
    def worse(self) -> list[Document]:
        """The documents whose loss rose, worst first."""
        return [document for document in self.documents if document.increase > 0]

    @property
    def unchanged(self) -> bool:
        """Whether every document has exactly the same loss in both checkpoints."""
        return all(document.increase == 0 for document in self.documents)


def damage_by_domain(evidence: Evidence) -> list[DomainDamage]:
    """Return the documents of every domain, in registered order."""
    base_W, tuned_W = (evidence.windows[OUTPUTS[f"nll_{side}"].name] for side in ("base", "tuned"))
    replaced_W = replaced_members(evidence)
    members: dict[int, dict[int, list[int]]] = {}
    for number, window in enumerate(evidence.probes.windows):
        members.setdefault(window.domain, {}).setdefault(window.document, []).append(number)
    found = []
    for index, domain in enumerate(evidence.probes.config.domains):
        documents = [
            _document(evidence, numbers, base_W, tuned_W, replaced_W)
            for numbers in members.get(index, {}).values()
        ]
        documents.sort(key=lambda document: (-document.increase, document.name))
        found.append(DomainDamage(domain.name, domain.role, tuple(documents), _quantiles(documents)))
    return found


def _document(
    evidence: Evidence, numbers: Sequence[int], base_W: F64, tuned_W: F64, replaced_W: F64 | None
) -> Document:
    """Return one document; as in the guard of single documents, each of its windows counts once."""
    base, tuned = (float(np.mean(values_W[numbers])) for values_W in (base_W, tuned_W))
    measured = replaced_W is not None and numbers[-1] < len(replaced_W)
    return Document(
        name=evidence.probes.windows[numbers[0]].document_id,
        windows=tuple(numbers),
        base=base,
        tuned=tuned,
        increase=tuned - base if np.isfinite(tuned) else float("inf"),
        replaced=float(np.mean(replaced_W[numbers])) if measured and replaced_W is not None else None,
    )


def replaced_members(evidence: Evidence) -> F64 | None:
    """Return the share of replaced members of routed sets over all layers, float64 [W] of base domains.

    Each checkpoint routes at its own states. None if no layer has the quantity.
    """
    arrays = [evidence.windows.get(NATIVE.at(layer)) for layer in evidence.layers]
    found = [array for array in arrays if array is not None]
    return np.mean(found, axis=0) if found else None


def _quantiles(documents: Sequence[Document]) -> tuple[float, ...]:
    finite = [document.increase for document in documents if np.isfinite(document.increase)]
    return tuple(float(value) for value in np.quantile(finite, QUANTILES)) if finite else ()
