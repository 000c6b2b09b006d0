"""Check tables that give each token id its experts: every entry must be an expert of the layer.

Legend: V vocabulary, K experts per token.
"""

from __future__ import annotations

from moe_atlas.checkpoint.reader import Reader
from moe_atlas.checkpoint.source import TensorSource
from moe_atlas.errors import InputRefused
from moe_atlas.models.names import ROUTER_TABLE
from moe_atlas.models.spec import ModelSpec


def require_experts(checkpoint: TensorSource, spec: ModelSpec) -> None:
    """Refuse a table that names an expert which the layer does not have.

    Raises:
        InputRefused: `E_FAMILY` with the first such row.
        IntegrityError: `E_CHANGED` when a file is no longer the one that was opened.
    """
    reader = Reader(checkpoint)
    for layer in spec.layers:
        for ref in layer.refs:
            if ref.role != ROUTER_TABLE or layer.moe is None:
                continue
            table_VK, experts = reader.read(ref.stored), layer.moe.router.experts
            odd_V = ((table_VK < 0) | (table_VK >= experts)).any(-1)
            if odd_V.any():
                row = int(odd_V.nonzero()[0])
                raise InputRefused(
                    "E_FAMILY",
                    f"{checkpoint.label}: {ref.stored}",
                    f"expected experts 0 to {experts - 1} for every token id, found {table_VK[row].tolist()} for "
                    f"token {row}",
                    "store the table that the checkpoint was trained with",
                )
