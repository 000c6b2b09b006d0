"""Perceptrons: routed experts, shared experts and dense layers.

Legend: P rows (evaluated token-expert pairs, or tokens), D model width, H hidden width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from moe_atlas.models.spec import FeedForward
from moe_atlas.replay.primitives.linear import Weights, linear


def _relu2(x: Tensor) -> Tensor:
    return torch.relu(x).square()


def _gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": _gelu_tanh,
    "relu2": _relu2,
}


def feed_forward(f: FeedForward, w: Weights, x_PD: Tensor, prefix: str = "") -> Tensor:
    """Return the output of one perceptron, [P, D] in the dtype of `x_PD`."""
    product = separate_linear if f.separate_bias else linear
    up_PH = product(w, f"{prefix}up_proj", x_PD)
    if f.gated:
        gate_PH = product(w, f"{prefix}gate_proj", x_PD)
        hidden_PH = gated_activation(f, gate_PH, up_PH)
    else:
        hidden_PH = ACTIVATIONS[f.activation](up_PH)
    return product(w, f"{prefix}down_proj", hidden_PH)


def separate_linear(w: Weights, role: str, x: Tensor) -> Tensor:
    """Multiply, round the product to the activation dtype, then add the bias."""
    return F.linear(x, w[role].to(x.dtype)) + w[f"{role}.bias"].to(x.dtype)


def gated_activation(f: FeedForward, gate_PH: Tensor, up_PH: Tensor) -> Tensor:
    """Return the hidden state of a gated perceptron, [P, H]: the activated gate times the up projection."""
    if f.limit is not None:
        gate_PH, up_PH = gate_PH.clamp(max=f.limit), up_PH.clamp(-f.limit, f.limit)
    if f.activation == "clamped_swiglu":
        assert f.limit is not None and f.alpha is not None, "clamped_swiglu is defined by both"  # noqa: PT018
        return (up_PH + 1) * (gate_PH * torch.sigmoid(gate_PH * f.alpha))
    return ACTIVATIONS[f.activation](gate_PH) * up_PH
