"""DeepSeek-V4: a residual of several streams, keys that are values, compressed ones beside a window of single ones."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from moe_atlas.configuration.config import Config
from moe_atlas.configuration.parts import (
    HEADS,
    LAYERS,
    Blueprint,
    activation,
    decoder,
    moe,
    rms,
    sigmoid_router,
)
from moe_atlas.configuration.rope import SECTIONS, rope, scaling, settings
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
    "router.table": "ffn.gate.tid2eid",
    **{f"shared.{m}": f"ffn.shared_experts.{name}" for m, name in MATRICES.items()},
    **{f"expert.{m}": f"ffn.experts.{{e}}.{name}" for m, name in MATRICES.items()},
}

RELEASED = {
    "embedding": "model.embed",
    **{f"head_streams.{part}": f"model.hc_head_{part}" for part in ("fn", "base", "scale")},
}
"""Names of tensors in the release; the class writes other names."""
RATIOS = {0: "sliding_attention", 4: "compressed_sparse_attention", 128: "heavily_compressed_attention"}
"""Number of tokens per compressed key to the class's name of such a layer."""

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
    """Read a `deepseek_v4` configuration, as released or as its class writes it."""
    for key, only in FIXED.items():
        c.expect(key, only)
    c.inert("router_jitter_noise", why="used in training alone")
    c.expect("topk_method", "noaux_tc")
    c.inert("expert_dtype", why="how experts are stored, which their tensors say")
    norm, kinds, by_token = rms(c, "rms32_stored"), _kinds(c), _by_token(c)
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
    looked_up = partial(routed, router=replace(router, selection_bias=False, table=c.integer("vocab_size")))
    turning = _rotations(c)

    def attention(index: int) -> SharedKeyValue:
        far = _compressor(c, kinds[index])
        return _attention(c, norm, turning["main" if far is None else "compress"], far)

    model = decoder(c, norm, attention, lambda i: looked_up if by_token[i] else routed, streams=streams)
    return Blueprint(model, NAMES, also=RELEASED)


def _kinds(c: Config) -> list[str]:
    """The kind of attention of each layer: by name, or by how many tokens a compressed key stands for."""
    kinds, ratios = c.optional("layer_types"), c.optional("compress_ratios")
    layers = c.integer(*LAYERS)
    if kinds is None and ratios is None:
        raise c.refuse("layer_types", "the key is missing, and the family has no safe default for it")
    again = [RATIOS.get(ratio, f"compress_ratios of {ratio}") for ratio in ratios or ()][:layers]
    if kinds is not None and ratios is not None and again != kinds:
        c.implied("compress_ratios", kinds, "layer_types")
    kinds = again if kinds is None else kinds
    odd = sorted(set(kinds) - set(RATIOS.values()))
    if odd or len(kinds) != layers:
        found = f"{odd[0]!r}" if odd else f"{len(kinds)} of them"
        raise c.refuse("layer_types", f"expected a known kind for each of {layers} layers, found {found}")
    return kinds


def _by_token(c: Config) -> list[bool]:
    """Return which layers look experts up by token id: the listed layers, or the first `num_hash_layers`."""
    layers, blocks = c.integer(*LAYERS), c.optional("mlp_layer_types")
    if blocks is None:
        first = c.integer("num_hash_layers", default=3, null=3)
        return [index < first for index in range(layers)]
    if set(blocks) - {"moe", "hash_moe"} or len(blocks) != layers:
        raise c.refuse("mlp_layer_types", f"expected moe or hash_moe for each of {layers} layers")
    c.implied("num_hash_layers", blocks.count("hash_moe"), "mlp_layer_types")
    return [block == "hash_moe" for block in blocks]


def _rotations(c: Config) -> dict[str, Rope]:
    """The rotation of layers that see single tokens alone, and of those with compressed keys."""
    head_dim = c.integer("head_dim")
    sections = [section for name in SECTIONS if (section := c.section(name)) is not None]
    if any("main" in section.values for section in sections):
        turning = {
            name: rope(
                c,
                head_dim,
                pairing="pairs",
                arithmetic="mixed",
                layer_type=name,
                elsewhere=[(c, key)],
                inherited=True,
            )
            for name, key in (("main", "rope_theta"), ("compress", "compress_rope_theta"))
        }
        c.implied("qk_rope_head_dim", turning["main"].dim, "partial_rotary_factor")
        return turning
    plain = Rope(_rotated(c, head_dim), c.number("rope_theta", default=10000.0), "pairs", "mixed")
    kind, params = _scaling(c, settings(c), head_dim)
    slow = c.number("compress_rope_theta", default=160000.0)
    return {"main": plain, "compress": replace(plain, theta=slow, kind=kind, params=params)}


def _rotated(c: Config, head_dim: int) -> int:
    """Return the number of rotated dimensions of a head."""
    if c.optional("partial_rotary_factor") is None:
        rotated = c.integer("qk_rope_head_dim", default=head_dim // 8, null=head_dim // 8)
    else:
        rotated = int(head_dim * c.number("partial_rotary_factor"))
        c.implied("qk_rope_head_dim", rotated, "partial_rotary_factor")
    if rotated > head_dim:
        raise c.refuse(f"qk_rope_head_dim = {rotated}", f"a head has {head_dim} dimensions")
    return rotated


def _scaling(c: Config, sections: list[Config], head_dim: int) -> tuple[Any, dict[str, Any]]:
    """How the rotation of compressed keys is slowed down; the reference scales no cosine unless told to."""
    if not sections:
        return "default", {}
    section, *others = sections
    if others:
        raise c.refuse("rope_parameters and rope_scaling", "expected one of them")
    section.implied("rope_theta", c.number("rope_theta", default=10000.0), "rope_theta")
    kind, params = scaling(c, section, head_dim)
    if kind == "yarn":
        params = params | {"attention_factor": section.number("attention_factor", default=1.0)}
    return kind, params


def _attention(c: Config, norm: Norm, turning: Rope, far: Compressor | None) -> SharedKeyValue:
    head_dim, heads = c.integer("head_dim"), c.integer(*HEADS)
    if heads % c.integer("o_groups"):
        raise c.refuse("o_groups", f"{heads} heads do not form that many equal groups")
    return SharedKeyValue(
        heads=heads,
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
    by_default = {kind: rate for rate, kind in RATIOS.items()}
    indexer = Indexer(*shape, c.integer("index_topk"), "pairs")
    if rates is not None:
        rates.inert(sparse, heavy, why="a model need not have layers of both kinds")
    if kind == "sliding_attention":
        return None
    rate = by_default[kind] if rates is None else rates.integer(kind)
    return Compressor(rate, kind == sparse, indexer if kind == sparse else None)
