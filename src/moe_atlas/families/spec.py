"""What a mixture-of-experts decoder is, as data: the one vocabulary that every family is written in.

Nothing here touches a tensor. A family file (`moe_atlas.families.*`) fills these dataclasses from
config.json, `moe_atlas.families.bind` adds where each tensor is stored, and `moe_atlas.replay` computes from
them. A field that changes routing has no default, so that no family can forget to decide it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, Literal

Precision = Literal["float32", "native"]
"""`native`: the dtype of the activations, as the reference implementation does; `float32`: upcast first."""


@dataclass(frozen=True)
class TensorRef:
    """One logical tensor and where its bytes are.

    The bytes of `stored` are read (entry `index` of its leading dimension where given), transposed where
    asked, and cut to `rows` (start, stop, step).
    """

    name: str
    """Canonical name: what a plain checkpoint with one tensor per expert calls it, whatever the stored
    layout."""
    kind: str
    """Ledger class: router, selection_bias, routed_expert, shared_expert, dense_mlp, attention, norm,
    embedding, head or other."""
    shape: tuple[int, ...]
    """Logical shape, after index, transpose and rows."""
    role: str
    """Key under which the replay finds it, unique within a layer: `q_proj`, `router`, `gate_proj`, …"""
    stored: str
    index: int | None = None
    span: tuple[int, int] | None = None
    """Entries of the stored leading dimension that are read at all, before transposing."""
    rows: tuple[int, int, int] | None = None
    transpose: bool = False


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
    kind: Literal["default", "linear", "ntk_alpha", "llama3", "yarn", "longrope"] = "default"
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
class ShortConv(Mixer):
    """Gated short convolution: out(C · conv(B · x)) with B, C and x projected from the input."""

    kernel: int
    bias: bool = False


@dataclass(frozen=True)
class RouterSpec:
    """How scores become an expert set and combine weights. Every field moves a number; none has a default."""

    experts: int
    top_k: int
    score: Literal["softmax", "sigmoid", "sqrtsoftplus"]
    """The map from logits to scores; also defines the full gate probability ρ."""
    dispatch: Literal["logits", "scores"]
    """What top-k is taken on, before bias and masks."""
    linear_bias: bool
    selection_bias: bool
    """A bias added to the dispatch score only; it never enters the combine weights."""
    selection_bias_dtype: Precision
    groups: int
    kept_groups: int
    group_score: Literal["none", "max", "top2_sum"]
    combine: Literal["scores", "softmax_of_chosen", "sigmoid_of_chosen", "sparsemixer"]
    """`scores`: the unbiased scores of the chosen; `…_of_chosen`: a map over the chosen logits alone."""
    renormalise: bool
    epsilon: float
    """Added to the denominator of the renormalisation."""
    floor: float
    """Lower clamp of that denominator."""
    scale: float
    """Factor on the combine weights."""
    matmul: Precision
    probabilities: Precision
    """Dtype in which softmax or sigmoid is evaluated."""
    weight_dtype: Precision
    """Dtype of the combine weight when it meets the expert output."""
    jitter: float
    """Relative band of sparsemixer; 0 elsewhere."""


@dataclass(frozen=True)
class FeedForward:
    """One multi-layer perceptron: an expert, the shared experts or a dense layer."""

    width: int
    activation: Literal["silu", "gelu", "gelu_tanh", "relu2", "clamped_swiglu"]
    gated: bool = True
    bias: bool = False
    limit: float | None = None
    """Upper clamp of the gate and clamp of the up projection, in front of the activation."""
    alpha: float | None = None
    """Slope of the sigmoid of `clamped_swiglu`."""
    separate_bias: bool = False
    """The product is rounded to the activation dtype before the bias is added."""


@dataclass(frozen=True)
class ExpertLayout:
    """Where the routed experts of one layer are stored; filled in by `moe_atlas.families.bind`."""

    kind: Literal["split", "fused", "fused_transposed", "stacked"]
    """`split`: one tensor per expert and matrix; `fused`: [E, 2H, D] and [E, D, H]; `fused_transposed`: [E,
    D, 2H] and [E, H, D]; `stacked`: [E·H, D] for each matrix."""
    canonical: Mapping[str, str]
    """Role to canonical name with `{e}`."""
    stored: Mapping[str, str]
    """Role to stored name, with `{e}` where split."""
    interleaved: bool = False
    """Fused gate and up rows alternate instead of standing in two halves."""


@dataclass(frozen=True)
class MoESpec:
    """A mixture-of-experts block and the norms around it."""

    router: RouterSpec
    experts: FeedForward
    width: int
    """Model width D."""
    pre_norm: bool
    """False: the router reads the raw residual and z is undefined."""
    norm_kind: str
    norm_eps: float
    post_norm: bool
    weight_on_input: bool = False
    identity_experts: int = 0
    """The last so many of the router's experts return their input."""
    shared: FeedForward | None = None
    shared_gate: bool = False
    routed_scale: float = 1.0
    output_scale: float = 1.0
    """Factor on the sum of routed and shared output."""
    accumulate: Precision = "native"
    """Dtype in which the weighted outputs of the experts are added up."""
    layout: ExpertLayout | None = None

    @property
    def expert_width(self) -> int:
        """Hidden width H of one routed expert."""
        return self.experts.width

    @property
    def gated(self) -> bool:
        """Whether an expert has a gate matrix, so that W1 = [gate; up] has 2H rows."""
        return self.experts.gated

    @property
    def w1_rows(self) -> int:
        """Rows of the expert's first matrix W1."""
        return self.experts.width * (2 if self.experts.gated else 1)

    def expert_refs(self, expert: int) -> tuple[TensorRef, ...]:
        """The tensors of one routed expert; none for an identity expert."""
        from moe_atlas.families.experts import expert_refs

        return expert_refs(self, expert)

    def describe(self) -> dict[str, Any]:
        """Every choice that moves a number, as plain JSON values."""
        described: dict[str, Any] = plain(self)
        return described


@dataclass(frozen=True)
class Streams:
    """A residual of several streams: a block reads a mixture of them and writes into all (hyper-connections).

    The streams are mixed among each other by a matrix made doubly stochastic (mHC, arXiv 2512.24880).
    """

    count: int
    iterations: int
    """Rounds of Sinkhorn-Knopp normalisation."""
    eps: float
    """Added to reading weights, to the entries of the matrix and to its sums."""
    norm_eps: float
    """Of the RMS norm, without gain, over all streams together."""


@dataclass(frozen=True)
class LayerSpec:
    """One decoder layer: a mixer, then a mixture-of-experts or a dense block, each with its norms.

    With both, the dense block stands beside the experts and reads the same normalised state.
    """

    index: int
    mixer: Mixer | None
    norm: Norm
    moe: MoESpec | None = None
    dense: FeedForward | None = None
    pre_mixer_norm: bool = True
    post_mixer_norm: bool = False
    pre_ffn_norm: bool = True
    post_ffn_norm: bool = False
    block: Literal["sequential", "parallel"] = "sequential"
    """`parallel`: mixer and feed-forward read the same normalised state and are added together."""
    residual_scale: float = 1.0
    streams: Streams | None = None
    """How the blocks read and write a residual of several streams; then they are sequential."""
    after: LayerSpec | None = None
    """A second layer, without router, between this one's mixture of experts and where its routed sum is added."""
    refs: tuple[TensorRef, ...] = ()
    """Everything of the layer except the routed experts."""

    def describe(self) -> dict[str, Any]:
        """Every choice that moves a number, as plain JSON values."""
        described: dict[str, Any] = plain(self)
        return described


@dataclass(frozen=True)
class ModelSpec:
    """A whole decoder, bound to the tensors of one checkpoint."""

    family: str
    width: int
    vocab: int
    layers: tuple[LayerSpec, ...]
    final_norm: Norm
    tied: bool
    """The head is the embedding; its reference then carries the embedding's name and kind."""
    embed_scale: float = 1.0
    logit_scale: float = 1.0
    logit_divisor: float = 1.0
    head_bias: bool = False
    embed_refs: tuple[TensorRef, ...] = ()
    final_refs: tuple[TensorRef, ...] = ()
    skipped: tuple[tuple[str, str], ...] = ()
    """(stored tensor, reason) for everything on disk that is not replayed."""

    @property
    def streams(self) -> Streams | None:
        """Of a residual of several streams, alike in every layer; the embedding starts, the final norm ends them."""
        return self.layers[0].streams if self.layers else None

    @property
    def routed_layers(self) -> list[int]:
        """Indices of the layers with a router."""
        return [layer.index for layer in self.layers if layer.moe]

    def describe(self) -> dict[str, Any]:
        """Every choice that moves a number, as JSON values; equal neighbouring layers are listed once."""
        model = {key: value for key, value in plain(self).items() if key not in ("layers", "skipped")}
        groups: list[dict[str, Any]] = []
        for layer in self.layers:
            body = layer.describe()
            index = body.pop("index")
            if groups and groups[-1]["layer"] == body:
                groups[-1]["indices"].append(index)
            else:
                groups.append({"indices": [index], "layer": body})
        return {**model, "layers": groups}


_PLACES = {"refs", "embed_refs", "final_refs", "layout"}


def plain(value: Any) -> Any:
    """Dataclasses, mappings and sequences as JSON values, leaving out where the tensors are stored."""
    if is_dataclass(value) and not isinstance(value, type):
        body = {f.name: plain(getattr(value, f.name)) for f in fields(value) if f.name not in _PLACES}
        return {"mixer": type(value).__name__, **body} if isinstance(value, Mixer) else body
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value
