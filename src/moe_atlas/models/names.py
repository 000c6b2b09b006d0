"""Names of tensors by role, and the ledger class of each role."""

from __future__ import annotations

MLP = ("gate_proj", "up_proj", "down_proj")

STANDARD: dict[str, str] = {
    "embedding": "model.embed_tokens",
    "final_norm": "model.norm",
    "head": "lm_head",
    "pre_mixer_norm": "input_layernorm",
    "pre_ffn_norm": "post_attention_layernorm",
    **{
        role: f"self_attn.{role}"
        for role in ("q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm", "sinks")
    },
    **{
        role: f"self_attn.{role}"
        for role in (
            "q_a_proj",
            "q_a_layernorm",
            "q_b_proj",
            "kv_a_proj_with_mqa",
            "kv_a_layernorm",
            "kv_b_proj",
        )
    },
    **{f"indexer.{part}": f"self_attn.indexer.{part}" for part in ("wq_b", "wk", "k_norm", "weights_proj")},
    "router": "mlp.gate",
    "selection_bias": "mlp.gate.e_score_correction_bias",
    **{f"dense.{m}": f"mlp.{m}" for m in MLP},
    **{f"shared.{m}": f"mlp.shared_experts.{m}" for m in MLP},
    **{f"expert.{m}": f"mlp.experts.{{e}}.{m}" for m in MLP},
    "experts.gate_up_proj": "mlp.experts.gate_up_proj",
    "experts.down_proj": "mlp.experts.down_proj",
}
"""Role to name in the layout that most families share; a family overrides the names that differ."""

MIXTRAL_EXPERTS: dict[str, str] = {
    "router": "block_sparse_moe.gate",
    "selection_bias": "block_sparse_moe.e_score_correction_bias",
    "expert.gate_proj": "block_sparse_moe.experts.{e}.w1",
    "expert.up_proj": "block_sparse_moe.experts.{e}.w3",
    "expert.down_proj": "block_sparse_moe.experts.{e}.w2",
    "experts.gate_up_proj": "block_sparse_moe.experts.gate_up_proj",
    "experts.down_proj": "block_sparse_moe.experts.down_proj",
}

STREAMS = tuple(f"{block}_streams" for block in ("mixer", "ffn", "head"))
STREAM_TENSORS = frozenset(f"{block}.{part}" for block in STREAMS for part in ("fn", "base", "scale"))
POSITION_BIASES = frozenset({"compressor.position_bias", "indexer.position_bias"})
DECAYS = ("slope_rate", "query_decay", "key_decay", "diagonal_decay")
"""Decays that follow from the configuration; if a checkpoint stores them, the replay uses the stored values."""
ROUTER_GAIN, EXPERT_SCALE, ROUTER_TABLE = "router.gain", "router.expert_scale", "router.table"
LAYER_SCALE = "layer_scale"
BARE = (
    frozenset({"selection_bias", "sinks", "A_log", "dt_bias", "D", *DECAYS})
    | {ROUTER_GAIN, EXPERT_SCALE, ROUTER_TABLE, LAYER_SCALE}
    | STREAM_TENSORS
    | POSITION_BIASES
)
"""Roles whose stored tensor name has no `.weight` suffix."""


def kind_of(role: str) -> str:
    """Return the ledger class of a role."""
    if role == "selection_bias":
        return "selection_bias"
    if role in STREAM_TENSORS | POSITION_BIASES | {LAYER_SCALE}:
        return "other"  # small tensors that no matrix product in the compute dtype uses
    role = role.removeprefix("after.")
    head = role.split(".")[0]
    kinds = {
        "router": "router",
        "shared": "shared_expert",
        "shared_gate": "shared_expert",
        "dense": "dense_mlp",
        "embedding": "embedding",
        "head": "head",
        "gate_proj": "routed_expert",
        "up_proj": "routed_expert",
        "down_proj": "routed_expert",
    }
    if head in kinds:
        return kinds[head]
    return "norm" if role.split(".")[0].endswith(("mixer_norm", "ffn_norm", "final_norm")) else "attention"


def stored_suffix(role: str) -> str:
    """Return the suffix that the name of a role's tensor has on disk."""
    if role in BARE:
        return ""
    return ".bias" if role.endswith(".bias") else ".weight"
