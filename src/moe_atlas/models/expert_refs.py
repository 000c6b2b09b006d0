"""Where the routed experts are: one tensor each, or fused, transposed or stacked into one per layer."""

from __future__ import annotations

from moe_atlas.models.names import stored_suffix
from moe_atlas.models.spec import MoESpec, TensorRef
from moe_atlas.models.tensors import Need, feed_forward


def expert_refs(moe: MoESpec, expert: int) -> tuple[TensorRef, ...]:
    """The tensors of one routed expert, the same roles and canonical names whatever the stored layout."""
    real = moe.router.experts - moe.identity_experts
    if expert >= real:
        return ()
    return tuple(_ref(moe, expert, need) for need in feed_forward(moe.experts, moe.width))


def _ref(moe: MoESpec, expert: int, need: Need) -> TensorRef:
    layout = moe.layout
    assert layout is not None, "expert tensors are known only after binding to a checkpoint"
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
        turned = matrix == "down_proj"
        stored = layout.stored[matrix]
        return TensorRef(name, "routed_expert", shape, role, stored, span=span, transpose=turned)
    bias = role.endswith(".bias")
    stored = layout.stored[f"{matrix}.bias" if bias else matrix]
    rows_of = None if matrix == "down_proj" or not moe.gated else _rows(moe, matrix)
    turned = layout.kind == "fused_transposed" and not bias
    return TensorRef(name, "routed_expert", shape, role, stored, index=expert, rows=rows_of, transpose=turned)


def _rows(moe: MoESpec, matrix: str) -> tuple[int, int, int]:
    """Which rows of the fused first matrix are gate and which are up."""
    assert moe.layout is not None, "expert tensors are known only after binding to a checkpoint"
    height, second = moe.experts.width, int(matrix == "up_proj")
    if moe.layout.interleaved:
        return (second, 2 * height, 2)
    return (second * height, (second + 1) * height, 1)
