"""The indexer of sparse attention (DeepSeek-V3.2-Exp, Eq. 1-2): it selects the keys that a query sees.

The released kernels score in float8 after a Hadamard rotation, which changes products only by rounding. This module
scores in float32, as the reference implementation does.

Legend: W windows, S tokens of a window, D model width, H index heads, C index dimensions, R rank of the q latent.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from moe_atlas.models.mixers import Latent
from moe_atlas.models.tensors import INDEX_NORM
from moe_atlas.replay.primitives.linear import Weights, linear
from moe_atlas.replay.primitives.norm import normalise
from moe_atlas.replay.primitives.rope import rotate, tables


def chosen_keys(m: Latent, w: Weights, x_WSD: Tensor, latent_WSR: Tensor, mask_SS: Tensor) -> Tensor:
    """Return which keys (last dimension) each query sees, bool [W, 1, S, S]: the best `top_k` keys inside `mask_SS`."""
    index = m.indexer
    assert index is not None, "only attention with an indexer chooses its keys"
    assert m.rope is not None, "an indexer rotates its queries and keys"
    length = x_WSD.shape[1]
    rope = replace(m.rope, pairing=index.pairing)
    cos, sin = tables(rope, length, x_WSD.dtype, x_WSD.device)
    q_WHSC = linear(w, "indexer.wq_b", latent_WSR).unflatten(-1, (index.heads, -1)).transpose(1, 2)
    k_WSC = normalise(
        linear(w, "indexer.wk", x_WSD), INDEX_NORM, w["indexer.k_norm"], w["indexer.k_norm.bias"]
    )
    q_WHSC, k_W1SC = rotate(q_WHSC, cos, sin, rope), rotate(k_WSC[:, None], cos, sin, rope)
    scores_WHSS = torch.relu(q_WHSC.float() @ k_W1SC.float().transpose(-1, -2) * index.dim**-0.5)
    weights_WSH = linear(w, "indexer.weights_proj", x_WSD).float() * index.heads**-0.5
    total_WSS = (weights_WSH.transpose(1, 2)[..., None] * scores_WHSS).sum(1)
    best = total_WSS.masked_fill(~mask_SS, float("-inf")).topk(min(index.top_k, length), dim=-1).indices
    seen_WSS = torch.zeros_like(total_WSS, dtype=torch.bool).scatter_(-1, best, value=True)
    return (seen_WSS & mask_SS)[:, None]
