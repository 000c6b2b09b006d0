"""Gemma 4 with experts: a perceptron beside them, each behind norms of its own, and a router that reads z by itself."""

from __future__ import annotations

from dataclasses import replace

from moe_atlas.configuration.config import Config
from moe_atlas.configuration.kinds import layer_kinds
from moe_atlas.configuration.parts import (
    LAYERS,
    WIDTH,
    Blueprint,
    activation,
    decoder,
    grouped_query,
    moe,
    rms,
    softmax_router,
)
from moe_atlas.configuration.rope import SECTIONS, rope
from moe_atlas.models.mixers import GroupedQuery, Norm, Rope
from moe_atlas.models.names import MLP, STANDARD
from moe_atlas.models.spec import FeedForward

NAMES = {
    **STANDARD,
    "post_mixer_norm": "post_attention_layernorm",
    "pre_ffn_norm": "pre_feedforward_layernorm_2",
    "post_routed_ffn_norm": "post_feedforward_layernorm_2",
    "pre_dense_ffn_norm": "pre_feedforward_layernorm",
    "post_dense_ffn_norm": "post_feedforward_layernorm_1",
    "post_ffn_norm": "post_feedforward_layernorm",
    "layer_scale": "layer_scalar",
    "router": "router.proj",
    "router.gain": "router.scale",
    "router.expert_scale": "router.per_expert_scale",
    **{f"expert.{m}": f"experts.{{e}}.{m}" for m in MLP},
    "experts.gate_up_proj": "experts.gate_up_proj",
    "experts.down_proj": "experts.down_proj",
}
SLIDING, FULL = "sliding_attention", "full_attention"


def build(c: Config) -> Blueprint:
    """Read a `gemma4_text` configuration with experts in every layer and without inputs or keys from elsewhere."""
    _refuse_the_dense_forms(c)
    kinds, norm = _kinds(c), rms(c, "rms32")
    attention = {kind: _attention(c, norm, kind, kinds) for kind in sorted(set(kinds))}
    act, width = activation(c, "hidden_activation", "gelu_pytorch_tanh"), c.integer(*WIDTH)
    router = softmax_router(
        c,
        renormalise=True,
        expert_scale=True,
        own_gain=width**-0.5,
        weight_dtype="float32",
    )
    routed = moe(c, router, FeedForward(c.integer("moe_intermediate_size"), act))
    beside = FeedForward(c.integer("intermediate_size"), act)
    model = decoder(
        c,
        norm,
        lambda i: attention[kinds[i]],
        lambda i: routed,
        tied=c.flag("tie_word_embeddings", default=True),
        post_mixer_norm=True,
        post_ffn_norm=True,
        own_norms=True,
        output_scale=True,
        model={
            "embed_scale": width**0.5,
            "embed_scale_precision": "native",
            "logit_cap": c.number("final_logit_softcapping", default=None, null=None),
        },
    )
    layers = tuple(replace(layer, dense=beside) for layer in model.layers)
    return Blueprint(replace(model, layers=layers), NAMES)


def _refuse_the_dense_forms(c: Config) -> None:
    """Refuse features that only Gemma 4 models without experts have."""
    if not c.flag("enable_moe_block", default=False):
        raise c.refuse("enable_moe_block", "this Gemma 4 has no experts, so there is no routing to audit")
    inputs = c.integer("hidden_size_per_layer_input", default=256)
    if inputs:
        raise c.refuse(
            f"hidden_size_per_layer_input = {inputs} (256 where it is missing)",
            "inputs of every layer's own from a second embedding are not replayed",
        )
    c.expect("num_kv_shared_layers", 0)
    c.expect("use_bidirectional_attention", "vision")  # of pictures: text sees the past alone
    c.inert("vocab_size_per_layer_input", why="of inputs of every layer's own, which there are none")
    c.inert("use_double_wide_mlp", why="of layers that take keys from others, which there are none")


def _kinds(c: Config) -> list[str]:
    """Return the kind of attention of each layer: five sliding, then one full; the last layer is always full."""
    last = c.integer(*LAYERS) - 1
    kinds = layer_kinds(c, lambda i: SLIDING if (i + 1) % 6 and i != last else FULL)
    if kinds[-1] != FULL:
        raise c.refuse(
            f"layer_types: {kinds[-1]!r} last", "the reference makes full attention of it, and others may not"
        )
    return kinds


def _attention(c: Config, norm: Norm, kind: str, kinds: list[str]) -> GroupedQuery:
    head_dim, kv_heads = _shape(c, kind, kinds)
    full, bias = kind == FULL, c.flag("attention_bias", default=False)
    window = c.integer("sliding_window", default=512)
    return grouped_query(
        c,
        rope=_rotation(c, kind, head_dim),
        head_dim=head_dim,
        kv_heads=kv_heads,
        scale=1.0,
        window=None if full else window,
        qkv_bias=bias,
        out_bias=bias,
        qk_norm="head",
        qk_norm_spec=norm,
        keys_as_values=full and _keys_once(c),
        value_norm=True,
    )


def _rotation(c: Config, kind: str, head_dim: int) -> Rope:
    """The rotation of one kind of layer; by default a quarter of the planes turns where everything is seen."""
    if all(c.optional(name) is None for name in SECTIONS):
        plain = Rope(head_dim, 1e4, "halves", "native")
        turning = {"factor": 1.0, "planes": int(0.25 * head_dim // 2)}
        return plain if kind == SLIDING else replace(plain, theta=1e6, kind="proportional", params=turning)
    found = rope(c, head_dim, layer_type=kind)
    if found.dim != head_dim:
        raise c.refuse(
            f"rope_parameters.{kind}.partial_rotary_factor",
            "the reference heeds it where rope_type is proportional",
        )
    return found


def _shape(c: Config, kind: str, kinds: list[str]) -> tuple[int, int]:
    """Dimensions of a head and number of key heads of one kind of layer.

    A released configuration names those of full attention, a re-saved one lists what single layers have otherwise.
    """
    own = c.integer("head_dim", default=256), c.integer("num_key_value_heads")
    named = c.integer("global_head_dim", default=512), c.optional("num_global_key_value_heads")
    by_name = {SLIDING: own, FULL: (named[0], (_keys_once(c) and named[1]) or own[1])}
    if c.get("per_layer_config", default=None) is None:
        return by_name[kind]
    listed = c.section("per_layer_config")
    found = {i: own for i, one in enumerate(kinds) if one == kind}
    for i in found:
        layer = listed.section(str(i)) if listed is not None else None
        if layer is not None:
            found[i] = (
                layer.integer("head_dim", default=own[0]),
                layer.integer("num_key_value_heads", default=own[1]),
            )
    shape, *others = set(found.values())
    if others:
        raise c.refuse("per_layer_config", f"layers of {kind} differ among themselves")
    if kind == FULL:
        c.implied("global_head_dim", shape[0], "per_layer_config")
        c.implied("num_global_key_value_heads", shape[1], "per_layer_config")
    return shape


def _keys_once(c: Config) -> bool:
    """Whether full attention takes its values from the keys; only then may it have another number of them."""
    return c.flag("attention_k_eq_v", default=False)
