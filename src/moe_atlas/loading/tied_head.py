"""Check a stored head that the configuration ties to the embedding: the two tensors must hold the same values.

Legend: C rows at a time, D model width.
"""

from __future__ import annotations

from torch import Tensor

from moe_atlas.checkpoint.reader import Reader
from moe_atlas.checkpoint.source import TensorSource
from moe_atlas.errors import InputRefused
from moe_atlas.loading.load import load_rows
from moe_atlas.models.spec import ModelSpec

PIECE = 1 << 22  # elements of each tensor held in memory at a time


def require_equal(checkpoint: TensorSource, spec: ModelSpec) -> None:
    """Compare the stored head with the stored embedding, piece by piece, up to the first difference.

    transformers 5 ties the two tensors if they are equal and uses the stored head otherwise. transformers 4, and
    servers that skip the head, use the embedding. So every loader sees the same model only if the tensors are equal.

    Raises:
        InputRefused: `E_FAMILY` when the tensors hold different values.
        IntegrityError: `E_CHANGED` when a file changed after it was opened.
    """
    embedding, head = spec.embed_refs[0], next(ref for ref in spec.final_refs if ref.role == "head")
    reader, step = Reader(checkpoint), max(1, PIECE // spec.width)
    for first in range(0, spec.vocab, step):
        rows = range(first, min(first + step, spec.vocab))
        differs_C = different_rows(*(load_rows(reader, ref, rows) for ref in (embedding, head)))
        if differs_C.any():
            row = first + int(differs_C.nonzero()[0])
            raise InputRefused(
                "E_FAMILY",
                f"{checkpoint.label}: {head.stored}",
                f"config.json ties it to {embedding.stored} (tie_word_embeddings), but the two tensors differ from row "
                f"{row} on: some loaders use the stored head for the output, others the embedding",
                "save the model again, untied if the stored head is meant, tied if it is not",
            )


def different_rows(one_CD: Tensor, other_CD: Tensor) -> Tensor:
    """Return which rows hold different values, bool [C]; the dtype does not matter, and NaN equals NaN."""
    same_CD = (one_CD == other_CD) | (one_CD.isnan() & other_CD.isnan())
    return ~same_CD.all(-1)
