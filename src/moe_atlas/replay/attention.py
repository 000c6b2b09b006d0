"""Softmax attention with shared key and value heads.

Shapes: W windows, S tokens of a window, D width, H heads, C head dimensions.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from moe_atlas.families.spec import GroupedQuery, Norm
from moe_atlas.replay.norm import normalise
from moe_atlas.replay.rope import rotate, tables

Weights = Mapping[str, Tensor]


def linear(w: Weights, role: str, x: Tensor) -> Tensor:
    """Matrix product with the weight of `role` and its bias where there is one, in the dtype of `x`."""
    bias = w.get(f"{role}.bias")
    return F.linear(x, w[role].to(x.dtype), None if bias is None else bias.to(x.dtype))


def grouped_query(m: GroupedQuery, w: Weights, x_WSD: Tensor) -> Tensor:
    """Attention output [W, S, D], before the residual is added."""
    windows, length, _ = x_WSD.shape
    q, k, v = (linear(w, role, x_WSD) for role in ("q_proj", "k_proj", "v_proj"))
    if m.qk_norm == "full":
        q, k = _qk_norm(m, w, q, k)
    q, k, v = (_clip(projected, m.clip) for projected in (q, k, v))
    q_WHSC = q.view(windows, length, m.heads, m.head_dim)
    k_WHSC = k.view(windows, length, m.kv_heads, m.head_dim)
    if m.qk_norm == "head":
        q_WHSC, k_WHSC = _qk_norm(m, w, q_WHSC, k_WHSC)
    q_WHSC, k_WHSC = q_WHSC.transpose(1, 2), k_WHSC.transpose(1, 2)
    v_WHSC = v.view(windows, length, m.kv_heads, m.v_dim).transpose(1, 2)
    if m.rope is not None:
        cos, sin = tables(m.rope, length, x_WSD.dtype, x_WSD.device)
        q_WHSC, k_WHSC = rotate(q_WHSC, cos, sin, m.rope), rotate(k_WHSC, cos, sin, m.rope)
    mask_SS = causal_mask(length, m.window, m.chunk, x_WSD.device)
    o_WHSC = attend(q_WHSC, _repeat(k_WHSC, m), _repeat(v_WHSC, m), mask_SS, m.scale)
    return linear(w, "o_proj", merge_heads(o_WHSC))


def attend(q_WHSC: Tensor, k_WHSC: Tensor, v_WHSC: Tensor, mask_SS: Tensor, scale: float) -> Tensor:
    """Masked softmax attention; probabilities in float32, products in the dtype of the arguments."""
    scores = torch.matmul(q_WHSC, k_WHSC.transpose(2, 3)) * scale
    scores = scores.masked_fill(~mask_SS, float("-inf"))
    return torch.matmul(torch.softmax(scores, dim=-1, dtype=torch.float32).to(q_WHSC.dtype), v_WHSC)


def merge_heads(o_WHSC: Tensor) -> Tensor:
    """[W, H, S, C] to [W, S, H·C]."""
    return o_WHSC.transpose(1, 2).flatten(2).contiguous()


def causal_mask(length: int, window: int | None, chunk: int | None, device: torch.device) -> Tensor:
    """Which keys (columns) a query (row) may see: the past, within its window or block."""
    query = torch.arange(length, device=device)[:, None]
    key = torch.arange(length, device=device)[None, :]
    seen = key <= query
    if window is not None:
        seen &= key > query - window
    if chunk is not None:
        seen &= key // chunk == query // chunk
    return seen


def _clip(x: Tensor, limit: float | None) -> Tensor:
    return x if limit is None else x.clamp(-limit, limit)


def _qk_norm(m: GroupedQuery, w: Weights, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    spec = m.qk_norm_spec
    assert isinstance(spec, Norm), "a q/k norm with weights needs its kind and epsilon"
    return (
        normalise(q, spec, w["q_norm"], w.get("q_norm.bias")),
        normalise(k, spec, w["k_norm"], w.get("k_norm.bias")),
    )


def _repeat(x_WHSC: Tensor, m: GroupedQuery) -> Tensor:
    return x_WHSC.repeat_interleave(m.heads // m.kv_heads, dim=1) if m.heads != m.kv_heads else x_WHSC
