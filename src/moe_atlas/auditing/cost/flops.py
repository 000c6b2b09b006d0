"""How much an audit computes and reads, from the specs and headers alone.

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
class Tokens:
    """What passes through the model.

    Attributes:
        lengths: tokens of every window.
        measured: tokens at which the routed object is read.
        scored: positions whose next-token prediction counts.
    """

    lengths: Sequence[int]
    measured: int
    scored: int

    @property
    def total(self) -> int:
        """All tokens."""
        return sum(self.lengths)

    @property
    def pairs(self) -> int:
        """Query-key pairs of full attention: masked ones are computed as well."""
        return sum(length**2 for length in self.lengths)


def tokens_of(windows: Sequence[Window], measured: int, stride: int) -> Tokens:
    """Counts of a probe set whose first `measured` windows are read at every `stride`-th token."""
    lengths = [len(window.tokens) for window in windows]
    return Tokens(
        lengths,
        sum(-(-length // stride) for length in lengths[:measured]),
        sum(int(window.scored.sum()) for window in windows),
    )


def flops(specs: Sequence[ModelSpec], tokens: Tokens, *, everyone: bool, requantised: bool) -> dict[str, int]:
    """Floating-point operations of the matrix products, a multiplication and an addition counted as two.

    With e = 2·Σ rows·columns of an expert's matrices (6·D·H where it is gated), over all layers:

    - `projections`: 2·N·Σ rows·columns of every matrix outside the routed experts (attention, router, shared
      experts, dense layers), for each checkpoint, and the tuned router's 2·N·D·E at the base's states;
    - `attention`: 2·ΣS²·heads·(query + value dimensions) for each checkpoint, masked pairs included as they are
      computed; a recurrent mixer 6·N·(elements of its state), to recall, to update and to read it;
    - `routed experts`: N·K·e for each checkpoint, less the share of identity experts;
    - `competitors`: M·2·e for each checkpoint, e_{K+1} and the specificity partner; with `experts: all` M·(E−K)·e;
    - `anchored experts`: M·(K+1)·e, the tuned experts at the base's states; with `experts: all` M·E·e, and the
      M·(E−K−1)·e of the base in the pair's own grouping;
    - `requantised experts`: M·(K+1)·e (E for K+1 with `experts: all`) where the storage formats differ;
    - `head`: 2·D·V for each scored position and checkpoint.

    Experts that only the tuned router chooses at the anchor come on top of it, and depend on the weights; what
    equal values let an audit skip is not known before they are read, and not left out.

    Args:
        specs: base, and tuned with a pair.
        tokens: what passes.
        everyone: whether all experts are evaluated.
        requantised: whether the base's experts are evaluated in the tuned checkpoint's storage format too.
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
        done["attention"] += sides * sum(mixing(mixer, tokens) for mixer in mixers(layer))
        if layer.moe:
            for key, count in expert_flops(layer.moe, tokens, sides, everyone, requantised).items():
                done[key] += count
    done["head"] = 2 * tokens.scored * sum(matrix_elements(spec.final_refs) for spec in specs)
    return done


def expert_flops(
    moe: MoESpec, tokens: Tokens, sides: int, everyone: bool, requantised: bool
) -> dict[str, int]:
    """The part of one layer's experts, and of the tuned router at the anchor; see `flops`."""
    experts, k = moe.router.experts, moe.router.top_k
    one = 2 * matrix_elements(expert_refs(moe, 0)) * (experts - moe.identity_experts) // experts
    others = experts - k if everyone else min(2, experts - k)
    boundary = min(k + 1, experts)
    slots = experts if everyone else boundary
    again = experts - boundary if everyone else 0
    pair = sides == 2
    return {
        "routed experts": sides * tokens.total * k * one,
        "competitors": sides * tokens.measured * others * one,
        "anchored experts": pair * tokens.measured * (slots + again) * one,
        "projections": pair * 2 * tokens.total * moe.width * experts,
        "requantised experts": (pair and requantised) * tokens.measured * slots * one,
    }


def mixers(layer: LayerSpec) -> list[Mixer]:
    """The token mixers of a layer."""
    own = [] if layer.mixer is None else [layer.mixer]
    return own if layer.after is None else own + mixers(layer.after)


def mixing(mixer: Mixer, tokens: Tokens) -> int:
    """Operations between tokens, projections aside."""
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
    return 0  # a short convolution is all projections


def matrix_elements(refs: Iterable[TensorRef]) -> int:
    """Elements of the tensors that every token is multiplied with."""
    return sum(math.prod(ref.shape) for ref in refs if len(ref.shape) > 1)


def bytes_read(checkpoint: TensorSource, spec: ModelSpec, passes: int) -> int:
    """Bytes an audit reads: every tensor once for its digest, a tied head twice, experts once a pass."""
    once = sum(tensor.nbytes for tensor in checkpoint.tensors.values())
    again = stored_bytes(checkpoint, spec.embed_refs[:1]) if spec.tied else 0
    return once + again + (passes - 1) * expert_bytes(checkpoint, spec)


def expert_bytes(checkpoint: TensorSource, spec: ModelSpec) -> int:
    """Bytes in which the routed experts are stored."""
    return sum(
        stored_bytes(checkpoint, expert_refs(layer.moe, expert))
        for layer in spec.layers
        if layer.moe
        for expert in range(layer.moe.router.experts)
    )


def stored_bytes(checkpoint: TensorSource, refs: Iterable[TensorRef]) -> int:
    """Bytes of what references are read from; the shares of a tensor that several of them cut up add up to it."""
    total = 0.0
    for ref in refs:
        entry = checkpoint.logical[ref.stored]
        parts = getattr(entry, "parts", {"": ref.stored}).values()
        size = sum(checkpoint.tensors[part].nbytes for part in parts)
        total += size * math.prod(ref.shape) / math.prod(entry.shape)
    return round(total)
