"""Operations and bytes of an audit, from specs and headers alone.

Legend: N probe tokens, M measured tokens, S tokens of a window, D model width, H hidden width of an expert, E experts,
K top-k, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from moe_atlas.checkpoint.source import TensorSource
from moe_atlas.models.expert_refs import expert_refs
from moe_atlas.models.mixers import (
    DeltaNet,
    GroupedQuery,
    KimiDelta,
    Latent,
    Lightning,
    Mamba1,
    Mamba2,
    Mixer,
    SharedKeyValue,
)
from moe_atlas.models.spec import LayerSpec, ModelSpec, MoESpec, TensorRef
from moe_atlas.probes.windows import Window


@dataclass(frozen=True)
class TokenCounts:
    """Token counts of a probe set.

    Attributes:
        lengths: number of tokens of every window.
        measured: number of tokens at which the routed object is measured.
        scored: number of positions whose next-token prediction is scored.
    """

    lengths: Sequence[int]
    measured: int
    scored: int

    @property
    def total(self) -> int:
        """The number of all tokens."""
        return sum(self.lengths)

    @property
    def pairs(self) -> int:
        """The number of query-key pairs of full attention, masked pairs included, because they are computed too."""
        return sum(length**2 for length in self.lengths)


def count_tokens(windows: Sequence[Window], measured: int, stride: int) -> TokenCounts:
    """Count the tokens of a probe set whose first `measured` windows are measured at every `stride`-th token."""
    lengths = [len(window.tokens) for window in windows]
    return TokenCounts(
        lengths,
        sum(-(-length // stride) for length in lengths[:measured]),
        sum(int(window.scored.sum()) for window in windows),
    )


def flops(
    specs: Sequence[ModelSpec], tokens: TokenCounts, *, everyone: bool, requantised: bool
) -> dict[str, int]:
    """Count the floating-point operations of matrix products; a multiplication and an addition count as two.

    Let e = 2·Σ rows·columns of an expert's matrices (6·D·H for a gated expert). Over all layers:

    - `projections`: 2·N·Σ rows·columns of every matrix outside the routed experts (attention, router, shared
      experts, dense layers) for each checkpoint, plus 2·N·D·E of the tuned router at the base's states;
    - `attention`: 2·ΣS²·heads·(query + value dimensions) for each checkpoint, masked pairs included; a recurrent mixer
      has 6·N·(elements of its state) for recalling, updating and reading the state;
    - `routed experts`: N·K·e for each checkpoint, minus the share of identity experts;
    - `competitors`: M·2·e for each checkpoint, for e_{K+1} and the specificity partner; M·(E−K)·e with `experts: all`;
    - `anchored experts`: M·(K+1)·e for the tuned experts at the base's states; with `experts: all` M·E·e, plus
      M·(E−K−1)·e of the base in the pair's grouping;
    - `requantised experts`: M·(K+1)·e if the storage formats differ, or M·E·e with `experts: all`;
    - `head`: 2·D·V for each scored position and checkpoint.

    The count leaves out experts that only the tuned router selects at the anchor, because they depend on the weights.
    It includes computations that an audit may skip for equal values, because equality is unknown before reading.

    Args:
        specs: spec of the base and, for a pair, of the tuned checkpoint.
        tokens: token counts of the probe set.
        everyone: whether the audit evaluates all experts.
        requantised: whether the audit also evaluates the base's experts in the tuned checkpoint's storage format.
    """
    sides = len(specs)
    done = dict.fromkeys(
        (
            "projections",
            "attention",
            "routed experts",
            "competitors",
            "anchored experts",
            "requantised experts",
            "head",
        ),
        0,
    )
    for layer in specs[0].layers:
        done["projections"] += sides * 2 * tokens.total * matrix_elements(layer.refs)
        done["attention"] += sides * sum(mixer_flops(mixer, tokens) for mixer in layer_mixers(layer))
        if layer.moe:
            for key, count in expert_flops(layer.moe, tokens, sides, everyone, requantised).items():
                done[key] += count
    done["head"] = 2 * tokens.scored * sum(matrix_elements(spec.final_refs) for spec in specs)
    return done


def expert_flops(
    moe: MoESpec, tokens: TokenCounts, sides: int, everyone: bool, requantised: bool
) -> dict[str, int]:
    """Count the operations of one layer's experts, and of the tuned router at the anchor; see `flops`."""
    experts, k = moe.router.experts, moe.router.top_k
    expert = 2 * matrix_elements(expert_refs(moe, 0)) * (experts - moe.identity_experts) // experts
    others = experts - k if everyone else min(2, experts - k)
    boundary = min(k + 1, experts)
    slots = experts if everyone else boundary
    again = experts - boundary if everyone else 0
    pair = sides == 2
    return {
        "routed experts": sides * tokens.total * k * expert,
        "competitors": sides * tokens.measured * others * expert,
        "anchored experts": pair * tokens.measured * (slots + again) * expert,
        "projections": pair * 2 * tokens.total * moe.width * experts,
        "requantised experts": (pair and requantised) * tokens.measured * slots * expert,
    }


def layer_mixers(layer: LayerSpec) -> list[Mixer]:
    """Return the token mixers of a layer."""
    own = [] if layer.mixer is None else [layer.mixer]
    return own if layer.after is None else own + layer_mixers(layer.after)


def mixer_flops(mixer: Mixer, tokens: TokenCounts) -> int:
    """Count the operations of a mixer, its projections aside."""
    match mixer:
        case GroupedQuery():
            return 2 * tokens.pairs * mixer.heads * (mixer.head_dim + mixer.v_dim)
        case Latent():
            indexer = mixer.indexer.heads * mixer.indexer.dim if mixer.indexer else 0
            head = mixer.nope_dim + mixer.rope_dim + mixer.v_dim
            return 2 * tokens.pairs * (mixer.heads * head + indexer)
        case SharedKeyValue():
            keys = 4 * tokens.pairs * mixer.heads * mixer.head_dim
            far = mixer.compressor
            if far is None:
                return keys
            indexer = 2 * tokens.pairs * far.indexer.heads * far.indexer.dim if far.indexer else 0
            return keys + (keys + indexer) // far.rate
        case DeltaNet():
            return 6 * tokens.total * mixer.value_heads * mixer.key_dim * mixer.value_dim
        case KimiDelta():
            return 6 * tokens.total * mixer.heads * mixer.dim**2
        case Lightning():
            return 4 * tokens.total * mixer.heads * mixer.head_dim * (mixer.block // 2 + mixer.head_dim)
        case Mamba1():
            return 6 * tokens.total * mixer.channels * mixer.state_dim
        case Mamba2():
            return 6 * tokens.total * mixer.heads * mixer.head_dim * mixer.state_dim
    return 0  # a short convolution has only projections


def matrix_elements(refs: Iterable[TensorRef]) -> int:
    """Count the elements of the matrices among some tensors."""
    return sum(math.prod(ref.shape) for ref in refs if len(ref.shape) > 1)


def bytes_read(checkpoint: TensorSource, spec: ModelSpec, passes: int) -> int:
    """Count the bytes that an audit reads: every tensor once, a tied head twice, experts once per pass."""
    once = sum(tensor.nbytes for tensor in checkpoint.tensors.values())
    again = stored_bytes(checkpoint, spec.embed_refs[:1]) if spec.tied else 0
    return once + again + (passes - 1) * expert_bytes(checkpoint, spec)


def expert_bytes(checkpoint: TensorSource, spec: ModelSpec) -> int:
    """Count the stored bytes of the routed experts."""
    return sum(
        stored_bytes(checkpoint, expert_refs(layer.moe, expert))
        for layer in spec.layers
        if layer.moe
        for expert in range(layer.moe.router.experts)
    )


def stored_bytes(checkpoint: TensorSource, refs: Iterable[TensorRef]) -> int:
    """Count the stored bytes behind some references; a reference to part of a tensor counts its share."""
    total = 0.0
    for ref in refs:
        entry = checkpoint.logical[ref.stored]
        parts = getattr(entry, "parts", {"": ref.stored}).values()
        size = sum(checkpoint.tensors[part].nbytes for part in parts)
        total += size * math.prod(ref.shape) / math.prod(entry.shape)
    return round(total)
