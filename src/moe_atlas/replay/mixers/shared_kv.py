"""Attention with vectors that serve as both keys and values (DeepSeek-V4, 2.3).

A query sees near tokens one by one, and far tokens as compressed blocks.

Legend: W windows, S tokens of a window, B complete blocks of R tokens, D model width, H heads, C head dimensions, Q
rank of the q latent.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from moe_atlas.models.mixers import Compressor, SharedKeyValue
from moe_atlas.replay.mixers.attention import attend, causal_mask
from moe_atlas.replay.primitives.linear import Weights, linear
from moe_atlas.replay.primitives.norm import normalise
from moe_atlas.replay.primitives.rope import rotate_last, tables


def shared_key_value(m: SharedKeyValue, w: Weights, x_WSD: Tensor) -> Tensor:
    """Return the attention output, [W, S, D], before the residual is added."""
    length = x_WSD.shape[1]
    cos, sin = tables(m.rope, length, x_WSD.dtype, x_WSD.device)
    latent_WSQ = normalise(linear(w, "q_a_proj", x_WSD), m.norm, w["q_a_layernorm"])
    q_WHSC = linear(w, "q_b_proj", latent_WSQ).unflatten(-1, (m.heads, -1)).transpose(1, 2)
    mean_WHS1 = q_WHSC.float().square().mean(-1, keepdim=True)
    q_WHSC = q_WHSC * torch.rsqrt(mean_WHS1 + m.norm.eps).to(
        q_WHSC.dtype
    )  # the reference rounds this factor as well
    kv_W1SC = normalise(linear(w, "kv_proj", x_WSD), m.norm, w["kv_norm"])[:, None]
    q_WHSC, kv_W1SC = rotate_last(q_WHSC, cos, sin, m.rope), rotate_last(kv_W1SC, cos, sin, m.rope)
    mask = causal_mask(length, m.window, None, x_WSD.device)
    if m.compressor is not None and length >= m.compressor.rate:
        blocks_W1BC = compress(m, m.compressor, w, "compressor", x_WSD)
        seen = complete_blocks(m.compressor.rate, length, x_WSD.device)
        if m.compressor.indexer is not None:
            seen = chosen_blocks(m, m.compressor, w, x_WSD, latent_WSQ, seen)
            mask = mask.expand(*seen.shape[:2], -1, -1)
        kv_W1SC, mask = torch.cat((kv_W1SC, blocks_W1BC), dim=2), torch.cat((mask, seen), dim=-1)
    kv_WHSC = kv_W1SC.expand(-1, m.heads, -1, -1)
    o_WHSC = attend(q_WHSC, kv_WHSC, kv_WHSC, mask, m.scale, "float32", w["sinks"])
    return grouped_output(m, w, rotate_last(o_WHSC, cos, -sin, m.rope))


def grouped_output(m: SharedKeyValue, w: Weights, o_WHSC: Tensor) -> Tensor:
    """Return the output, [W, S, D]: project each group of heads separately, then all groups together."""
    windows, heads, length, dim = o_WHSC.shape
    rows = o_WHSC.transpose(1, 2).reshape(windows * length, m.groups, heads // m.groups * dim).transpose(0, 1)
    matrices = w["o_a_proj"].to(rows.dtype).unflatten(0, (m.groups, -1)).mT
    return linear(w, "o_proj", torch.bmm(rows, matrices).transpose(0, 1).reshape(windows, length, -1))


def complete_blocks(rate: int, length: int, device: torch.device) -> Tensor:
    """Return which blocks a query may see, bool [S, B]: blocks that end at or before the query."""
    position_S1 = torch.arange(length, device=device)[:, None]
    return torch.arange(length // rate, device=device) < (position_S1 + 1) // rate


def compress(m: SharedKeyValue, c: Compressor, w: Weights, role: str, x_WSD: Tensor) -> Tensor:
    """Return one vector per complete block, [W, 1, B, C], rotated to its first position (Eq. 9-12, 20-23).

    Gates and their softmax are float32 because the position bias is float32.
    """
    count = x_WSD.shape[1] // c.rate
    kv_WBRC, gate_WBRC = (
        linear(w, f"{role}.{part}", x_WSD)[:, : count * c.rate].unflatten(1, (count, c.rate))
        for part in ("kv_proj", "gate_proj")
    )
    gate_WBRC = gate_WBRC + w[f"{role}.position_bias"].float()
    if c.overlap:
        kv_WBRC, gate_WBRC = overlapped(kv_WBRC, 0.0), overlapped(gate_WBRC, float("-inf"))
    share_WBRC = gate_WBRC.softmax(dim=2, dtype=torch.float32).to(kv_WBRC.dtype)
    blocks_WBC = normalise((kv_WBRC * share_WBRC).sum(2), m.norm, w[f"{role}.kv_norm"])
    cos, sin = (
        t[: count * c.rate : c.rate] for t in tables(m.rope, x_WSD.shape[1], x_WSD.dtype, x_WSD.device)
    )
    return rotate_last(blocks_WBC[:, None], cos, sin, m.rope)


def overlapped(x_WBRC: Tensor, nothing: float) -> Tensor:
    """Return blocks of 2R positions, [W, B, 2R, C/2].

    The first R positions hold the first half of the previous block's channels, the last R the second half of the
    block's own channels.
    """
    ahead, own = x_WBRC.chunk(2, dim=-1)
    before = torch.cat((torch.full_like(ahead[:, :1], nothing), ahead[:, :-1]), dim=1)
    return torch.cat((before, own), dim=2)


def chosen_blocks(
    m: SharedKeyValue, c: Compressor, w: Weights, x_WSD: Tensor, latent_WSQ: Tensor, seen_SB: Tensor
) -> Tensor:
    """Return which blocks each query sees, bool [W, 1, S, B]: the indexer's best `top_k` in `seen_SB` (Eq. 13-17)."""
    index = c.indexer
    assert index is not None, "only a compressor with an indexer chooses its blocks"
    indexed = replace(m, rope=replace(m.rope, pairing=index.pairing))
    keys_W1BC = compress(indexed, c, w, "indexer", x_WSD)
    cos, sin = tables(m.rope, x_WSD.shape[1], x_WSD.dtype, x_WSD.device)
    q_WHSC = linear(w, "indexer.wq_b", latent_WSQ).unflatten(-1, (index.heads, -1)).transpose(1, 2)
    q_WSHC = rotate_last(q_WHSC, cos, sin, indexed.rope).transpose(1, 2)
    scores_WSHB = torch.relu(q_WSHC.float() @ keys_W1BC.float().mT) * index.dim**-0.5
    weights_WSH = linear(w, "indexer.weights_proj", x_WSD).float() * index.heads**-0.5
    total_WSB = (scores_WSHB * weights_WSH[..., None]).sum(2).masked_fill(~seen_SB, float("-inf"))
    best = total_WSB.topk(min(index.top_k, total_WSB.shape[-1]), dim=-1).indices
    chosen_WSB = torch.zeros_like(total_WSB, dtype=torch.bool).scatter_(-1, best, value=True)
    return (chosen_WSB & seen_SB)[:, None]
