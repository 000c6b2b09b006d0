"""How a decoder mixes its tokens, as data: attention and recurrences, with the norms and rotations they are made of.

Part of the vocabulary of `moe_atlas.models.spec`; nothing here touches a tensor.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Precision = Literal["float32", "native"]
"""`native`: the dtype of the activations, as the reference implementation does; `float32`: upcast first."""


@dataclass(frozen=True)
class Norm:
    """A normalisation: kind and the model's own epsilon."""

    kind: Literal["rms", "rms32", "rms32_stored", "rms1p", "layer"]
    """`rms`: w·cast(y); `rms32`: cast(w·y); `rms32_stored`: the same with w as stored, not in the activation
    dtype; `rms1p`: cast((1+w)·y); `layer`: LayerNorm, y = (x−mean)/σ."""
    eps: float
    bias: bool = False


@dataclass(frozen=True)
class Rope:
    """Rotary position embedding of the first `dim` dimensions of a head (latent attention: the last ones)."""

    dim: int
    theta: float
    pairing: Literal["halves", "pairs"]
    arithmetic: Literal["native", "float32", "mixed"]
    """`native`: cos and sin cast to the activation dtype and multiplied there; `float32`: everything in
    float32; `mixed`: cos and sin rounded to the activation dtype, multiplied in float32."""
    kind: Literal["default", "linear", "ntk_alpha", "llama3", "yarn", "longrope", "proportional"] = "default"
    params: Mapping[str, Any] = field(default_factory=dict)
    """Parameters of the scaling kind, names as in config.json, with every implied default filled in."""


@dataclass(frozen=True)
class Mixer:
    """Base of every token mixer (attention or recurrent); the replay dispatches on the concrete type."""


@dataclass(frozen=True)
class GroupedQuery(Mixer):
    """Softmax attention with shared key and value heads."""

    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    rope: Rope | None
    v_dim: int
    window: int | None = None
    """Keys seen by a query, itself included."""
    chunk: int | None = None
    """Queries see only keys of their own block of this many positions."""
    qkv_bias: bool = False
    out_bias: bool = False
    qk_norm: Literal["head", "head_after_rope", "full", "l2_after_rope"] | None = None
    """`head`: per head; `full`: over the whole projected width; `l2_after_rope`: without weight."""
    qk_norm_spec: Norm | None = None
    clip: float | None = None
    """Clamp of the projected q, k and v."""
    sinks: bool = False
    softmax: Precision = "float32"
    output_gate: Literal["sigmoid", "sigmoid_from_q", "softplus", "softplus_head"] | None = None
    """Factor on the attention output from its own projection of the input: per element or per head;
    `sigmoid_from_q`: the second half of each head of the q projection."""
    value_scale: float = 1.0
    keys_as_values: bool = False
    """Values are the projected keys, as they are in front of their norm and rotation."""
    value_norm: bool = False
    """Values are normalised per head by the kind of `qk_norm_spec`, without weight."""
    temperature: tuple[float, float] | None = None
    """(floor, scale) of the query factor log1p(floor((t + 1) / floor))·scale + 1 at position t."""


@dataclass(frozen=True)
class Indexer:
    """A cheap attention of its own that picks which keys a query sees at all, once there are more than `top_k`."""

    heads: int
    dim: int
    top_k: int
    pairing: Literal["halves", "pairs"]


@dataclass(frozen=True)
class Latent(Mixer):
    """Multi-head latent attention: low-rank q and kv, position in a key part that all heads share."""

    heads: int
    q_rank: int | None
    """None: q is projected directly."""
    kv_rank: int
    nope_dim: int
    rope_dim: int
    v_dim: int
    scale: float
    rope: Rope | None
    bias: bool
    latent_eps: float
    q_multiplier: float = 1.0
    """Factor on q, before it is rotated."""
    kv_multiplier: float = 1.0
    """Factor on the normalised latent of k and v; the shared key part goes without."""
    temperature: tuple[float, float] | None = None
    """(floor, scale) of the query factor log1p(floor(t / floor))·scale + 1 at position t."""
    indexer: Indexer | None = None
    longest: int | None = None
    """Tokens of the longest window that is replayed as the model computes it; None without a limit."""


@dataclass(frozen=True)
class Compressor:
    """Keys that each stand for `rate` tokens: their mean under a softmax gate, channel by channel."""

    rate: int
    overlap: bool
    """A block also takes in the tokens of the one before, by projections of their own."""
    indexer: Indexer | None
    """Picks which blocks a query sees, from keys compressed alike; None: all that are complete."""


@dataclass(frozen=True)
class SharedKeyValue(Mixer):
    """Attention to one sequence of vectors that are key and value of every head at once.

    They are rotated as keys, so the output is rotated back; it is projected in groups of heads, then together.
    """

    heads: int
    head_dim: int
    q_rank: int
    groups: int
    group_rank: int
    scale: float
    rope: Rope
    norm: Norm
    """Of q's latent, of the keys and, without weight, of every head's q."""
    window: int
    """Single tokens seen by a query, itself included."""
    compressor: Compressor | None


@dataclass(frozen=True)
class DeltaNet(Mixer):
    """Gated delta rule: a matrix per head that decays and is corrected towards v at k, read at q."""

    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int
    kernel: int
    """Width of the causal convolution in front of q, k and v."""
    norm: Norm
    """Of each head's output, before it meets its gate."""
    grouped: bool
    """Projections come in two matrices, their rows grouped by key head; False: in four."""


@dataclass(frozen=True)
class KimiDelta(Mixer):
    """Gated delta rule whose state decays by channel of the key; decay and output gate are projected at low rank."""

    heads: int
    dim: int
    """Dimensions of a key and of a value."""
    kernel: int
    """Width of the causal convolutions in front of q, k and v."""
    norm: Norm
    """Of each head's output, before it meets its gate."""


@dataclass(frozen=True)
class Mamba2(Mixer):
    """State-space duality: a matrix per head that decays and takes in x at B, read at C."""

    heads: int
    head_dim: int
    state_dim: int
    groups: int
    """Sets of B and C, shared by equal numbers of heads; as many parts of the output are normalised by themselves."""
    kernel: int
    norm: Norm
    """Of the output, after it has met its gate."""
    least_step: float
    """Lower clamp of the step size."""
    conv_bias: bool
    bias: bool


@dataclass(frozen=True)
class Mamba1(Mixer):
    """Selective state space: a small state for every channel that decays and takes in the channel at B, read at C."""

    channels: int
    state_dim: int
    rank: int
    """Of the projection that step sizes come from."""
    kernel: int
    activation: Literal["silu", "gelu", "gelu_tanh", "relu2"]
    """Behind the convolution; the output's gate is silu."""
    norm: Norm
    """Of the step sizes' low-rank part, of B and of C."""
    conv_bias: bool
    bias: bool


@dataclass(frozen=True)
class Lightning(Mixer):
    """Linear attention without softmax: a matrix per head decays at a fixed rate, takes in v at k, and is read at q."""

    heads: int
    head_dim: int
    block: int
    """Tokens that are computed together."""
    slope: float
    """Factor of the layer on the decay rates: head h of H, counted from 1, keeps exp(−slope · 2^(−8h/H)) a token."""
    activation: Literal["silu", "gelu", "gelu_tanh", "relu2"]
    """Of q, k and v."""
    norm: Norm
    """Of the output of all heads together, before it meets its gate."""


@dataclass(frozen=True)
class ShortConv(Mixer):
    """Gated short convolution: out(C · conv(B · x)) with B, C and x projected from the input."""

    kernel: int
    bias: bool = False
