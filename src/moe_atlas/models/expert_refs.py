"""Where routed experts are stored: as one tensor each, or fused, transposed or stacked into one tensor per layer."""

from __future__ import annotations

from moe_atlas.models.names import stored_suffix
from moe_atlas.models.spec import MoESpec, TensorRef
from moe_atlas.models.tensors import Need, feed_forward


def expert_refs(moe: MoESpec, expert: int) -> tuple[TensorRef, ...]:
    """Return references to the tensors of one routed expert.

    Roles and canonical names do not depend on the stored layout. An identity expert has no tensors.
    """
    real = moe.router.experts - moe.identity_experts
    if expert >= real:
        return ()
    return tuple(_ref(moe, expert, need) for need in feed_forward(moe.experts, moe.width))


def _ref(moe: MoESpec, expert: int, need: Need) -> TensorRef:
    layout = moe.bound_layout
    role, shape = need
    matrix = role.split(".")[0]
    name = layout.canonical[matrix].format(e=expert) + stored_suffix(role)
    if layout.kind == "split":
        stored = layout.stored[matrix].format(e=expert) + stored_suffix(role)
        return TensorRef(name, "routed_expert", shape, role, stored)
    if layout.kind == "by_matrix":
        stored = layout.stored[matrix] + stored_suffix(role)
        return TensorRef(name, "routed_expert", shape, role, stored, index=expert)
    if layout.kind == "stacked":
        span = (expert * moe.experts.width, (expert + 1) * moe.experts.width)
        transposed = matrix == "down_proj"
        stored = layout.stored[matrix]
        return TensorRef(name, "routed_expert", shape, role, stored, span=span, transpose=transposed)
    bias = role.endswith(".bias")
    stored = layout.stored[f"{matrix}.bias" if bias else matrix]
    rows = None if matrix == "down_proj" or not moe.gated else _rows(moe, matrix)
    transposed = layout.kind == "fused_transposed" and not bias
    return TensorRef(
        name, "routed_expert", shape, role, stored, index=expert, rows=rows, transpose=transposed
    )


def _rows(moe: MoESpec, matrix: str) -> tuple[int, int, int]:
    """Return the rows (start, stop, step) of the fused first matrix that belong to the gate or the up projection."""
    height, second = moe.experts.width, int(matrix == "up_proj")
    if moe.bound_layout.interleaved:
        return (second, 2 * height, 2)
    return (second * height, (second + 1) * height, 1)
