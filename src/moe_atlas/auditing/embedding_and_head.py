"""The two ends of a model: embedding and head, a part of the vocabulary at a time, neither of them ever held whole.

Of each part the rows of every checkpoint are read once, the next ones meanwhile, and serve all of this process's
windows and the weights ledger.

Legend: W windows, S tokens per window, P scored positions, V vocabulary, C its part at hand, D model width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from moe_atlas.auditing.layer.requantise import narrowing
from moe_atlas.auditing.layer.side import Side
from moe_atlas.auditing.recording import record_weights
from moe_atlas.auditing.walk import Walk
from moe_atlas.checkpoint.special_tokens import special_ids
from moe_atlas.geometry.finite import broken_rows
from moe_atlas.models.spec import TensorRef
from moe_atlas.probes.windows import Window
from moe_atlas.replay import loss
from moe_atlas.replay.loss import Scored, window_outputs
from moe_atlas.weights.comparison import Comparison, TensorChange
from moe_atlas.weights.rows import Rows, seen_ids
from moe_atlas.weights.values import same_bytes, same_values
from moe_atlas.window_arrays import OUTPUTS


@dataclass(frozen=True)
class Piece:
    """Some scored positions of a window on their way through the head.

    Attributes:
        window: index of the window.
        hidden: what the head is multiplied with, [P, D], per checkpoint.
        scored: what came of it so far.
    """

    window: int
    hidden: Sequence[Tensor]
    scored: Scored


def embed(walk: Walk) -> None:
    """Start every window from its tokens."""
    sides = walk.sides
    refs = [side.spec.embed_refs[0] for side in sides]
    comparison, changes = compared_rows(walk, refs)
    starts = [{number: empty(side, walk.batches[number].tokens_WS) for number in walk.own} for side in sides]
    for rows, tensors in parts_of(walk, refs):
        if walk.group.owns(0):
            take_in(comparison, changes, rows, tensors)
        parts = settled(tensors)
        for number in walk.own:
            for start, part_CD in zip(starts, parts, strict=True):
                scatter(part_CD, rows, walk.batches[number].tokens_WS, start[number])

    def found(ref: TensorRef) -> tuple[TensorChange, dict[str, Any] | None]:
        return comparison.change(ref.name, ref.kind, None), changes.facts(special(sides[0]))

    for change, facts in walk.group.spread(found, refs[:1]):
        walk.evidence.ledger.enter(change)
        walk.evidence.vocabulary["embedding"] = facts
    walk.in_step = walk.alike and not walk.evidence.ledger.changed_layers
    for side, start in zip(sides, starts, strict=True):
        side.states = [torch.empty(0)] * len(walk.batches)
        for number, start_WSD in start.items():
            shared = walk.in_step and side is not sides[0]
            side.states[number] = sides[0].states[number] if shared else side.replay.start(start_WSD)


def empty(side: Side, tokens_WS: Tensor) -> Tensor:
    """Where the embeddings of some tokens will be, [W, S, D]."""
    shape = (*tokens_WS.shape, side.spec.width)
    return torch.empty(shape, dtype=side.replay.dtype, device=side.replay.device)


def scatter(part_CD: Tensor, rows: range, tokens_WS: Tensor, start_WSD: Tensor) -> None:
    """Put some rows of the embedding wherever their tokens stand."""
    here_WS = (tokens_WS >= rows.start) & (tokens_WS < rows.stop)
    found_PD = part_CD[tokens_WS[here_WS] - rows.start]
    start_WSD[here_WS] = found_PD.to(start_WSD.device, start_WSD.dtype)


def outputs(walk: Walk, windows: Sequence[Window]) -> None:
    """Final norm and head: NLL, divergence and agreement of every window, task windows included."""
    sides = walk.sides
    refs = [next(ref for ref in side.spec.final_refs if ref.role == "head") for side in sides]
    others = [[ref for ref in side.spec.final_refs if ref.role != "head"] for side in sides]
    walk.enter(others)
    record_weights(walk, None, others)
    walk.settle()
    alike = walk.in_step and ends_alike(sides)
    with walk.clock.phase("output"):
        broken = broken_states(walk)
        pieces = list(final_states(walk, windows, alike))
    # A head that is tied on every side was recorded as the embedding; on one side only, it is held against the other's.
    recorded = [ref for ref in refs if ref.kind != "embedding"][:1]
    comparison, changes = compared_rows(walk, refs)
    compares = bool(recorded) and walk.group.owns(0)
    walk.progress.phase("reading the output", len(loss.vocabulary(sides[0].spec.vocab)))
    for rows, tensors in walk.clock.waiting("reading the rest", parts_of(walk, refs)):
        with walk.clock.phase("output"):
            comparing = walk.pool.submit(take_in, comparison, changes, rows, tensors) if compares else None
            heads = settled(tensors)
            multiply(sides, rows, heads, pieces, same=alike and heads[0] is heads[-1])
            if comparing is not None:
                comparing.result()
        walk.progress.step(f"vocabulary to {rows.stop}", sum(side.reader.bytes_read for side in sides))

    def found(ref: TensorRef) -> tuple[TensorChange, dict[str, Any] | None]:
        return comparison.change(ref.name, ref.kind, None), changes.facts(special(sides[0]))

    for change, facts in walk.group.spread(found, recorded):
        walk.evidence.ledger.enter(change)
        walk.evidence.vocabulary["head"] = facts
    enter_outputs(walk, pieces, broken)


def compared_rows(walk: Walk, refs: Sequence[TensorRef]) -> tuple[Comparison, Rows]:
    """What takes in embedding or head for the weights ledger, and row by row; `refs` has that of each checkpoint."""
    shape = refs[0].shape
    comparison = Comparison(shape, narrowing(walk.sides, [ref.stored for ref in refs]))
    seen_V = seen_ids([batch.tokens_WS for batch in walk.batches], shape[0])
    return comparison, Rows(comparison, seen_V)


def take_in(comparison: Comparison, changes: Rows, rows: range, tensors: Sequence[Tensor]) -> None:
    """Compare some rows of each checkpoint."""
    comparison.add(*pair_of(tensors))
    changes.add(rows, *pair_of(tensors))


def special(side: Side) -> dict[int, str]:
    """Ids of a checkpoint that have names."""
    return special_ids(side.checkpoint.root, side.checkpoint.config)


def parts_of(walk: Walk, refs: Sequence[TensorRef]) -> Iterator[tuple[range, list[Tensor]]]:
    """Parts of the vocabulary, and their rows of one tensor of each checkpoint, good until the next is asked for."""
    parts, readers = loss.vocabulary(walk.sides[0].spec.vocab), [side.reader for side in walk.sides]
    for rows, tensors in zip(parts, walk.group.rows(readers, refs, parts, walk.pool), strict=True):
        yield rows, tensors
        for reader, tensor in zip(readers, tensors, strict=True):
            reader.recycle([tensor])
    for reader in readers:
        reader.forget()


def pair_of(tensors: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
    """The base's tensor, and the tuned checkpoint's where there is one."""
    return tensors[0], tensors[1] if len(tensors) == 2 else None


def settled(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Rows of every checkpoint; the base's own for the tuned one, too, where the values are the same."""
    return [
        tensors[0],
        *(tensors[0] if same_values(tensors[0], tensor) else tensor for tensor in tensors[1:]),
    ]


def final_states(walk: Walk, windows: Sequence[Window], alike: bool) -> Iterator[Piece]:
    """The scored positions of this process's windows, up to 512 of a window at a time; the states are let go of."""
    sides = walk.sides
    for number in walk.own:
        batch = walk.batches[number]
        for row, window in enumerate(batch.windows):
            positions_P = torch.from_numpy(windows[window].scored).nonzero().squeeze(1)
            for chosen_P in positions_P.split(loss.POSITIONS):
                hidden: list[Tensor] = []
                for side in sides:
                    again = alike and side is not sides[0]
                    state_PD = side.states[number][row][chosen_P]
                    hidden.append(hidden[0] if again else side.replay.hidden(side.weights, state_PD))
                targets_P = batch.tokens_WS[row][1:][chosen_P].to(hidden[0].device)
                yield Piece(window, hidden, Scored(targets_P, [side.name for side in sides]))
        for side in sides:
            side.states[number] = torch.empty(0)


def broken_states(walk: Walk) -> dict[int, dict[str, float]]:
    """On how many tokens of each of this process's windows the last state is not finite, scored or not.

    What is not finite anywhere in front stays so: a residual only ever adds to it.
    """
    found: dict[int, dict[str, float]] = {}
    for number in walk.own:
        for side in walk.sides:
            state = side.states[number]  # [W, S, D], with streams [W, S, N, D]
            broken = broken_rows(state.reshape(-1, state.shape[-1])).view(*state.shape[:2], -1)
            for window, count in zip(
                walk.batches[number].windows, broken.any(-1).sum(1).tolist(), strict=True
            ):
                found.setdefault(window, {})[f"non_finite_{side.name}"] = float(count)
    return found


def ends_alike(sides: Sequence[Side]) -> bool:
    """Whether equal final states and equal rows of the head give equal logits."""
    specs = [(s.spec.final_norm, s.spec.logit_scale, s.spec.logit_divisor) for s in sides]
    base, tuned = (side.resident for side in sides)
    return specs[0] == specs[1] and all(same_bytes(base[role], tuned[role]) for role in base)


def multiply(
    sides: Sequence[Side], rows: range, tensors: Sequence[Tensor], pieces: Sequence[Piece], *, same: bool
) -> None:
    """Multiply a part of each head with all pieces; where everything is the same, once for both checkpoints."""
    heads = []
    for side, tensor in zip(sides[:1] if same else sides, tensors, strict=False):
        bias = {role: b[rows.start : rows.stop] for role, b in side.weights.items() if role == "head.bias"}
        heads.append((side, side.multiplied({"head": tensor}) | bias))
    for piece in pieces:
        logits = {
            side.name: side.replay.logits(head, hidden_PD)
            for (side, head), hidden_PD in zip(heads, piece.hidden, strict=False)
        }
        piece.scored.see({side.name: logits.get(side.name, logits["base"]) for side in sides}, rows.start)


def enter_outputs(walk: Walk, pieces: Sequence[Piece], broken: dict[int, dict[str, float]]) -> None:
    """Turn what came of all processes' pieces into window arrays."""
    mine: dict[int, list[Scored]] = {}
    for piece in pieces:
        mine.setdefault(piece.window, []).append(piece.scored)
    found = {window: window_outputs(scored) | broken[window] for window, scored in mine.items()}
    everyone = {window: values for part in walk.group.bring(found) for window, values in part.items()}
    for key in everyone.get(0, {}):
        column = [everyone[window][key] for window in range(len(everyone))]
        walk.evidence.arrays[OUTPUTS[key].name] = np.array(column, dtype=OUTPUTS[key].dtype)
