"""A mixture-of-experts decoder as data: the vocabulary in which every family describes its model.

This module touches no tensor. A family file (`moe_atlas.families.*`) fills these dataclasses from config.json,
`moe_atlas.loading.bind` adds where each tensor is stored, and `moe_atlas.replay` computes from them. A field that
changes routing has no default, so no family can forget to decide it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, Literal, NamedTuple

from moe_atlas.models.mixers import Mixer, Norm, Precision


class Skipped(NamedTuple):
    """A stored tensor that the replay does not use."""

    name: str
    """Logical name: for a quantised tensor, the name of the decoded tensor."""
    reason: str
    """Why the replay does not use the tensor, in words."""
    part: str
    """Part of the checkpoint to which the tensor belongs: ``mtp`` (multi-token prediction), ``modalities`` (vision,
    audio), ``activation_scales``, ``derived`` or ``idle``. A server may use the first three."""


@dataclass(frozen=True)
class TensorRef:
    """One logical tensor and the place of its bytes.

    Loading reads the tensor `stored`, or entry `index` of its leading dimension; transposes it if `transpose` is
    set; and cuts it to `rows` (start, stop, step).
    """

    name: str
    """Canonical name: the name in a plain checkpoint with one tensor per expert, whatever the stored layout."""
    kind: str
    """Ledger class: router, selection_bias, routed_expert, shared_expert, dense_mlp, attention, norm,
    embedding, head or other."""
    shape: tuple[int, ...]
    """Logical shape, after `index`, `transpose` and `rows` are applied."""
    role: str
    """Key under which the replay finds the tensor, unique within a layer: `q_proj`, `router`, `gate_proj`, …"""
    stored: str
    index: int | None = None
    span: tuple[int, int] | None = None
    """Entries (start, stop) of the stored leading dimension to read, before transposing."""
    rows: tuple[int, int, int] | None = None
    transpose: bool = False

    @property
    def whole(self) -> bool:
        """Whether this reference covers the whole stored tensor in its stored order."""
        return self.index is None and self.span is None and self.rows is None and not self.transpose


@dataclass(frozen=True)
class RouterSpec:
    """How scores become an expert set and combine weights. Every field affects a number, so none has a default."""

    experts: int
    top_k: int
    score: Literal["softmax", "sigmoid", "sqrtsoftplus"]
    """The map from logits to scores; it also defines the full gate probability ρ."""
    dispatch: Literal["logits", "scores"]
    """The values from which top-k selects, before bias and masks."""
    linear_bias: bool
    selection_bias: bool
    """Whether a bias is added to the dispatch score; this bias never enters the combine weights."""
    selection_bias_dtype: Precision
    groups: int
    kept_groups: int
    group_score: Literal["none", "max", "top2_sum"]
    combine: Literal["scores", "softmax_of_chosen", "sigmoid_of_chosen", "sparsemixer"]
    """`scores`: the unbiased scores of the chosen experts; `…_of_chosen`: a map of the chosen logits alone."""
    renormalise: bool
    epsilon: float
    """Added to the denominator of the renormalisation."""
    floor: float
    """Lower clamp of that denominator."""
    scale: float
    """Factor on the combine weights."""
    expert_scale: bool
    """Whether each combine weight is multiplied, last of all, by a learned factor of its expert."""
    table: int | None
    """Number of rows of a stored table that gives each token id its set; None: top-k of the scores decides."""
    own_gain: float | None
    """The router's input is z times a learned gain of its own, times this factor; None: the experts' input."""
    matmul: Precision
    probabilities: Precision
    """Dtype in which the softmax or sigmoid is evaluated."""
    weight_dtype: Precision
    """Dtype of the combine weight when it multiplies the expert output."""
    jitter: float
    """Relative band of sparsemixer; 0 for other combine rules."""


@dataclass(frozen=True)
class FeedForward:
    """One multi-layer perceptron: an expert, the shared experts or a dense layer."""

    width: int
    activation: Literal["silu", "gelu", "gelu_tanh", "relu2", "clamped_swiglu"]
    gated: bool = True
    bias: bool = False
    limit: float | None = None
    """Upper clamp of the gate and absolute clamp of the up projection, applied before the activation."""
    alpha: float | None = None
    """Slope of the sigmoid of `clamped_swiglu`."""
    separate_bias: bool = False
    """The product is rounded to the activation dtype before the bias is added."""


@dataclass(frozen=True)
class ExpertLayout:
    """Where the routed experts of one layer are stored; `moe_atlas.loading.bind` fills this in."""

    kind: Literal["split", "by_matrix", "fused", "fused_transposed", "stacked"]
    """`split`: one tensor per expert and matrix; `by_matrix`: [E, H, D], [E, H, D] and [E, D, H]; `fused`: [E, 2H, D]
    and [E, D, H]; `fused_transposed`: [E, D, 2H] and [E, H, D]; `stacked`: [E·H, D] for each matrix."""
    canonical: Mapping[str, str]
    """Role to canonical name with `{e}`."""
    stored: Mapping[str, str]
    """Role to stored name, with `{e}` in the layout `split`."""
    interleaved: bool = False
    """True: fused gate and up rows alternate; False: they form two halves."""


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
    """Whether the output is added to the normalised state, instead of the input of the norm."""
    weight_on_input: bool = False
    identity_experts: int = 0
    """How many of the router's experts, counted from the last, return their input unchanged."""
    shared: FeedForward | None = None
    shared_gate: bool = False
    routed_scale: float = 1.0
    output_scale: float = 1.0
    """Factor on the sum of routed and shared output."""
    accumulate: Precision = "native"
    """Dtype in which the weighted outputs of the experts are added up."""
    layout: ExpertLayout | None = None
    """None until `moe_atlas.loading.bind` sets it."""

    @property
    def bound_layout(self) -> ExpertLayout:
        """The layout of a bound spec.

        Raises:
            ValueError: the spec is not bound to a checkpoint yet.
        """
        if self.layout is None:
            raise ValueError("expert tensors are known only after binding to a checkpoint")
        return self.layout

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
        """Return every choice that affects a number, as plain JSON values."""
        described: dict[str, Any] = plain(self)
        return described


@dataclass(frozen=True)
class Streams:
    """A residual of several streams (hyper-connections): a block reads a mixture of them and writes to all of them.

    A doubly stochastic matrix mixes the streams with each other (mHC, arXiv 2512.24880).
    """

    count: int
    iterations: int
    """Rounds of Sinkhorn-Knopp normalisation."""
    eps: float
    """Added to the reading weights, to the entries of the mixing matrix and to its sums."""
    norm_eps: float
    """Epsilon of the RMS norm, without gain, over all streams together."""


@dataclass(frozen=True)
class NormedResidual:
    """A residual without a path beside the norms: with g = norm(x), a block gives kept·g + added·block(g)."""

    mixer_kept: float
    mixer_added: float
    ffn_kept: float
    ffn_added: float


@dataclass(frozen=True)
class LayerSpec:
    """One decoder layer: a mixer, then a mixture-of-experts or a dense block, each with its norms.

    In a layer with both blocks, the dense block runs beside the experts; it reads the same normalised state, unless
    `own_norms`.
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
    """`parallel`: mixer and feed-forward read the same normalised state, and their outputs are added together."""
    own_norms: bool = False
    """Whether a dense block beside the experts has its own norms in front and behind, and the routed sum a norm behind;
    the two outputs are added before the norm behind the block."""
    residual_scale: float = 1.0
    normed: NormedResidual | None = None
    """Set if no residual passes beside the norms."""
    output_scale: bool = False
    """Whether a stored number multiplies the state behind the layer."""
    streams: Streams | None = None
    """How the blocks read and write a residual of several streams; such blocks are sequential."""
    after: LayerSpec | None = None
    """A second layer without router, computed before this layer's routed sum is added to the residual."""
    refs: tuple[TensorRef, ...] = ()
    """All tensors of the layer except the routed experts."""

    @property
    def routed(self) -> MoESpec:
        """The mixture-of-experts block of a routed layer.

        Raises:
            ValueError: the layer has no router.
        """
        if self.moe is None:
            raise ValueError(f"layer {self.index} has no router")
        return self.moe

    def describe(self) -> dict[str, Any]:
        """Return every choice that affects a number, as plain JSON values."""
        described: dict[str, Any] = plain(self)
        return described


@dataclass(frozen=True)
class ModelSpec:
    """A whole decoder, bound to the tensors of one checkpoint."""

    family: str
    width: int
    vocab: int
    """Number of ids with a row in embedding and head: `vocab_size`, or more if more rows are stored."""
    layers: tuple[LayerSpec, ...]
    final_norm: Norm
    tied: bool
    """Whether the head is the embedding; the head's reference then has the embedding's name and kind."""
    embed_scale: float = 1.0
    embed_scale_precision: Precision = "float32"
    """`native`: round the factor to the activation dtype first."""
    logit_scale: float = 1.0
    logit_divisor: float = 1.0
    logit_cap: float | None = None
    """Logits become cap·tanh(logits / cap), so that they stay below this cap."""
    head_bias: bool = False
    embed_refs: tuple[TensorRef, ...] = ()
    final_refs: tuple[TensorRef, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    """All stored tensors that the replay does not use."""
    accepted: Mapping[str, Any] = field(default_factory=dict, compare=False)
    """Keys of config.json that nothing reads and the user accepted, with their values."""

    @property
    def streams(self) -> Streams | None:
        """The residual streams, the same in every layer, from the embedding to the final norm; None: one residual."""
        return self.layers[0].streams if self.layers else None

    @property
    def routed_layers(self) -> list[int]:
        """Indices of the layers that have a router."""
        return [layer.index for layer in self.layers if layer.moe]

    def describe(self) -> dict[str, Any]:
        """Return every choice that affects a number, as JSON values; equal neighbouring layers are listed once."""
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
    """Return dataclasses, mappings and sequences as JSON values, without the places of stored tensors."""
    if is_dataclass(value) and not isinstance(value, type):
        body = {f.name: plain(getattr(value, f.name)) for f in fields(value) if f.name not in _PLACES}
        return {"mixer": type(value).__name__, **body} if isinstance(value, Mixer) else body
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value
