"""Token mixers as data: attention and recurrences, with their norms and rotations.

These dataclasses belong to the vocabulary of `moe_atlas.models.spec`. This module touches no tensor.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Precision = Literal["float32", "native"]
"""`native`: compute in the activation dtype, as the reference implementation does; `float32`: upcast first."""


@dataclass(frozen=True)
class Norm:
    """A normalisation: its kind and the model's own epsilon."""

    kind: Literal["rms", "rms32", "rms32_stored", "rms1p", "layer"]
    """`rms`: w·cast(y); `rms32`: cast(w·y); `rms32_stored`: cast(w·y) with w in its stored dtype;
    `rms1p`: cast((1+w)·y); `layer`: LayerNorm, y = (x−mean)/σ."""
    eps: float
    bias: bool = False


@dataclass(frozen=True)
class Rope:
    """Rotary position embedding of the first `dim` dimensions of a head; in latent attention, of the last `dim`."""

    dim: int
    theta: float
    pairing: Literal["halves", "pairs"]
    arithmetic: Literal["native", "float32", "mixed"]
    """`native`: cast cos and sin to the activation dtype and multiply there; `float32`: compute everything in
    float32; `mixed`: round cos and sin to the activation dtype, multiply in float32."""
    kind: Literal["default", "linear", "ntk_alpha", "llama3", "yarn", "longrope", "proportional"] = "default"
    params: Mapping[str, Any] = field(default_factory=dict)
    """Parameters of the scaling kind under their names in config.json, implied defaults included."""


@dataclass(frozen=True)
class Mixer:
    """Base class of every token mixer, attention or recurrent; the replay dispatches on the concrete type."""


@dataclass(frozen=True)
class GroupedQuery(Mixer):
    """Softmax attention in which groups of query heads share key and value heads."""

    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    rope: Rope | None
    v_dim: int
    window: int | None = None
    """Number of keys that a query sees, its own key included."""
    chunk: int | None = None
    """Positions per block; a query sees only the keys of its own block."""
    qkv_bias: bool = False
    out_bias: bool = False
    qk_norm: Literal["head", "head_after_rope", "full", "l2_after_rope"] | None = None
    """`head`: normalise each head; `full`: normalise the whole projected width; `l2_after_rope`: without weight."""
    qk_norm_spec: Norm | None = None
    clip: float | None = None
    """Absolute limit to which projected q, k and v are clamped."""
    sinks: bool = False
    softmax: Precision = "float32"
    output_gate: Literal["sigmoid", "sigmoid_from_q", "softplus", "softplus_head"] | None = None
    """Factor on the attention output, per element or per head, from a projection of the input;
    `sigmoid_from_q`: from the second half of each head of the q projection."""
    value_scale: float = 1.0
    keys_as_values: bool = False
    """Whether the values are the projected keys, before their norm and rotation."""
    value_norm: bool = False
    """Whether values are normalised per head by the kind of `qk_norm_spec`, without weight."""
    temperature: tuple[float, float] | None = None
    """(floor, scale) of the query factor log1p(floor((t + 1) / floor))·scale + 1 at position t."""


@dataclass(frozen=True)
class Indexer:
    """A cheap scoring attention that selects the `top_k` keys each query sees; with fewer keys it selects all."""

    heads: int
    dim: int
    top_k: int
    pairing: Literal["halves", "pairs"]


@dataclass(frozen=True)
class Latent(Mixer):
    """Multi-head latent attention: q, k and v have low rank, and all heads share the rotated part of the key."""

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
    """Factor on q before rotation."""
    kv_multiplier: float = 1.0
    """Factor on the normalised latent of k and v; it does not apply to the shared key part."""
    temperature: tuple[float, float] | None = None
    """(floor, scale) of the query factor log1p(floor(t / floor))·scale + 1 at position t."""
    indexer: Indexer | None = None
    longest: int | None = None
    """Longest window, in tokens, that the replay computes as the model does; None: no limit."""


@dataclass(frozen=True)
class Compressor:
    """Compressed keys: each is the mean of `rate` tokens under a softmax gate, channel by channel."""

    rate: int
    overlap: bool
    """Each block also includes the tokens of the previous block, through separate projections."""
    indexer: Indexer | None
    """Selects the blocks that a query sees, from its own compressed keys; None: a query sees all complete blocks."""


@dataclass(frozen=True)
class SharedKeyValue(Mixer):
    """Attention in which one sequence of vectors serves every head as both keys and values.

    The vectors are rotated as keys, so the output is rotated back. The output is projected first by groups of heads,
    then as a whole.
    """

    heads: int
    head_dim: int
    q_rank: int
    groups: int
    group_rank: int
    scale: float
    rope: Rope
    norm: Norm
    """Norm of the latent of q and of the keys; without weight, also of each head's q."""
    window: int
    """Number of single tokens that a query sees, its own token included."""
    compressor: Compressor | None


@dataclass(frozen=True)
class DeltaNet(Mixer):
    """Gated delta rule: each head keeps a matrix that decays, is corrected towards v at k, and is read at q."""

    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int
    kernel: int
    """Width of the causal convolution in front of q, k and v."""
    norm: Norm
    """Norm of each head's output, applied before the output gate."""
    grouped: bool
    """True: two projection matrices whose rows are grouped by key head; False: four matrices."""


@dataclass(frozen=True)
class KimiDelta(Mixer):
    """Gated delta rule with a decay per key channel; decay and output gate have low-rank projections."""

    heads: int
    dim: int
    """Dimensions of a key and of a value."""
    kernel: int
    """Width of the causal convolutions in front of q, k and v."""
    norm: Norm
    """Norm of each head's output, applied before the output gate."""


@dataclass(frozen=True)
class Mamba2(Mixer):
    """State-space duality: each head keeps a matrix that decays, adds x at B, and is read at C."""

    heads: int
    head_dim: int
    state_dim: int
    groups: int
    """Number of (B, C) sets, each shared by an equal number of heads; the output norm has as many separate parts."""
    kernel: int
    norm: Norm
    """Norm of the output, applied after the output gate."""
    least_step: float
    """Lower clamp of the step size."""
    conv_bias: bool
    bias: bool


@dataclass(frozen=True)
class Mamba1(Mixer):
    """Selective state space: each channel has a small state that decays; B writes the channel to it, and C reads it."""

    channels: int
    state_dim: int
    rank: int
    """Rank of the projection to step sizes."""
    kernel: int
    activation: Literal["silu", "gelu", "gelu_tanh", "relu2"]
    """Activation behind the convolution; the output's gate is silu."""
    norm: Norm
    """Norm of the step sizes' low-rank part, of B and of C."""
    conv_bias: bool
    bias: bool


@dataclass(frozen=True)
class Lightning(Mixer):
    """Linear attention without softmax: the matrix of each head decays at a fixed rate; k writes v, and q reads."""

    heads: int
    head_dim: int
    block: int
    """Number of tokens that are computed together."""
    slope: float
    """Factor of the layer on the decay rates: head h of H, counted from 1, keeps exp(−slope · 2^(−8h/H)) a token."""
    activation: Literal["silu", "gelu", "gelu_tanh", "relu2"]
    """Activation of q, k and v."""
    norm: Norm
    """Norm of the output of all heads together, before the gate."""


@dataclass(frozen=True)
class ShortConv(Mixer):
    """Gated short convolution: out(C · conv(B · x)), where B, C and x are projections of the input."""

    kernel: int
    bias: bool = False
