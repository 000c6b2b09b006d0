"""The two ends of a model: embedding and head, a part of the vocabulary at a time, neither of them ever held whole.

Of each part the rows of every checkpoint are read once, the next ones meanwhile, and serve all of this process's
windows and the weights ledger. Ids that both checkpoints have come first. Those that one of them alone has come last:
no window holds them, and they take part in that checkpoint's softmax.

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
from moe_atlas.auditing.layer.side import Side, Weights
from moe_atlas.auditing.recording import record_weights
from moe_atlas.auditing.walk import Walk
from moe_atlas.checkpoint.special_tokens import special_ids
from moe_atlas.geometry.finite import broken_rows
from moe_atlas.models.spec import TensorRef
from moe_atlas.probes.windows import Window
from moe_atlas.replay import loss
from moe_atlas.replay.loss import OutputSums, window_outputs
from moe_atlas.weights.comparison import Comparison, TensorChange
from moe_atlas.weights.rows import Rows, seen_ids
from moe_atlas.weights.values import same_bytes, same_values
from moe_atlas.window_arrays import OUTPUTS


@dataclass(frozen=True)
class Part:
    """Some rows of the embedding or of the head.

    Attributes:
        rows: their ids.
        tensors: the rows as stored, [C, D], of every checkpoint; of one alone where only that one has these ids.
        lone: the number of that checkpoint, or None.
    """

    rows: range
    tensors: Sequence[Tensor]
    lone: int | None


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
    scored: OutputSums


def embed(walk: Walk) -> None:
    """Start every window from its tokens."""
    sides = walk.sides
    refs = [side.spec.embed_refs[0] for side in sides]
    comparison, changes = compared_rows(walk, refs)
    starts = [{number: empty(side, walk.batches[number].tokens_WS) for number in walk.own} for side in sides]
    for part in parts_of(walk, refs):
        if walk.group.owns(0):
            take_in(comparison, changes, part)
        if part.lone is not None:
            continue
        settled_parts = settled(part.tensors)
        for number in walk.own:
            for start, part_CD in zip(starts, settled_parts, strict=True):
                scatter(part_CD, part.rows, walk.batches[number].tokens_WS, start[number])

    def found(ref: TensorRef) -> tuple[TensorChange, dict[str, Any] | None]:
        return comparison.change(ref.name, ref.kind, None), changes.facts(*map(special, sides))

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
    walk.progress.phase("reading the output", len(vocabulary_parts(sides)))
    for part in walk.clock.waiting("reading the rest", parts_of(walk, refs)):
        with walk.clock.phase("output"):
            comparing = walk.pool.submit(take_in, comparison, changes, part) if compares else None
            if part.lone is None:
                heads = settled(part.tensors)
                multiply(sides, part.rows, heads, pieces, same=alike and heads[0] is heads[-1])
            else:
                multiply_lone(sides[part.lone], part, pieces)
            if comparing is not None:
                comparing.result()
        read = sum(side.reader.bytes_read for side in sides)
        walk.progress.step(f"vocabulary to {part.rows.stop}", read)

    def found(ref: TensorRef) -> tuple[TensorChange, dict[str, Any] | None]:
        return comparison.change(ref.name, ref.kind, None), changes.facts(*map(special, sides))

    for change, facts in walk.group.spread(found, recorded):
        walk.evidence.ledger.enter(change)
        walk.evidence.vocabulary["head"] = facts
    enter_outputs(walk, pieces, broken)


def compared_rows(walk: Walk, refs: Sequence[TensorRef]) -> tuple[Comparison, Rows]:
    """What takes in embedding or head for the weights ledger, and row by row; `refs` has that of each checkpoint."""
    shared = shared_ids(walk.sides)
    comparison = Comparison(
        (shared, refs[0].shape[1]),
        narrowing(walk.sides, [ref.stored for ref in refs]),
        lone_rows=any(side.spec.vocab > shared for side in walk.sides),
    )
    return comparison, Rows(comparison, seen_ids([batch.tokens_WS for batch in walk.batches], shared))


def take_in(comparison: Comparison, changes: Rows, part: Part) -> None:
    """Compare some rows of each checkpoint, or look at those that one of them alone has."""
    if part.lone is None:
        comparison.add(*pair_of(part.tensors))
        changes.add(part.rows, *pair_of(part.tensors))
    else:
        comparison.add_lone(part.lone, part.tensors[0])
        changes.add_lone(part.lone, part.rows, part.tensors[0])


def shared_ids(sides: Sequence[Side]) -> int:
    """How many ids every checkpoint has: 0 up to this number."""
    return min(side.spec.vocab for side in sides)


def vocabulary_parts(sides: Sequence[Side]) -> list[list[range | None]]:
    """The parts in which the vocabulary passes, a range for each checkpoint: the shared ids, then the others."""
    shared = shared_ids(sides)
    parts: list[list[range | None]] = [[rows] * len(sides) for rows in loss.vocabulary_parts(shared)]
    for side in sides:
        others = loss.vocabulary_parts(side.spec.vocab, shared)
        parts += [[rows if other is side else None for other in sides] for rows in others]
    return parts


def special(side: Side) -> dict[int, str]:
    """Ids of a checkpoint that have names."""
    return special_ids(side.checkpoint)


def parts_of(walk: Walk, refs: Sequence[TensorRef]) -> Iterator[Part]:
    """Parts of the vocabulary, with their rows of one tensor of each checkpoint, good until the next is asked for."""
    parts, readers = vocabulary_parts(walk.sides), [side.reader for side in walk.sides]
    for rows, tensors in zip(parts, walk.group.rows(readers, refs, parts, walk.pool), strict=True):
        found = {number: tensor for number, tensor in enumerate(tensors) if tensor is not None}
        alone = next(iter(found)) if len(found) < len(readers) else None
        yield Part(next(filter(None, rows)), list(found.values()), alone)
        for number, tensor in found.items():
            readers[number].recycle([tensor])
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
                yield Piece(window, hidden, OutputSums(targets_P, [side.name for side in sides]))
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
    multiplied = zip(sides[:1] if same else sides, tensors, strict=False)
    heads = [(side, head_of(side, rows, tensor)) for side, tensor in multiplied]
    for piece in pieces:
        logits = {
            side.name: side.replay.logits(head, hidden_PD)
            for (side, head), hidden_PD in zip(heads, piece.hidden, strict=False)
        }
        piece.scored.add({side.name: logits.get(side.name, logits["base"]) for side in sides}, rows.start)


def multiply_lone(side: Side, part: Part, pieces: Sequence[Piece]) -> None:
    """Multiply the rows that one checkpoint's head alone has with all pieces."""
    assert part.lone is not None
    head = head_of(side, part.rows, part.tensors[0])
    for piece in pieces:
        piece.scored.add({side.name: side.replay.logits(head, piece.hidden[part.lone])}, part.rows.start)


def head_of(side: Side, rows: range, tensor: Tensor) -> Weights:
    """Some rows of a head, and of its bias where it has one, as they are multiplied."""
    bias = {role: b[rows.start : rows.stop] for role, b in side.weights.items() if role == "head.bias"}
    return side.multiplied({"head": tensor}) | bias


def enter_outputs(walk: Walk, pieces: Sequence[Piece], broken: dict[int, dict[str, float]]) -> None:
    """Turn what came of all processes' pieces into window arrays."""
    mine: dict[int, list[OutputSums]] = {}
    for piece in pieces:
        mine.setdefault(piece.window, []).append(piece.scored)
    found = {window: window_outputs(scored) | broken[window] for window, scored in mine.items()}
    everyone = {window: values for part in walk.group.bring(found) for window, values in part.items()}
    for key in everyone.get(0, {}):
        column = [everyone[window][key] for window in range(len(everyone))]
        walk.evidence.arrays[OUTPUTS[key].name] = np.array(column, dtype=OUTPUTS[key].dtype)
