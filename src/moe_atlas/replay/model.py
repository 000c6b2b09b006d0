"""The forward pass as separate steps, split at the points where the audit measures.

Legend: W windows, S tokens of a window, T tokens (W·S), D model width, E experts, K top-k, P evaluated (token,
expert) pairs, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from moe_atlas.loading.load import ReaderLike, load_all
from moe_atlas.models.expert_refs import expert_refs
from moe_atlas.models.mixers import (
    DeltaNet,
    GroupedQuery,
    KimiDelta,
    Latent,
    Lightning,
    Mamba1,
    Mamba2,
    SharedKeyValue,
    ShortConv,
)
from moe_atlas.models.names import EXPERT_SCALE, LAYER_SCALE, ROUTER_GAIN, ROUTER_TABLE
from moe_atlas.models.spec import LayerSpec, ModelSpec
from moe_atlas.replay import streams
from moe_atlas.replay.mixers import (
    attention,
    convolution,
    gated_delta,
    kimi_delta,
    lightning,
    mamba,
    mamba1,
    mla,
    shared_kv,
)
from moe_atlas.replay.primitives.feed_forward import feed_forward
from moe_atlas.replay.primitives.linear import Weights, linear
from moe_atlas.replay.primitives.norm import apply_gain, gain_float32, normalise, standardise
from moe_atlas.replay.router import Routing, combine_weights, route

MIXERS: Mapping[type, Callable[[Any, Weights, Tensor], Tensor]] = {
    GroupedQuery: attention.grouped_query,
    Latent: mla.latent,
    DeltaNet: gated_delta.gated_delta,
    KimiDelta: kimi_delta.kimi_delta,
    Lightning: lightning.lightning,
    Mamba1: mamba1.mamba1,
    Mamba2: mamba.mamba2,
    SharedKeyValue: shared_kv.shared_key_value,
    ShortConv: convolution.short_conv,
}
"""Mixer type to the function that computes it."""

TOKENS_AT_ONCE = 1024  # tokens that pass a mixer or a dense block at once
MIN_ROWS = 16  # a product of up to so many rows takes as long as a product of one row
STEPS = 8  # padded row counts between one power of two and the next
SUMMED = 256  # tokens whose expert outputs are added up at a time


@dataclass
class GateInput:
    """The states in front of a router: canonical state, input of the experts, input of the router."""

    z_TD: Tensor | None
    """Canonical pre-gain state, float32; None if the router reads the raw residual."""
    g_TD: Tensor
    """Gate coordinate in the compute dtype: the experts' input."""
    router_TD: Tensor
    """The router's input: float32, or the compute dtype with native router arithmetic."""


class Replay:
    """A model's forward pass as separate steps. A replay holds only the spec and the numeric options.

    Callers pass weights in their stored dtype. Every step casts them to the compute dtype, except the router's
    weights, which follow the router arithmetic. Results are deterministic functions of the arguments.

    Args:
        spec: the model.
        dtype: compute dtype of the residual stream and of all matrix products.
        device: the device on which to compute.
        router_arithmetic: `float32` routes in float32 from the float32 gate coordinate; `native` rounds wherever the
            reference implementation rounds, which makes the replay bit-exact against it.
    """

    def __init__(
        self,
        spec: ModelSpec,
        *,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
        router_arithmetic: Literal["float32", "native"] = "float32",
    ) -> None:
        self.spec = spec
        self.dtype = dtype
        self.device = torch.device(device)
        self.native = router_arithmetic == "native"

    def computes_like(self, other: Replay) -> bool:
        """Return whether `other` gives equal bits for equal weights, equal states and equal layer specs."""
        options = [
            (type(r), r.dtype, r.device, r.native, r.embed_scale, r.spec.streams) for r in (self, other)
        ]
        return options[0] == options[1]

    @property
    def embed_scale(self) -> float:
        """Factor on the embedding, rounded as the model rounds it."""
        scale, rounded = self.spec.embed_scale, self.spec.embed_scale_precision == "native"
        return float(torch.tensor(scale, dtype=self.dtype)) if rounded else scale

    def embed(self, w: Weights, tokens_WS: Tensor) -> Tensor:
        """Return the residual state of token ids, int64 [W, S]: [W, S, D], or [W, S, N, D] with N streams."""
        return self.start(w["embedding"][tokens_WS])

    def start(self, rows_WSD: Tensor) -> Tensor:
        """Return the residual state of tokens from their embedding rows, in the stored or the compute dtype."""
        state = _scaled(rows_WSD.to(self.device, self.dtype), self.embed_scale)
        return state if self.spec.streams is None else streams.start(self.spec.streams, state)

    def attention(self, layer: LayerSpec, w: Weights, state_WSD: Tensor) -> Tensor:
        """Return the residual in front of the layer's mixture-of-experts or dense block, in the shape of the input."""
        if layer.mixer is None or (layer.block == "parallel" and layer.streams is None):
            return state_WSD
        return _by_windows(partial(self._attention, layer, w), state_WSD)

    def _attention(self, layer: LayerSpec, w: Weights, state_WSD: Tensor) -> Tensor:
        if layer.streams is not None:
            x_WSD = streams.read(layer.streams, w, "mixer_streams", state_WSD)
            y_WSD = _scaled(self._mixer_branch(layer, w, x_WSD), layer.residual_scale)
            return streams.write(layer.streams, w, "mixer_streams", state_WSD, y_WSD)
        if layer.normed is not None:
            g_WSD = normalise(state_WSD, layer.norm, *_norm_weights(layer, w, "pre_mixer_norm"))
            y_WSD = MIXERS[type(layer.mixer)](layer.mixer, w, g_WSD)
            return g_WSD * layer.normed.mixer_kept + y_WSD * layer.normed.mixer_added
        return state_WSD + _scaled(self._mixer_branch(layer, w, state_WSD), layer.residual_scale)

    def block_input(self, layer: LayerSpec, w: Weights, state_WSD: Tensor) -> Tensor:
        """Return the input of the norm in front of the block, [W, S, D]: the residual or a mixture of its streams."""
        if layer.streams is None:
            return state_WSD
        return streams.read(layer.streams, w, "ffn_streams", state_WSD)

    def gate_input(self, layer: LayerSpec, w: Weights, x_TD: Tensor) -> GateInput:
        """Return the canonical state and gate coordinate of every token, from the residual."""
        if not layer.pre_ffn_norm:
            return self.anchored(layer, w, None, x_TD)
        return self.anchored(layer, w, standardise(x_TD, layer.norm), x_TD)

    def anchored(self, layer: LayerSpec, w: Weights, z_TD: Tensor | None, x_TD: Tensor) -> GateInput:
        """Apply this checkpoint's gain to a canonical state, which may come from another checkpoint.

        Args:
            layer: the layer.
            w: this checkpoint's weights.
            z_TD: the canonical state, float32; None if the router reads the raw residual.
            x_TD: the residual of that state, used where there is no z.
        """
        if z_TD is None:
            return GateInput(None, x_TD, x_TD if self.native else x_TD.float())
        weight, bias = _norm_weights(layer, w, "pre_ffn_norm")
        g_TD = apply_gain(z_TD, layer.norm, weight, bias, self.dtype)
        return GateInput(z_TD, g_TD, g_TD if self.native else self._gain32(layer, w, z_TD))

    def route(self, layer: LayerSpec, w: Weights, gate: GateInput, tokens_T: Tensor) -> Routing:
        """Return scores, routed sets, margins and combine weights of every token; `tokens_T` are their ids, int64."""
        table_VK = w.get(ROUTER_TABLE)
        return route(
            layer.routed.router,
            w["router"],
            self._router_input(layer, w, gate),
            bias_E=w.get("router.bias"),
            selection_bias_E=w.get("selection_bias"),
            expert_scale_E=w.get(EXPERT_SCALE),
            sets_TK=None if table_VK is None else table_VK[tokens_T.to(table_VK.device)],
            native=self.native,
        )

    def _router_input(self, layer: LayerSpec, w: Weights, gate: GateInput) -> Tensor:
        """Return the router's input, [T, D]: the gate coordinate, or z times a gain of the router's own."""
        factor = layer.routed.router.own_gain
        if factor is None:
            return gate.router_TD
        assert gate.z_TD is not None, "a router's own gain acts on z"
        z_TD = gate.z_TD.to(self.dtype) if self.native else gate.z_TD
        return z_TD * w[ROUTER_GAIN].to(z_TD.dtype) * factor

    def combine(
        self, layer: LayerSpec, logits_TE: Tensor, ids_TK: Tensor, expert_scale_E: Tensor | None
    ) -> Tensor:
        """Apply the model's combine rule to a given set of experts, with this replay's rounding."""
        dtype = self.dtype if self.native else torch.float32
        return combine_weights(layer.routed.router, logits_TE, ids_TK, dtype, expert_scale_E)

    def expert(
        self, layer: LayerSpec, w_expert: Weights, g_TD: Tensor, tokens_P: Tensor, weights_P: Tensor
    ) -> Tensor:
        """Return raw outputs of one expert on some tokens, compute dtype [P, D].

        Args:
            layer: the layer.
            w_expert: the expert's tensors; empty for an identity expert.
            g_TD: gate coordinates of all tokens.
            tokens_P: the tokens on which to evaluate the expert.
            weights_P: gate weights of these tokens; they matter only if the family weights the input.
        """
        moe, count = layer.routed, len(tokens_P)
        padding = self.padded_rows(count) - count
        g_PD = g_TD.index_select(0, F.pad(tokens_P, (0, padding)))
        if moe.weight_on_input:
            g_PD = g_PD * F.pad(weights_P, (0, padding)).to(g_PD.dtype)[:, None]
        return (feed_forward(moe.experts, w_expert, g_PD) if w_expert else g_PD)[:count]

    @staticmethod
    def padded_rows(rows: int) -> int:
        """Return the row count to which an expert's rows are padded, so that experts share prepared products.

        Preparing a product for a new row count takes up to ten milliseconds, often longer than multiplying.
        """
        step = max(MIN_ROWS, (1 << rows.bit_length()) // (2 * STEPS))
        return -(-rows // step) * step

    def weighted_sum(self, layer: LayerSpec, rows_RD: Tensor, place_TK: Tensor, weights_TK: Tensor) -> Tensor:
        """Return Σ ω_e u_e of every token, [T, D], added up and rounded as the family does.

        Args:
            layer: the layer.
            rows_RD: expert outputs, compute dtype.
            place_TK: the row of each expert of a token, in ascending expert order.
            weights_TK: combine weights of these experts, float32.
        """
        wide = layer.routed.accumulate == "float32"
        dtype = torch.float32 if wide else rows_RD.dtype
        out_TD = rows_RD.new_zeros(len(place_TK), rows_RD.shape[1], dtype=dtype)
        for out_PD, place_PK, weights_PK in zip(
            *(x.split(SUMMED) for x in (out_TD, place_TK, weights_TK)), strict=True
        ):
            for place_P, weights_P in zip(place_PK.T, weights_PK.T, strict=True):
                out_PD += self._weighted(layer, rows_RD.index_select(0, place_P), weights_P).to(dtype)
        return out_TD

    def _weighted(self, layer: LayerSpec, u_PD: Tensor, weights_P: Tensor) -> Tensor:
        """Return one expert's outputs multiplied by their combine weights, in the family's rounding."""
        moe = layer.routed
        if moe.weight_on_input:
            return u_PD
        weight = weights_P.to(u_PD.dtype) if moe.router.weight_dtype == "native" else weights_P
        return u_PD * weight[:, None]

    def finish(
        self, layer: LayerSpec, w: Weights, x_WSD: Tensor, gate: GateInput, routed_TD: Tensor
    ) -> Tensor:
        """Return the state after the layer: add shared experts, scales, norms and residual to the routed sum.

        `x_WSD` is the result of `attention`; a residual of several streams comes with all its streams.
        """
        moe = layer.routed
        y_TD = _scaled(routed_TD.to(x_WSD.dtype), moe.routed_scale)
        if moe.shared is not None:
            shared_TD = feed_forward(moe.shared, w, gate.g_TD, "shared.")
            if moe.shared_gate:
                shared_TD = torch.sigmoid(linear(w, "shared_gate", gate.g_TD)) * shared_TD
            y_TD = y_TD + shared_TD
        y_TD = _scaled(y_TD, moe.output_scale)
        if layer.own_norms:
            y_WSD = normalise(
                y_TD.view_as(x_WSD), layer.norm, *_norm_weights(layer, w, "post_routed_ffn_norm")
            )
            beside_WSD = _by_windows(partial(self._beside, layer, w), x_WSD)
            return self._residual(layer, w, x_WSD, beside_WSD + y_WSD, gate.g_TD.view_as(x_WSD))
        if layer.dense is not None:
            x_WSD = x_WSD + feed_forward(layer.dense, w, gate.g_TD, "dense.").view_as(x_WSD)
        if layer.after is not None:
            inner = {
                role.removeprefix("after."): tensor for role, tensor in w.items() if role.startswith("after.")
            }
            x_WSD = self.dense(layer.after, inner, self.attention(layer.after, inner, x_WSD))
        y_WSD, g_WSD = (part_TD.view(*x_WSD.shape[:2], -1) for part_TD in (y_TD, gate.g_TD))
        return self._residual(layer, w, x_WSD, y_WSD, g_WSD)

    def _beside(self, layer: LayerSpec, w: Weights, x_WSD: Tensor) -> Tensor:
        """Return the output of a dense block beside the experts that has its own norms."""
        assert layer.dense is not None, "the norms are those of a dense block"
        g_WSD = normalise(x_WSD, layer.norm, *_norm_weights(layer, w, "pre_dense_ffn_norm"))
        y_WSD = feed_forward(layer.dense, w, g_WSD, "dense.")
        return normalise(y_WSD, layer.norm, *_norm_weights(layer, w, "post_dense_ffn_norm"))

    def dense(self, layer: LayerSpec, w: Weights, x_WSD: Tensor) -> Tensor:
        """Return the state after a layer without router."""
        return x_WSD if layer.dense is None else _by_windows(partial(self._dense, layer, w), x_WSD)

    def _dense(self, layer: LayerSpec, w: Weights, x_WSD: Tensor) -> Tensor:
        assert layer.dense is not None, "`dense` returns the state of a layer without a block unchanged"
        norm = _norm_weights(layer, w, "pre_ffn_norm") if layer.pre_ffn_norm else None
        g_WSD = self.block_input(layer, w, x_WSD)
        g_WSD = g_WSD if norm is None else normalise(g_WSD, layer.norm, *norm)
        return self._residual(layer, w, x_WSD, feed_forward(layer.dense, w, g_WSD, "dense."), g_WSD)

    def hidden(self, w: Weights, state_TD: Tensor) -> Tensor:
        """Return the input of the head, [T, D], from states [T, D] or, with streams, [T, N, D]."""
        spec = self.spec
        if spec.streams is not None:
            state_TD = streams.end(spec.streams, w, state_TD)
        return normalise(state_TD, spec.final_norm, w["final_norm"], w.get("final_norm.bias"))

    def logits(self, w: Weights, hidden_TD: Tensor) -> Tensor:
        """Return next-token logits, float32 [T, V], for the vocabulary entries whose head rows `w` holds."""
        spec = self.spec
        logits = _scaled(linear(w, "head", hidden_TD), spec.logit_scale)
        logits = logits if spec.logit_divisor == 1.0 else logits / spec.logit_divisor
        if spec.logit_cap is not None:
            logits = torch.tanh(logits / spec.logit_cap) * spec.logit_cap
        return logits.float()

    @torch.no_grad()
    def forward(
        self,
        reader: ReaderLike,
        tokens_WS: Tensor,
        observe: Callable[[LayerSpec, GateInput, Routing], None] | None = None,
    ) -> Tensor:
        """Run a plain forward pass, layer by layer, without measuring; return logits, float32 [W, S, V].

        Args:
            reader: the reader of stored tensors.
            tokens_WS: token ids, int64.
            observe: a function to call after every router.
        """
        state = self.embed(self.place(load_all(reader, self.spec.embed_refs)), tokens_WS)
        for layer in self.spec.layers:
            w = self.place(load_all(reader, layer.refs))
            x_WSD = self.attention(layer, w, state)
            if layer.moe is None:
                state = self.dense(layer, w, x_WSD)
                continue
            gate = self.gate_input(layer, w, self.block_input(layer, w, x_WSD).flatten(0, 1))
            routing = self.route(layer, w, gate, tokens_WS.flatten())
            if observe is not None:
                observe(layer, gate, routing)
            state = self.finish(layer, w, x_WSD, gate, self.routed(reader, layer, gate, routing))
        final = self.place(load_all(reader, self.spec.final_refs))
        return self.logits(final, self.hidden(final, state.flatten(0, 1))).view(
            *tokens_WS.shape, self.spec.vocab
        )

    def routed(self, reader: ReaderLike, layer: LayerSpec, gate: GateInput, routing: Routing) -> Tensor:
        """Return the weighted sum of the routed experts, with one expert in memory at a time."""
        ids_TK, order_TK = routing.topk_TK.sort(dim=1)
        weights_TK = routing.weights_TK.gather(1, order_TK)
        rows_TKD = gate.g_TD.new_empty(*ids_TK.shape, gate.g_TD.shape[1])
        for expert in range(layer.routed.router.experts):
            tokens_P, slots_P = torch.where(ids_TK == expert)
            if not len(tokens_P):
                continue
            w = self.place(load_all(reader, expert_refs(layer.routed, expert)))
            omega_P = weights_TK[tokens_P, slots_P]
            rows_TKD[tokens_P, slots_P] = self.expert(layer, w, gate.g_TD, tokens_P, omega_P)
        place_TK = torch.arange(ids_TK.numel(), device=ids_TK.device).view_as(ids_TK)
        return self.weighted_sum(layer, rows_TKD.flatten(0, 1), place_TK, weights_TK)

    def place(self, w: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the weights on the compute device, in their stored dtype."""
        return {role: tensor.to(self.device) for role, tensor in w.items()}

    def _gain32(self, layer: LayerSpec, w: Weights, z_TD: Tensor) -> Tensor:
        return gain_float32(z_TD, layer.norm, *_norm_weights(layer, w, "pre_ffn_norm"))

    def _mixer_branch(self, layer: LayerSpec, w: Weights, state_WSD: Tensor) -> Tensor:
        x = state_WSD
        if layer.block == "parallel":  # one norm in front of both branches
            x = normalise(x, layer.norm, *_norm_weights(layer, w, "pre_ffn_norm"))
        elif layer.pre_mixer_norm:
            x = normalise(x, layer.norm, *_norm_weights(layer, w, "pre_mixer_norm"))
        y = MIXERS[type(layer.mixer)](layer.mixer, w, x)
        return (
            normalise(y, layer.norm, *_norm_weights(layer, w, "post_mixer_norm"))
            if layer.post_mixer_norm
            else y
        )

    def _residual(self, layer: LayerSpec, w: Weights, x_WSD: Tensor, y_WSD: Tensor, g_WSD: Tensor) -> Tensor:
        """Return the state after a block, from the residual, the block's output and the block's input."""
        if layer.post_ffn_norm:
            y_WSD = normalise(y_WSD, layer.norm, *_norm_weights(layer, w, "post_ffn_norm"))
        if layer.normed is not None:
            return g_WSD * layer.normed.ffn_kept + y_WSD * layer.normed.ffn_added
        if layer.streams is not None:
            y_WSD = _scaled(y_WSD, layer.residual_scale)
            return streams.write(layer.streams, w, "ffn_streams", x_WSD, y_WSD)
        if layer.block == "parallel":
            mixed = _scaled(self._mixer_branch(layer, w, x_WSD), layer.residual_scale)
            return x_WSD + mixed + _scaled(y_WSD, layer.residual_scale)
        out_WSD = x_WSD + _scaled(y_WSD, layer.residual_scale)
        return out_WSD * w[LAYER_SCALE].to(out_WSD.dtype) if layer.output_scale else out_WSD


def _by_windows(step: Callable[[Tensor], Tensor], state_WSD: Tensor) -> Tensor:
    """Apply `step` to a few windows at a time, which keeps its temporaries small; windows never mix."""
    few = max(1, TOKENS_AT_ONCE // state_WSD.shape[1])
    if len(state_WSD) <= few:
        return step(state_WSD)
    return torch.cat([step(part) for part in state_WSD.split(few)])


def _norm_weights(layer: LayerSpec, w: Weights, role: str) -> tuple[Tensor, Tensor | None]:
    return w[role], w.get(f"{role}.bias")


def _scaled(x: Tensor, factor: float) -> Tensor:
    return x if factor == 1.0 else x * factor
