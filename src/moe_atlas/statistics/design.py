"""The resampling design: windows belong to documents (clusters), and documents belong to domains (strata).

Legend: W windows, C documents, B resamples, Q quantities.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from moe_atlas.statistics import generator

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]


@dataclass(frozen=True)
class Design:
    """The document and domain of every window, and the resamples of documents.

    Attributes:
        domains: the domain numbers in use, ascending; each domain is one stratum.
        slices: the slice of each stratum among the C documents.
        document_W: compact document number 0..C-1 of every window; documents are sorted by domain.
        seed: the registered seed; with the domain number, it determines every resample.
        resamples: B, the number of resamples.
    """

    domains: tuple[int, ...]
    slices: tuple[slice, ...]
    document_W: I64
    seed: int
    resamples: int

    @property
    def documents(self) -> int:
        """C, the number of documents in all strata."""
        return self.slices[-1].stop if self.slices else 0

    @property
    def sizes(self) -> tuple[int, ...]:
        """The number of documents in each stratum."""
        return tuple(s.stop - s.start for s in self.slices)

    @cached_property
    def weights_BC(self) -> F64:
        """How often each resample draws each document, float64 [B, C] of small integers.

        Every stratum keeps its number of documents. The draws of a stratum depend only on (seed, domain), so the
        resamples of a domain do not depend on the other domains.
        """
        weights_BC = np.empty((self.resamples, self.documents), dtype=np.float64)
        for domain, part in zip(self.domains, self.slices, strict=True):
            weights_BC[:, part] = _multinomial(self.seed, domain, self.resamples, part.stop - part.start)
        return weights_BC

    def sums(self, values_WQ: F64) -> F64:
        """Add up window rows per document: float64 [W, Q] to [C, Q]."""
        totals_CQ = np.zeros((self.documents, values_WQ.shape[1]), dtype=np.float64)
        np.add.at(totals_CQ, self.document_W, values_WQ)
        return totals_CQ


def make_design(
    domain_W: NDArray[np.integer], document_W: NDArray[np.integer], seed: int, resamples: int
) -> Design:
    """Return the design of W windows from their domain and document numbers.

    A pair (domain, document) identifies a document.

    Raises:
        ValueError: the two arrays are not vectors of equal length.
    """
    if domain_W.shape != document_W.shape or domain_W.ndim != 1:
        raise ValueError(
            f"domain and document must be equal vectors, found {domain_W.shape}, {document_W.shape}"
        )
    pairs = np.stack([domain_W.astype(np.int64), document_W.astype(np.int64)], axis=1)
    unique, inverse = np.unique(pairs, axis=0, return_inverse=True)
    domains, starts = np.unique(unique[:, 0], return_index=True)
    edges = [*starts.tolist(), len(unique)]
    slices = tuple(slice(a, b) for a, b in zip(edges[:-1], edges[1:], strict=True))
    return Design(
        tuple(int(d) for d in domains), slices, inverse.reshape(-1).astype(np.int64), seed, resamples
    )


def _multinomial(seed: int, domain: int, resamples: int, documents: int) -> F64:
    key = generator.stream_key(seed, domain)
    drawn = generator.integers(key, documents, resamples * documents)
    rows = np.repeat(np.arange(resamples, dtype=np.int64), documents)
    counts = np.bincount(rows * documents + drawn, minlength=resamples * documents)
    return counts.reshape(resamples, documents).astype(np.float64)
