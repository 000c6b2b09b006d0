"""The tensors that a spec needs, with their shapes, derived from the spec alone before any file is read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from moe_atlas.models.mixers import (
    Compressor,
    DeltaNet,
    GroupedQuery,
    KimiDelta,
    Latent,
    Lightning,
    Mamba1,
    Mamba2,
    Norm,
    SharedKeyValue,
    ShortConv,
)
from moe_atlas.models.names import EXPERT_SCALE, LAYER_SCALE, ROUTER_GAIN, ROUTER_TABLE
from moe_atlas.models.spec import FeedForward, LayerSpec, Streams

INDEX_NORM = Norm("layer", 1e-6, bias=True)
"""The norm of an indexer's keys, the same in every model that has an indexer."""
LATENT = ("q_proj", "q_a_proj", "q_a_layernorm", "q_b_proj", "kv_a_proj_with_mqa", "kv_a_layernorm", "kv_b_proj",
          "o_proj")  # fmt: skip
"""Roles of the tensors of latent attention."""
Shape = tuple[int, ...]
Need = tuple[str, Shape]


def linear(role: str, rows: int, columns: int, *, bias: bool = False) -> Iterator[Need]:
    """Yield a matrix [rows, columns] and, if asked, its bias."""
    yield role, (rows, columns)
    if bias:
        yield f"{role}.bias", (rows,)


def norm(role: str, width: int, spec: Norm) -> Iterator[Need]:
    """Yield the gain and, if the norm has one, the bias."""
    yield role, (width,)
    if spec.bias:
        yield f"{role}.bias", (width,)


def grouped_query(m: GroupedQuery, width: int) -> Iterator[Need]:
    """Yield the projections, q/k norms and sinks of softmax attention."""
    q_rows = m.heads * m.head_dim
    k_rows = m.kv_heads * m.head_dim
    yield from linear(
        "q_proj", q_rows * (2 if m.output_gate == "sigmoid_from_q" else 1), width, bias=m.qkv_bias
    )
    yield from linear("k_proj", k_rows, width, bias=m.qkv_bias)
    if not m.keys_as_values:
        yield from linear("v_proj", m.kv_heads * m.v_dim, width, bias=m.qkv_bias)
    yield from linear("o_proj", width, m.heads * m.v_dim, bias=m.out_bias)
    if m.output_gate in ("sigmoid", "softplus", "softplus_head"):
        yield "output_gate", (m.heads * (1 if m.output_gate == "softplus_head" else m.v_dim), width)
    if m.qk_norm_spec is not None and m.qk_norm != "l2_after_rope":
        full = m.qk_norm == "full"
        yield from norm("q_norm", q_rows if full else m.head_dim, m.qk_norm_spec)
        yield from norm("k_norm", k_rows if full else m.head_dim, m.qk_norm_spec)
    if m.sinks:
        yield "sinks", (m.heads,)


def latent(m: Latent, width: int) -> Iterator[Need]:
    """Yield the low-rank projections, their norms, and the indexer of latent attention."""
    q_rows = m.heads * (m.nope_dim + m.rope_dim)
    if m.q_rank is None:
        yield from linear("q_proj", q_rows, width)
    else:
        yield from linear("q_a_proj", m.q_rank, width, bias=m.bias)
        yield "q_a_layernorm", (m.q_rank,)
        yield from linear("q_b_proj", q_rows, m.q_rank)
    yield from linear("kv_a_proj_with_mqa", m.kv_rank + m.rope_dim, width, bias=m.bias)
    yield "kv_a_layernorm", (m.kv_rank,)
    yield from linear("kv_b_proj", m.heads * (m.nope_dim + m.v_dim), m.kv_rank)
    yield from linear("o_proj", width, m.heads * m.v_dim, bias=m.bias)
    if m.indexer is not None and m.q_rank is not None:
        yield "indexer.wq_b", (m.indexer.heads * m.indexer.dim, m.q_rank)
        yield "indexer.wk", (m.indexer.dim, width)
        yield from norm("indexer.k_norm", m.indexer.dim, INDEX_NORM)
        yield "indexer.weights_proj", (m.indexer.heads, width)


def shared_key_value(m: SharedKeyValue, width: int) -> Iterator[Need]:
    """Yield the low-rank q, the joint projection of keys and values, grouped output, sinks and the compressor."""
    inner = m.heads * m.head_dim
    yield "q_a_proj", (m.q_rank, width)
    yield from norm("q_a_layernorm", m.q_rank, m.norm)
    yield "q_b_proj", (inner, m.q_rank)
    yield "kv_proj", (m.head_dim, width)
    yield from norm("kv_norm", m.head_dim, m.norm)
    yield "o_a_proj", (m.groups * m.group_rank, inner // m.groups)
    yield "o_proj", (width, m.groups * m.group_rank)
    yield "sinks", (m.heads,)
    if m.compressor is None:
        return
    yield from compressor("compressor", m.compressor, m.head_dim, width, m.norm)
    index = m.compressor.indexer
    if index is not None:
        yield from compressor("indexer", m.compressor, index.dim, width, m.norm)
        yield "indexer.wq_b", (index.heads * index.dim, m.q_rank)
        yield "indexer.weights_proj", (index.heads, width)


def compressor(role: str, c: Compressor, dim: int, width: int, spec: Norm) -> Iterator[Need]:
    """Yield the projections of tokens and gates, the bias of each position in a block, and a norm."""
    rows = dim * (2 if c.overlap else 1)
    yield f"{role}.kv_proj", (rows, width)
    yield f"{role}.gate_proj", (rows, width)
    yield f"{role}.position_bias", (c.rate, rows)
    yield from norm(f"{role}.kv_norm", dim, spec)


def streams(role: str, s: Streams, width: int, coefficients: int, scales: int) -> Iterator[Need]:
    """Yield the linear map from all streams to mixing coefficients, its bias, and a scale per kind of coefficient."""
    yield f"{role}.fn", (coefficients, s.count * width)
    yield f"{role}.base", (coefficients,)
    yield f"{role}.scale", (scales,)


def feed_forward(f: FeedForward, width: int, prefix: str = "") -> Iterator[Need]:
    """Yield the matrices of a perceptron under roles that start with `prefix`."""
    if f.gated:
        yield from linear(f"{prefix}gate_proj", f.width, width, bias=f.bias)
    yield from linear(f"{prefix}up_proj", f.width, width, bias=f.bias)
    yield from linear(f"{prefix}down_proj", width, f.width, bias=f.bias)


def delta_net(m: DeltaNet, width: int) -> Iterator[Need]:
    """Yield the projections, convolution, decay and output norm of the gated delta rule."""
    keys, values = m.key_heads * m.key_dim, m.value_heads * m.value_dim
    if m.grouped:
        yield "in_proj_qkvz", (2 * keys + 2 * values, width)
        yield "in_proj_ba", (2 * m.value_heads, width)
    else:
        yield "in_proj_qkv", (2 * keys + values, width)
        yield "in_proj_z", (values, width)
        yield "in_proj_b", (m.value_heads, width)
        yield "in_proj_a", (m.value_heads, width)
    yield "conv1d", (2 * keys + values, 1, m.kernel)
    yield "A_log", (m.value_heads,)
    yield "dt_bias", (m.value_heads,)
    yield from norm("output_norm", m.value_dim, m.norm)
    yield "mixer_out_proj", (width, values)


def kimi_delta(m: KimiDelta, width: int) -> Iterator[Need]:
    """Yield projections and convolutions of q, k and v, and the tensors of decay, update strength and output gate."""
    inner = m.heads * m.dim
    for part in ("q", "k", "v"):
        yield f"{part}_proj", (inner, width)
        yield f"{part}_conv1d", (inner, 1, m.kernel)
    for part in ("f", "g"):
        yield f"{part}_a_proj", (m.dim, width)
        yield f"{part}_b_proj", (inner, m.dim)
    yield "b_proj", (m.heads, width)
    yield "dt_bias", (inner,)
    yield "A_log", (1, 1, m.heads, 1)
    yield from norm("output_norm", m.dim, m.norm)
    yield "o_proj", (width, inner)


def mamba2(m: Mamba2, width: int) -> Iterator[Need]:
    """Yield the input projection, convolution, per-head step size, decay and skip, norm, and output projection."""
    inner = m.heads * m.head_dim
    mixed = inner + 2 * m.groups * m.state_dim
    yield from linear("in_proj", inner + mixed + m.heads, width, bias=m.bias)
    yield "conv1d", (mixed, 1, m.kernel)
    if m.conv_bias:
        yield "conv1d.bias", (mixed,)
    yield from ((role, (m.heads,)) for role in ("A_log", "dt_bias", "D"))
    yield from norm("output_norm", inner, m.norm)
    yield from linear("mixer_out_proj", width, inner, bias=m.bias)


def mamba1(m: Mamba1, width: int) -> Iterator[Need]:
    """Yield input projection, convolution, projections to step size, B and C with their norms, decay, skip, output."""
    yield from linear("in_proj", 2 * m.channels, width, bias=m.bias)
    yield "conv1d", (m.channels, 1, m.kernel)
    if m.conv_bias:
        yield "conv1d.bias", (m.channels,)
    yield "x_proj", (m.rank + 2 * m.state_dim, m.channels)
    yield from linear("dt_proj", m.channels, m.rank, bias=True)
    for role, size in (("dt_norm", m.rank), ("b_norm", m.state_dim), ("c_norm", m.state_dim)):
        yield from norm(role, size, m.norm)
    yield "A_log", (m.channels, m.state_dim)
    yield "D", (m.channels,)
    yield from linear("mixer_out_proj", width, m.channels, bias=m.bias)


def lightning(m: Lightning, width: int) -> Iterator[Need]:
    """Yield one projection of q, k and v, head by head, the output's norm, gate and projection, and the decays."""
    inner = m.heads * m.head_dim
    yield "qkv_proj", (3 * inner, width)
    yield from norm("output_norm", inner, m.norm)
    yield "output_gate", (inner, width)
    yield "mixer_out_proj", (width, inner)
    yield "slope_rate", (m.heads, 1, 1)
    yield "query_decay", (m.heads, m.block, 1)
    yield "key_decay", (m.heads, m.block, 1)
    yield "diagonal_decay", (1, m.heads, m.block, m.block)


def short_conv(m: ShortConv, width: int) -> Iterator[Need]:
    """Yield two projections and the depthwise convolution between them."""
    yield from linear("in_proj", 3 * width, width, bias=m.bias)
    yield "conv1d", (width, 1, m.kernel)
    if m.bias:
        yield "conv1d.bias", (width,)
    yield from linear("mixer_out_proj", width, width, bias=m.bias)


MIXERS: dict[type, Callable[[Any, int], Iterator[Need]]] = {
    GroupedQuery: grouped_query,
    Latent: latent,
    Lightning: lightning,
    Mamba1: mamba1,
    DeltaNet: delta_net,
    KimiDelta: kimi_delta,
    Mamba2: mamba2,
    SharedKeyValue: shared_key_value,
    ShortConv: short_conv,
}
"""Mixer type to the function that yields its tensors."""


def layer(spec: LayerSpec, width: int) -> Iterator[Need]:
    """Yield all tensors of one layer except the routed experts."""
    for name in ("pre_mixer_norm", "post_mixer_norm", "pre_ffn_norm", "post_ffn_norm"):
        if getattr(spec, name):
            yield from norm(name, width, spec.norm)
    if spec.own_norms:
        for name in ("pre_dense_ffn_norm", "post_dense_ffn_norm", "post_routed_ffn_norm"):
            yield from norm(name, width, spec.norm)
    if spec.output_scale:
        yield LAYER_SCALE, (1,)
    if spec.mixer is not None:
        yield from MIXERS[type(spec.mixer)](spec.mixer, width)
    if spec.streams is not None:
        count = spec.streams.count
        for role in ("mixer_streams", "ffn_streams"):
            yield from streams(role, spec.streams, width, (2 + count) * count, 3)
    if spec.dense is not None:
        yield from feed_forward(spec.dense, width, "dense.")
    if spec.after is not None:
        yield from ((f"after.{role}", shape) for role, shape in layer(spec.after, width))
    if spec.moe is None:
        return
    router = spec.moe.router
    yield from linear("router", router.experts, width, bias=router.linear_bias)
    if router.selection_bias:
        yield "selection_bias", (router.experts,)
    if router.table is not None:
        yield ROUTER_TABLE, (router.table, router.top_k)
    if router.own_gain is not None:
        yield ROUTER_GAIN, (width,)
    if router.expert_scale:
        yield EXPERT_SCALE, (router.experts,)
    if spec.moe.shared is not None:
        yield from feed_forward(spec.moe.shared, width, "shared.")
    if spec.moe.shared_gate:
        yield from linear("shared_gate", 1, width)
