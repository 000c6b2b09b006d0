"""How much memory an audit needs, from the specs alone, and how much of a stated limit is left to hold experts.

Nothing here depends on the number of layers or on a checkpoint's size: states, one layer's shared tensors, one
expert of each checkpoint, and the buffers of one batch.
"""

from __future__ import annotations

import ctypes
import math
import sys
from collections.abc import Sequence

from moe_atlas.auditing.batches import BATCH_TOKENS
from moe_atlas.errors import ResourceExhausted
from moe_atlas.families.spec import LayerSpec, ModelSpec, TensorRef
from moe_atlas.geometry.output import LOGIT_ELEMENTS

RUNTIME = 400 << 20  # interpreter, torch and its libraries
HELD = 1 << 29  # bytes of experts held between batches when no limit is stated


def minimum(
    specs: Sequence[ModelSpec], tokens: int, itemsize: int, *, everyone: bool, decoded: Sequence[bool] = ()
) -> int:
    """Bytes an audit needs at least, holding no expert between batches.

    Args:
        specs: the checkpoints under audit.
        tokens: probe tokens, whose states live throughout.
        itemsize: bytes of the compute dtype.
        everyone: whether all experts are evaluated.
        decoded: which checkpoints are quantised, and hold their tensors in float32 before they are cast.
    """
    copies = [3 if quantised else 2 for quantised in decoded] or [2] * len(specs)  # of 2 bytes an element
    width = specs[0].width
    batch = min(tokens, BATCH_TOKENS)
    states = len(specs) * tokens * width * itemsize
    sides = list(zip(specs, copies, strict=True))
    resident = sum(max(_shared_bytes(layer) for layer in spec.layers) * n for spec, n in sides)
    ends = sum(max(_bytes(spec.embed_refs), _bytes(spec.final_refs)) * 2 for spec in specs)
    experts = sum(max(_expert_bytes(layer) for layer in spec.layers) * n for spec, n in sides)
    moe = [layer.moe for layer in specs[0].layers if layer.moe]
    slots = max(m.router.experts + 2 if everyone else m.router.top_k + 2 for m in moe)
    rows = len(specs) * batch * slots * width * itemsize
    work = batch * width * 4 * 16 + LOGIT_ELEMENTS * 4 * 3 * len(specs)
    return RUNTIME + states + max(resident + experts + rows, ends) + work


def give_back() -> None:
    """Return freed memory to the system: glibc keeps what lies between the small survivors of every layer.

    Without it the peak grows with the depth of the model, though nothing is held.
    """
    if sys.platform.startswith("linux"):
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def held_experts(limit: int | None, needed: int) -> int:
    """Bytes of experts that may be held between batches.

    Raises:
        ResourceExhausted: E_MEMORY when the limit is below the minimum.
    """
    if limit is None:
        return HELD
    if limit < needed:
        raise ResourceExhausted(
            "E_MEMORY",
            f"--memory {_mib(limit)}",
            f"this audit needs at least {_mib(needed)}",
            "raise the limit, or register fewer or shorter windows",
        )
    return limit - needed


def _bytes(refs: Sequence[TensorRef]) -> int:
    return sum(math.prod(ref.shape) for ref in refs) * 2


def _shared_bytes(layer: LayerSpec) -> int:
    return _bytes(layer.refs)


def _expert_bytes(layer: LayerSpec) -> int:
    return _bytes(layer.moe.expert_refs(0)) if layer.moe else 0


def _mib(size: int) -> str:
    return f"{-(-size // (1 << 20))}MiB"
