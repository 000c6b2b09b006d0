"""The parts from which families are composed: each reads its config keys and returns spec data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

from moe_atlas.configuration.config import Config
from moe_atlas.configuration.rope import softmax_sharpening
from moe_atlas.models.mixers import GroupedQuery, Latent, Mixer, Norm, Rope
from moe_atlas.models.spec import FeedForward, LayerSpec, ModelSpec, MoESpec, RouterSpec

WIDTH = ("hidden_size", "d_model")
HEADS = ("num_attention_heads", "n_heads")
LAYERS = ("num_hidden_layers", "n_layers")
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
TOP_K = ("num_experts_per_tok", "moe_k", "moe_topk", "num_experts_per_token", "top_k_experts")
ACTIVATIONS: Mapping[str, Any] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "relu2": "relu2",
}


@dataclass(frozen=True)
class Blueprint:
    """A family's result for a config: the spec without its tensors, and the names of the tensors."""

    model: ModelSpec
    names: Mapping[str, str]
    """Role to name below the layer, or the full name for `embedding`, `final_norm` and `head`."""
    layer_prefix: str = "model.layers.{i}."
    interleaved_rows: bool = False
    """Fused gate and up rows of the experts alternate."""
    fused: Literal["fused", "fused_transposed", "stacked"] = "fused"
    """Orientation of a fused expert tensor if its shape alone does not tell; `stacked`: the rows of all experts."""
    stacks: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Stored tensors that hold the rows of several roles, one role after the other."""
    also: Mapping[str, str] = field(default_factory=dict)
    """Role to another name under which some writers store its tensor."""
    turned: frozenset[str] = frozenset()
    """Roles whose matrix is stored with rows and columns exchanged."""
    entries: Mapping[str, int] = field(default_factory=dict)
    """Role to the number of entries stored one after the other; the first entry is the text model's."""
    other_modality: str = ""
    """Pattern of the names below a layer that no token of text reaches."""


def activation(c: Config, key: str = "hidden_act", default: str = "silu") -> Any:
    """Return the activation function that the config names."""
    name = c.text(key, default=default)
    if name not in ACTIVATIONS:
        raise c.uncomputed(
            f"{key} = {name!r}", f"activation not implemented; known: {', '.join(sorted(ACTIVATIONS))}"
        )
    return ACTIVATIONS[name]


def rms(
    c: Config, kind: Literal["rms", "rms32", "rms32_stored", "rms1p"] = "rms", default: float = 1e-6
) -> Norm:
    """Return an RMS normalisation with the config's epsilon."""
    return Norm(kind, c.number("rms_norm_eps", "norm_eps", "layer_norm_epsilon", default=default))


def gated_mlp(c: Config, width: int, *, bias: bool = False) -> FeedForward:
    """Return a gated perceptron of the given hidden width."""
    return FeedForward(width, activation(c), bias=bias)


def grouped_query(
    c: Config,
    *,
    rope: Rope | None,
    head_dim: int | None = None,
    kv_heads: int | None = None,
    scale: float | None = None,
    own_keys: bool = False,
    **options: Any,
) -> GroupedQuery:
    """Return grouped-query attention from the common keys.

    Args:
        c: the config section of the text model.
        rope: rotation of q and k.
        head_dim: dimensions of a head; `default_head_dim` if None.
        kv_heads: number of key heads; the config's number if None.
        scale: factor on the scores; head_dim^(-1/2) if None.
        own_keys: whether `num_key_value_heads` may be missing, so that every head has keys of its own.
        **options: fields of `GroupedQuery`.
    """
    heads = c.integer(*HEADS)
    size = head_dim if head_dim is not None else default_head_dim(c)
    return GroupedQuery(
        heads=heads,
        kv_heads=kv_heads if kv_heads is not None else key_heads(c, heads, own_keys=own_keys),
        head_dim=size,
        v_dim=options.pop("v_dim", size),
        scale=size**-0.5 if scale is None else scale,
        rope=rope,
        **options,
    )


def key_heads(c: Config, heads: int, *, own_keys: bool) -> int:
    """Return `num_key_value_heads`; with `own_keys` it may be missing, and every head has keys of its own."""
    absent = {"default": heads, "null": heads} if own_keys else {}
    return c.integer("num_key_value_heads", **absent)


def default_head_dim(c: Config, default: int | None = None) -> int:
    """Return `head_dim`; if it is missing, the default of the family's class, which may be width over heads."""
    implied = c.integer(*WIDTH) // c.integer(*HEADS)
    return c.integer("head_dim", default=implied if default is None else default, null=implied)


def latent(
    c: Config,
    rope: Rope | None,
    *,
    bias: bool,
    default_rank: int | None,
    own_keys: bool = False,
    **options: Any,
) -> Latent:
    """Return multi-head latent attention; a yarn `mscale_all_dim` sharpens the softmax.

    `default_rank` is the class's own rank of q, for a config that leaves it out (a null is direct projection);
    `own_keys` is as in `grouped_query`. `options` are fields of `Latent`.
    """
    nope, rotary, values = (
        c.integer("qk_nope_head_dim"),
        c.integer("qk_rope_head_dim"),
        c.integer("v_head_dim"),
    )
    heads = c.integer(*HEADS)
    if key_heads(c, heads, own_keys=own_keys) != heads:
        c.implied("num_key_value_heads", heads, "latent attention, whose heads all have keys of their own,")
    c.implied("qk_head_dim", nope + rotary, "qk_nope_head_dim + qk_rope_head_dim")
    # No reader uses head_dim; libraries write any of these values there.
    c.expect("head_dim", rotary, nope, nope + rotary, values, c.integer(*WIDTH) // heads)
    return Latent(
        heads=heads,
        q_rank=c.get("q_lora_rank", default=default_rank, null=None),
        kv_rank=c.integer("kv_lora_rank"),
        nope_dim=nope,
        rope_dim=rotary,
        v_dim=values,
        scale=(nope + rotary) ** -0.5 * (1.0 if rope is None else softmax_sharpening(c, rope)),
        rope=rope,
        bias=bias,
        latent_eps=1e-6,  # the reference builds these two norms without passing rms_norm_eps
        **options,
    )


def softmax_router(c: Config, *, renormalise: bool, **fields: Any) -> RouterSpec:
    """Return a softmax router: scores in float32, matrix product and combine weight in the activation dtype."""
    defaults: dict[str, Any] = {
        "score": "softmax",
        "dispatch": "logits",
        "linear_bias": False,
        "selection_bias": False,
        "selection_bias_dtype": "float32",
        "groups": 1,
        "kept_groups": 1,
        "group_score": "none",
        "combine": "scores",
        "renormalise": renormalise,
        "epsilon": 0.0,
        "floor": 0.0,
        "scale": 1.0,
        "expert_scale": False,
        "table": None,
        "own_gain": None,
        "matmul": "native",
        "probabilities": "float32",
        "weight_dtype": "native",
        "jitter": 0.0,
    }
    if "experts" not in fields:
        defaults["experts"] = c.integer(*EXPERTS)
    if "top_k" not in fields:
        defaults["top_k"] = c.integer(*TOP_K)
    return RouterSpec(**{**defaults, **fields})


def sigmoid_router(c: Config, *, renormalise: bool, scale: float, **fields: Any) -> RouterSpec:
    """Return a router of sigmoid scores with a selection bias, all in float32 (auxiliary-loss-free balancing)."""
    ours: dict[str, Any] = {
        "score": "sigmoid",
        "dispatch": "scores",
        "selection_bias": True,
        "epsilon": 1e-20,
        "scale": scale,
        "matmul": "float32",
        "weight_dtype": "float32",
    }
    return softmax_router(c, renormalise=renormalise, **{**ours, **fields})


def grouped_sigmoid_router(
    c: Config,
    *,
    default_groups: tuple[int, int] = (1, 1),
    called: tuple[str, ...] = ("sigmoid",),
    **fields: Any,
) -> RouterSpec:
    """Return a sigmoid router with selection bias over the best groups, by the sum of their two best scores.

    `default_groups` are the class's own numbers of groups and kept groups; a null means 1. `called` holds the names of
    this scoring rule in configurations.
    """
    c.expect("scoring_func", *called)
    c.expect("topk_method", "noaux_tc")
    groups = c.integer("n_group", "num_expert_group", default=default_groups[0], null=1)
    if "scale" not in fields:
        fields["scale"] = c.number("routed_scaling_factor")
    limits: dict[str, Any] = {
        "groups": groups,
        "kept_groups": c.integer("topk_group", default=default_groups[1], null=1),
        "group_score": "top2_sum" if groups > 1 else "none",
    }
    return sigmoid_router(
        c,
        renormalise=c.flag("norm_topk_prob", "moe_renormalize"),
        **{**limits, **fields},
    )


RoutedBlock = Callable[..., MoESpec]
"""A mixture-of-experts block without the norms around it: `layer` calls it with the fields that describe them."""


def moe(c: Config, router: RouterSpec, experts: FeedForward, **fields: Any) -> RoutedBlock:
    """Return a mixture-of-experts block."""
    return partial(MoESpec, router=router, experts=experts, width=c.integer(*WIDTH), **fields)


def layer(
    index: int, norm: Norm, mixer: Mixer | None, feed_forward: RoutedBlock | FeedForward | None, **fields: Any
) -> LayerSpec:
    """Return a decoder layer around a mixture of experts, a dense block or neither."""
    if feed_forward is None or isinstance(feed_forward, FeedForward):
        return LayerSpec(index, mixer, norm, dense=feed_forward, **fields)
    bare = LayerSpec(index, mixer, norm, **fields)
    routed = feed_forward(
        pre_norm=bare.pre_ffn_norm,
        norm_kind=norm.kind,
        norm_eps=norm.eps,
        post_norm=bare.post_ffn_norm,
        joins_norm=bare.normed is not None,
    )
    return replace(bare, moe=routed)


def decoder(
    c: Config,
    norm: Norm,
    mixer: Callable[[int], Mixer | None],
    feed_forward: Callable[[int], RoutedBlock | FeedForward | None],
    *,
    tied: bool | None = None,
    layers: int | None = None,
    model: Mapping[str, Any] | None = None,
    at: Callable[[int], Mapping[str, Any]] = lambda index: {},
    **fields: Any,
) -> ModelSpec:
    """Return a decoder whose layers differ only in mixer and block; `model` holds fields of `ModelSpec`.

    `fields` go to every layer, and `at` returns further fields of a single layer.
    """
    return ModelSpec(
        family=c.values["model_type"],
        width=c.integer(*WIDTH),
        vocab=c.integer("vocab_size"),
        layers=tuple(
            layer(i, norm, mixer(i), feed_forward(i), **{**fields, **at(i)})
            for i in range(c.integer(*LAYERS) if layers is None else layers)
        ),
        final_norm=norm,
        tied=c.flag("tie_word_embeddings", default=False) if tied is None else tied,
        **(model or {}),
    )
