"""Hunyuan-A13B: q/k norms after the rotation, softmax router in float32, one shared perceptron."""

from __future__ import annotations

from typing import Any

from moe_atlas.configuration.config import Config
from moe_atlas.configuration.parts import (
    Blueprint,
    RoutedBlock,
    decoder,
    default_head_dim,
    gated_mlp,
    grouped_query,
    moe,
    rms,
    softmax_router,
)
from moe_atlas.configuration.rope import rope
from moe_atlas.models.names import MLP, STANDARD

NAMES = {
    **STANDARD,
    "q_norm": "self_attn.query_layernorm",
    "k_norm": "self_attn.key_layernorm",
    "router": "mlp.gate.wg",
    **{f"shared.{m}": f"mlp.shared_mlp.{m}" for m in MLP},
}
PRESENT = {
    "use_qk_norm": True,
    "use_cla": False,
    "use_mixed_mlp_moe": True,
    "norm_type": "rms",
    "use_mla": False,
    "moe_layer_num_skipped": 0,
    "moe_drop_tokens": False,
    "moe_random_routing_dropped_token": False,
    "group_limited_greedy": False,
    "n_group": False,
    "topk_group": False,
    "routed_scaling_factor": False,
}
UNUSED = (
    "im_start_id im_end_id im_newline_id text_start_id text_end_id pad_id mask_init_id "
    "add_classification_head class_num pool_type org_vocab_size cla_share_factor dense_list"
)


def build(c: Config) -> Blueprint:
    """Read a `hunyuan_v1_moe` configuration; top-k and widths may be lists, one entry a layer."""
    for key, value in PRESENT.items():
        c.expect(key, value)
    c.expect("num_shared_expert", 1, [1] * c.integer("num_hidden_layers"))
    c.inert(*UNUSED.split(), why="token ids, heads of other tasks, or read by the class nowhere")
    norm, bias, head_dim = rms(c, default=1e-5), c.flag("attention_bias", default=False), default_head_dim(c)
    c.implied("attention_head_dim", head_dim, "head_dim")
    attention = grouped_query(
        c,
        rope=rope(c, head_dim, theta=10000.0),
        head_dim=head_dim,
        own_keys=True,
        qkv_bias=bias,
        out_bias=bias,
        qk_norm="head_after_rope",
        qk_norm_spec=norm,
    )
    model = decoder(c, norm, lambda i: attention, lambda i: _moe(c, i))
    return Blueprint(model, NAMES)


def _moe(c: Config, index: int) -> RoutedBlock:
    width = _at(c.get("moe_intermediate_size", default=c.get("intermediate_size")), index)
    router = softmax_router(
        c,
        renormalise=True,
        top_k=_at(c.get("moe_topk", "num_experts_per_tok"), index),
        matmul="float32",
        weight_dtype="float32",
    )
    return moe(c, router, gated_mlp(c, width), shared=gated_mlp(c, c.integer("intermediate_size")))


def _at(value: Any, index: int) -> Any:
    return value[index] if isinstance(value, list) else value
