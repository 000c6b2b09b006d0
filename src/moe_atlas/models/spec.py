"""What a mixture-of-experts decoder is, as data: the one vocabulary that every family is written in.

Nothing here touches a tensor. A family file (`moe_atlas.families.*`) fills these dataclasses from
config.json, `moe_atlas.loading.bind` adds where each tensor is stored, and `moe_atlas.replay` computes from
them. A field that changes routing has no default, so that no family can forget to decide it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, Literal, NamedTuple

from moe_atlas.models.mixers import Mixer, Norm, Precision


class Skipped(NamedTuple):
    """A stored tensor that is not replayed.

    Attributes:
        name: the tensor, by the name it stands for where it is quantised.
        reason: why it is not replayed, in words.
        part: the part of the checkpoint it belongs to: ``mtp`` (multi-token prediction), ``modalities`` (vision,
            audio), ``activation_scales``, ``derived`` or ``idle``. A server may use the first three.
    """

    name: str
    reason: str
    part: str


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

    @property
    def whole(self) -> bool:
        """Whether it is everything that is stored under its name, in the order in which it is stored."""
        return self.index is None and self.span is None and self.rows is None and not self.transpose


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
    expert_scale: bool
    """Each combine weight is multiplied by a learned factor of its expert, last of all."""
    table: int | None
    """Rows of a stored table that gives each token id its set, so that no score decides; None: top-k decides."""
    own_gain: float | None
    """The router reads z times a learned gain of its own, times this factor; None: what the experts read."""
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
    """Where the routed experts of one layer are stored; filled in by `moe_atlas.loading.bind`."""

    kind: Literal["split", "by_matrix", "fused", "fused_transposed", "stacked"]
    """`split`: one tensor per expert and matrix; `by_matrix`: [E, H, D], [E, H, D] and [E, D, H]; `fused`: [E, 2H, D]
    and [E, D, H]; `fused_transposed`: [E, D, 2H] and [E, H, D]; `stacked`: [E·H, D] for each matrix."""
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
    joins_norm: bool = False
    """The output is added to the normalised state, and not to the one that entered the norm."""
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
class NormedResidual:
    """What a block's output joins is the state as the norm in front of the block leaves it: kept·g + added·block(g)."""

    mixer_kept: float
    mixer_added: float
    ffn_kept: float
    ffn_added: float


@dataclass(frozen=True)
class LayerSpec:
    """One decoder layer: a mixer, then a mixture-of-experts or a dense block, each with its norms.

    With both, the dense block stands beside the experts and reads the same normalised state, unless `own_norms`.
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
    own_norms: bool = False
    """A dense block beside the experts has a norm in front and one behind, the routed sum one behind; both are added up
    in front of the norm behind the block."""
    residual_scale: float = 1.0
    normed: NormedResidual | None = None
    """Set where no residual passes beside the norms."""
    output_scale: bool = False
    """The state behind the layer is multiplied by a stored number."""
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
    """Ids that embedding and head have a row for: `vocab_size`, or more where more rows are stored."""
    layers: tuple[LayerSpec, ...]
    final_norm: Norm
    tied: bool
    """The head is the embedding; its reference then carries the embedding's name and kind."""
    embed_scale: float = 1.0
    embed_scale_precision: Precision = "float32"
    """`native`: the factor is rounded to the activation dtype first."""
    logit_scale: float = 1.0
    logit_divisor: float = 1.0
    logit_cap: float | None = None
    """Logits are bent to stay below this: cap·tanh(logits / cap)."""
    head_bias: bool = False
    embed_refs: tuple[TensorRef, ...] = ()
    final_refs: tuple[TensorRef, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    """Everything on disk that is not replayed."""
    accepted: Mapping[str, Any] = field(default_factory=dict, compare=False)
    """Keys of config.json that nothing reads and that the user accepted, with their values."""

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
        model = {
            key: value for key, value in plain(self).items() if key not in ("layers", "skipped", "accepted")
        }
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
