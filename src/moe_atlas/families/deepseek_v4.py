"""DeepSeek-V4: a residual of several streams, keys that are values, compressed ones beside a window of single ones."""

from __future__ import annotations

from moe_atlas.configuration.config import Config
from moe_atlas.configuration.parts import HEADS, Blueprint, activation, decoder, moe, rms, sigmoid_router
from moe_atlas.configuration.rope import rope
from moe_atlas.models.mixers import Compressor, Indexer, Norm, Rope, SharedKeyValue
from moe_atlas.models.names import MLP, STANDARD
from moe_atlas.models.spec import FeedForward, Streams

MATRICES = dict(zip(MLP, ("w1", "w3", "w2"), strict=True))
COMPRESSED = {"kv_proj": "wkv", "gate_proj": "wgate", "position_bias": "ape", "kv_norm": "norm"}
NAMES = {
    **STANDARD,
    "head": "head",
    "pre_mixer_norm": "attn_norm",
    "pre_ffn_norm": "ffn_norm",
    "q_a_proj": "attn.wq_a",
    "q_a_layernorm": "attn.q_norm",
    "q_b_proj": "attn.wq_b",
    "kv_proj": "attn.wkv",
    "kv_norm": "attn.norm",
    "o_a_proj": "attn.wo_a",
    "o_proj": "attn.wo_b",
    "sinks": "attn.attn_sink",
    "indexer.wq_b": "attn.indexer.wq_b",
    "indexer.weights_proj": "attn.indexer.weights_proj",
    **{f"compressor.{part}": f"attn.compressor.{name}" for part, name in COMPRESSED.items()},
    **{f"indexer.{part}": f"attn.indexer.compressor.{name}" for part, name in COMPRESSED.items()},
    **{f"mixer_streams.{part}": f"hc_attn_{part}" for part in ("fn", "base", "scale")},
    **{f"ffn_streams.{part}": f"hc_ffn_{part}" for part in ("fn", "base", "scale")},
    **{f"head_streams.{part}": f"model.hc_head.hc_{part}" for part in ("fn", "base", "scale")},
    "router": "ffn.gate",
    "selection_bias": "ffn.gate.bias",
    **{f"shared.{m}": f"ffn.shared_experts.{name}" for m, name in MATRICES.items()},
    **{f"expert.{m}": f"ffn.experts.{{e}}.{name}" for m, name in MATRICES.items()},
}

FIXED = {
    "attention_bias": False,
    "mlp_bias": False,
    "num_key_value_heads": 1,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "scoring_func": "sqrtsoftplus",
}
"""Keys that the reference reads for one value only, or not at all."""


def build(c: Config) -> Blueprint:
    """Read a `deepseek_v4` configuration without layers that route by a hash of the token."""
    for key, only in FIXED.items():
        c.expect(key, only)
    c.inert("router_jitter_noise", why="used in training alone")
    blocks = c.optional("mlp_layer_types")
    if blocks is None or set(blocks) != {"moe"}:
        raise c.refuse(
            f"mlp_layer_types = {blocks!r}",
            "layers that look their experts up by token (hash_moe, the first three by default) are not replayed",
        )
    c.expect("num_hash_layers", 0)
    norm, kinds = rms(c, "rms32_stored"), c.get("layer_types")
    streams = Streams(c.integer("hc_mult"), c.integer("hc_sinkhorn_iters"), c.number("hc_eps"), norm.eps)
    router = sigmoid_router(
        c,
        renormalise=True,
        scale=c.number("routed_scaling_factor"),
        score="sqrtsoftplus",
        matmul="native",
        probabilities="native",
        weight_dtype="native",
    )
    expert = FeedForward(c.integer("moe_intermediate_size"), activation(c), limit=c.number("swiglu_limit"))
    routed = moe(c, router, expert, shared=expert)
    turning = {
        name: rope(
            c,
            c.integer("head_dim"),
            pairing="pairs",
            arithmetic="mixed",
            layer_type=name,
            elsewhere=[(c, key)],
            inherited=True,
        )
        for name, key in (("main", "rope_theta"), ("compress", "compress_rope_theta"))
    }
    c.implied("qk_rope_head_dim", turning["main"].dim, "partial_rotary_factor")

    def attention(index: int) -> SharedKeyValue:
        far = _compressor(c, kinds[index])
        return _attention(c, norm, turning["main" if far is None else "compress"], far)

    return Blueprint(decoder(c, norm, attention, lambda i: routed, streams=streams), NAMES)


def _attention(c: Config, norm: Norm, turning: Rope, far: Compressor | None) -> SharedKeyValue:
    head_dim = c.integer("head_dim")
    return SharedKeyValue(
        heads=c.integer(*HEADS),
        head_dim=head_dim,
        q_rank=c.integer("q_lora_rank"),
        groups=c.integer("o_groups"),
        group_rank=c.integer("o_lora_rank"),
        scale=head_dim**-0.5,
        rope=turning,
        norm=norm,
        window=c.integer("sliding_window"),
        compressor=far,
    )


def _compressor(c: Config, kind: str) -> Compressor | None:
    """What a layer sees beyond its window: nothing, a chosen few of short blocks, or all of far longer ones."""
    sparse, heavy = "compressed_sparse_attention", "heavily_compressed_attention"
    rates, shape = c.section("compress_rates"), (c.integer("index_n_heads"), c.integer("index_head_dim"))
    indexer = Indexer(*shape, c.integer("index_topk"), "pairs")
    if kind not in ("sliding_attention", sparse, heavy):
        raise c.refuse(f"layer_types: {kind!r}", "this kind of attention is not implemented")
    if rates is None:
        raise c.refuse("compress_rates", "the key is missing, and the family has no safe default for it")
    rates.inert(sparse, heavy, why="a model need not have layers of both kinds")
    if kind == "sliding_attention":
        return None
    return Compressor(rates.integer(kind), kind == sparse, indexer if kind == sparse else None)
