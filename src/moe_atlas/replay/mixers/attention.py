"""Softmax attention in which groups of query heads share key and value heads.

Legend: W windows, S tokens of a window, D model width, H heads, C head dimensions.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from moe_atlas.models.mixers import GroupedQuery, Norm, Precision
from moe_atlas.replay.primitives.linear import Weights, linear
from moe_atlas.replay.primitives.norm import normalise, standardise
from moe_atlas.replay.primitives.rope import rotate, tables

PROBABILITIES = 1 << 21  # attention probabilities in memory at a time


def grouped_query(m: GroupedQuery, w: Weights, x_WSD: Tensor) -> Tensor:
    """Return the attention output, [W, S, D], before the residual is added."""
    windows, length, _ = x_WSD.shape
    q, k = linear(w, "q_proj", x_WSD), linear(w, "k_proj", x_WSD)
    v = k if m.keys_as_values else linear(w, "v_proj", x_WSD)
    if m.qk_norm == "full":
        q, k = _qk_norm(m, w, q, k)
    q, k, v = (_clip(projected, m.clip) for projected in (q, k, v))
    gate = None
    if m.output_gate == "sigmoid_from_q":
        q, gate = (half.flatten(2) for half in q.view(windows, length, m.heads, -1).chunk(2, dim=-1))
    q_WHSC = q.view(windows, length, m.heads, m.head_dim)
    k_WHSC = k.view(windows, length, m.kv_heads, m.head_dim)
    if m.qk_norm == "head":
        q_WHSC, k_WHSC = _qk_norm(m, w, q_WHSC, k_WHSC)
    q_WHSC, k_WHSC = q_WHSC.transpose(1, 2), k_WHSC.transpose(1, 2)
    v_WHSC = v.view(windows, length, m.kv_heads, m.v_dim).transpose(1, 2)
    if m.value_norm:
        assert m.qk_norm_spec is not None, "a norm of the values needs its kind and epsilon"
        v_WHSC = standardise(v_WHSC, m.qk_norm_spec).to(v_WHSC.dtype)
    if m.rope is not None:
        cos, sin = tables(m.rope, length, x_WSD.dtype, x_WSD.device)
        q_WHSC, k_WHSC = rotate(q_WHSC, cos, sin, m.rope), rotate(k_WHSC, cos, sin, m.rope)
    if m.qk_norm == "head_after_rope":
        q_WHSC, k_WHSC = _qk_norm(m, w, q_WHSC, k_WHSC)
    elif m.qk_norm == "l2_after_rope":
        assert m.qk_norm_spec is not None, "a q/k norm needs its kind and epsilon"
        q_WHSC, k_WHSC = (standardise(x, m.qk_norm_spec).to(x.dtype) for x in (q_WHSC, k_WHSC))
    if m.temperature is not None:
        q_WHSC = (q_WHSC * position_factor(*m.temperature, 1.0, length, x_WSD.device)).to(q_WHSC.dtype)
    if m.value_scale != 1.0:
        v_WHSC = v_WHSC * m.value_scale
    mask_SS = causal_mask(length, m.window, m.chunk, x_WSD.device)
    k_WHSC, v_WHSC = _repeat(k_WHSC, m), _repeat(v_WHSC, m)
    o_WSD = merge_heads(attend(q_WHSC, k_WHSC, v_WHSC, mask_SS, m.scale, m.softmax, w.get("sinks")))
    return linear(w, "o_proj", _gated(m, w, x_WSD, o_WSD, gate))


def attend(
    q_WHSC: Tensor,
    k_WHSC: Tensor,
    v_WHSC: Tensor,
    mask_SS: Tensor,
    scale: float,
    softmax: Precision = "float32",
    sinks_H: Tensor | None = None,
) -> Tensor:
    """Return the attention output of every head, [W, H, S, C], with at most `PROBABILITIES` probabilities at a time."""
    windows, heads, length = q_WHSC.shape[:3]
    rows = max(1, PROBABILITIES // (heads * length))
    if rows >= windows * length:
        return torch.matmul(probabilities(q_WHSC, k_WHSC, mask_SS, scale, softmax, sinks_H), v_WHSC)
    outputs = []
    for window in range(windows):
        q_1HSC, k_1HSC, v_1HSC = (x[window : window + 1] for x in (q_WHSC, k_WHSC, v_WHSC))
        mask = mask_SS[window : window + 1] if mask_SS.dim() == 4 and len(mask_SS) > 1 else mask_SS
        parts = [
            torch.matmul(
                probabilities(
                    q_1HSC[:, :, begin : begin + rows],
                    k_1HSC,
                    mask[..., begin : begin + rows, :],
                    scale,
                    softmax,
                    sinks_H,
                ),
                v_1HSC,
            )
            for begin in range(0, length, rows)
        ]
        outputs.append(torch.cat(parts, dim=2))
    return torch.cat(outputs)


def probabilities(
    q_WHSC: Tensor,
    k_WHSC: Tensor,
    mask_SS: Tensor,
    scale: float,
    softmax: Precision = "float32",
    sinks_H: Tensor | None = None,
) -> Tensor:
    """Return attention probabilities, [W, H, S, S] in the dtype of q; a sink takes a share, which is then dropped."""
    scores = torch.matmul(q_WHSC, k_WHSC.transpose(2, 3)).mul_(scale).masked_fill_(~mask_SS, float("-inf"))
    if sinks_H is not None:
        kept = scores.dtype if softmax == "native" else torch.float32
        sink = sinks_H.to(kept).view(1, -1, 1, 1).expand(len(scores), -1, scores.shape[2], 1)
        scores = torch.cat((scores, sink), dim=-1)
    if softmax == "native":
        probs = torch.softmax(scores - scores.amax(-1, keepdim=True), dim=-1)
    else:
        probs = torch.softmax(scores, dim=-1, dtype=torch.float32).to(q_WHSC.dtype)
    return probs if sinks_H is None else probs[..., :-1]


def position_factor(floor: float, scale: float, first: float, length: int, device: torch.device) -> Tensor:
    """Return the query factor that grows with the position, float32 [S, 1]; positions start at `first`."""
    position_S = torch.arange(length, dtype=torch.float32, device=device)
    return (torch.log1p(torch.floor((position_S + first) / floor)) * scale + 1.0)[:, None]


def merge_heads(o_WHSC: Tensor) -> Tensor:
    """Rearrange [W, H, S, C] to [W, S, H·C]."""
    return o_WHSC.transpose(1, 2).flatten(2).contiguous()


def causal_mask(length: int, window: int | None, chunk: int | None, device: torch.device) -> Tensor:
    """Return which keys (columns) a query (row) may see, bool [S, S]: the past within its window or block."""
    query = torch.arange(length, device=device)[:, None]
    key = torch.arange(length, device=device)[None, :]
    seen = key <= query
    if window is not None:
        seen &= key > query - window
    if chunk is not None:
        seen &= key // chunk == query // chunk
    return seen


def _gated(m: GroupedQuery, w: Weights, x_WSD: Tensor, o_WSD: Tensor, from_q: Tensor | None) -> Tensor:
    """Return the attention output multiplied by its gate."""
    if m.output_gate is None:
        return o_WSD
    if m.output_gate == "sigmoid_from_q":
        assert from_q is not None, "the gate is the second half of the q projection"
        return o_WSD * torch.sigmoid(from_q)
    gate = linear(w, "output_gate", x_WSD)
    if m.output_gate == "sigmoid":
        return o_WSD * torch.sigmoid(gate)
    gate = F.softplus(gate.float()).to(o_WSD.dtype)
    return o_WSD * (gate.repeat_interleave(m.v_dim, dim=-1) if m.output_gate == "softplus_head" else gate)


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
