"""What a look was asked for. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

DOCUMENTS = 60
MARGIN = 0.05
"""Nats per token: a twentieth of the perplexity."""


@dataclass(frozen=True)
class Request:
    """The documents of a look.

    Attributes:
        data: a folder of documents; None for the standard library.
        tokenizer: path of a ``tokenizer.json``, or ``bytes``; None for the one beside the base.
        documents: most documents of a domain.
        seed: seed of the choice of documents and of the places of windows in them.
        margin: nats per token by which a domain's loss must certainly rise to be a finding.
    """

    data: Path | None = None
    tokenizer: str | None = None
    documents: int = DOCUMENTS
    seed: int = 0
    margin: float = MARGIN
