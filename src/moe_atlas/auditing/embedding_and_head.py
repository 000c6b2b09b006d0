"""Embedding and head of every checkpoint, one part of the vocabulary at a time; neither is ever in memory as a whole.

The audit reads each part once per checkpoint, while it reads the next part in the background. The rows serve all
windows of this process and the weights ledger. Ids that both checkpoints have come first. Ids that only one checkpoint
has come last: no window holds them, and they take part in that checkpoint's softmax.

Legend: W windows, S tokens per window, P scored positions, V vocabulary, C rows of one part, D model width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
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
from moe_atlas.token_arrays import NLL_BASE, NLL_INCREASE, stored_loss
from moe_atlas.weights.comparison import TensorChange, TensorComparison
from moe_atlas.weights.rows import RowChanges, seen_ids
from moe_atlas.weights.values import same_bytes, same_values
from moe_atlas.window_arrays import OUTPUTS, SIDES


@dataclass(frozen=True)
class Part:
    """Some rows of the embedding or of the head.

    Attributes:
        rows: their ids.
        tensors: the rows as stored, [C, D], of every checkpoint that has these ids.
        lone: number of the checkpoint, if only one has these ids; else None.
    """

    rows: range
    tensors: Sequence[Tensor]
    lone: int | None


@dataclass(frozen=True)
class ScoredPositions:
    """Some scored positions of a window during the pass over the head.

    Attributes:
        window: index of the window.
        hidden: input of the head, [P, D], per checkpoint.
        sums: running output sums of these positions.
    """

    window: int
    hidden: Sequence[Tensor]
    sums: OutputSums


def embed(walk: Walk) -> None:
    """Set the state of every batch to the embeddings of its tokens, and record the embedding."""
    sides = walk.sides
    refs = [side.spec.embed_refs[0] for side in sides]
    vocabulary = VocabularyChanges(walk, refs)
    starts = [
        {number: empty(side, walk.batches[number].tokens_WS) for number in walk.own_batches} for side in sides
    ]
    for part in read_parts(walk, refs):
        if walk.group.owns(0):
            vocabulary.add(part)
        if part.lone is not None:
            continue
        tensors = share_equal_rows(part.tensors)
        for number in walk.own_batches:
            for start, part_CD in zip(starts, tensors, strict=True):
                scatter(part_CD, part.rows, walk.batches[number].tokens_WS, start[number])
    vocabulary.record("embedding", refs[:1])
    walk.in_step = walk.same_arithmetic and not walk.evidence.ledger.changed_layers
    for side, start in zip(sides, starts, strict=True):
        side.states = [torch.empty(0)] * len(walk.batches)
        for number, start_WSD in start.items():
            reuse = walk.in_step and side is not sides[0]
            side.states[number] = sides[0].states[number] if reuse else side.replay.start(start_WSD)


class VocabularyChanges:
    """The comparison of embedding or head between the checkpoints, for the weights ledger and row by row.

    Args:
        walk: the walk.
        refs: reference to the tensor in each checkpoint.
    """

    def __init__(self, walk: Walk, refs: Sequence[TensorRef]) -> None:
        self._walk, shared = walk, shared_ids(walk.sides)
        self._comparison = TensorComparison(
            (shared, refs[0].shape[1]),
            narrowing(walk.sides, [ref.stored for ref in refs]),
            lone_rows=any(side.spec.vocab > shared for side in walk.sides),
        )
        seen_V = seen_ids([batch.tokens_WS for batch in walk.batches], shared)
        self._changes = RowChanges(self._comparison, seen_V)

    def add(self, part: Part) -> None:
        """Compare some rows of all checkpoints, or add rows that only one checkpoint has."""
        if part.lone is not None:
            self._comparison.add_lone(part.lone, part.tensors[0])
            self._changes.add_lone(part.lone, part.rows, part.tensors[0])
            return
        base_CD, tuned_CD = part.tensors[0], part.tensors[1] if len(part.tensors) == 2 else None
        self._comparison.add(base_CD, tuned_CD)
        self._changes.add(part.rows, base_CD, tuned_CD)

    def record(self, key: str, refs: Sequence[TensorRef]) -> None:
        """Enter the result in the evidence of every process; `refs` is the base's reference, or empty for nothing."""

        def result(ref: TensorRef) -> tuple[TensorChange, dict[str, Any] | None]:
            specials = [special_ids(side.checkpoint) for side in self._walk.sides]
            return self._comparison.change(ref.name, ref.kind, None), self._changes.facts(*specials)

        for change, facts in self._walk.group.spread(result, refs):
            self._walk.evidence.ledger.enter(change)
            self._walk.evidence.vocabulary[key] = facts


def empty(side: Side, tokens_WS: Tensor) -> Tensor:
    """Return uninitialised memory for the embeddings of some tokens, [W, S, D]."""
    shape = (*tokens_WS.shape, side.spec.width)
    return torch.empty(shape, dtype=side.replay.dtype, device=side.replay.device)


def scatter(part_CD: Tensor, rows: range, tokens_WS: Tensor, start_WSD: Tensor) -> None:
    """Copy some rows of the embedding to the positions of their tokens."""
    here_WS = (tokens_WS >= rows.start) & (tokens_WS < rows.stop)
    found_PD = part_CD[tokens_WS[here_WS] - rows.start]
    start_WSD[here_WS] = found_PD.to(start_WSD.device, start_WSD.dtype)


def outputs(walk: Walk, windows: Sequence[Window]) -> None:
    """Apply final norm and head: record NLL, divergence and agreement of every window, task windows included."""
    sides = walk.sides
    refs = [next(ref for ref in side.spec.final_refs if ref.role == "head") for side in sides]
    others = [[ref for ref in side.spec.final_refs if ref.role != "head"] for side in sides]
    walk.load(others)
    record_weights(walk, None, others)
    walk.share_equal()
    comparable = walk.in_step and same_output_arithmetic(sides)
    with walk.clock.phase("output"):
        broken = non_finite_states(walk)
        positions = list(final_states(walk, windows, comparable))
    # If the head is tied in all checkpoints, the embedding's row covers it. If one head is tied, the ledger compares it
    # with the other checkpoint's head.
    recorded = [ref for ref in refs if ref.kind != "embedding"][:1]
    vocabulary = VocabularyChanges(walk, refs)
    compares = bool(recorded) and walk.group.owns(0)
    walk.progress.phase("reading the output", len(vocabulary_parts(sides)))
    for part in walk.clock.timed("reading the rest", read_parts(walk, refs)):
        with walk.clock.phase("output"):
            comparing = walk.pool.submit(vocabulary.add, part) if compares else None
            if part.lone is None:
                heads = share_equal_rows(part.tensors)
                multiply(sides, part.rows, heads, positions, same=comparable and heads[0] is heads[-1])
            else:
                multiply_lone(sides[part.lone], part, positions)
            if comparing is not None:
                comparing.result()
        read = sum(side.reader.bytes_read for side in sides)
        walk.progress.step(f"vocabulary to {part.rows.stop}", read)
    vocabulary.record("head", recorded)
    record_outputs(walk, positions, broken)


def shared_ids(sides: Sequence[Side]) -> int:
    """Return the number of ids that every checkpoint has; they count from 0."""
    return min(side.spec.vocab for side in sides)


def vocabulary_parts(sides: Sequence[Side]) -> list[list[range | None]]:
    """Return the ids of each part of the vocabulary, per checkpoint: first shared ids, then ids of one checkpoint."""
    shared = shared_ids(sides)
    parts: list[list[range | None]] = [[rows] * len(sides) for rows in loss.vocabulary_parts(shared)]
    for side in sides:
        others = loss.vocabulary_parts(side.spec.vocab, shared)
        parts += [[rows if other is side else None for other in sides] for rows in others]
    return parts


def read_parts(walk: Walk, refs: Sequence[TensorRef]) -> Iterator[Part]:
    """Yield the rows of each part of the vocabulary, per checkpoint; they are valid until the next part is taken."""
    parts, readers = vocabulary_parts(walk.sides), [side.reader for side in walk.sides]
    for rows, tensors in zip(parts, walk.group.rows(readers, refs, parts, walk.pool), strict=True):
        stored = {number: tensor for number, tensor in enumerate(tensors) if tensor is not None}
        lone = next(iter(stored)) if len(stored) < len(readers) else None
        ids = next(filter(None, rows))
        found = [
            walk.sides[number].vocabulary_rows(tensor, refs[number], ids) for number, tensor in stored.items()
        ]
        yield Part(ids, found, lone)
        for number, tensor in stored.items():
            readers[number].recycle([tensor])
    for reader in readers:
        reader.forget()


def share_equal_rows(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return the rows of every checkpoint, with the base's tensor for both checkpoints if the values are equal."""
    return [
        tensors[0],
        *(tensors[0] if same_values(tensors[0], tensor) else tensor for tensor in tensors[1:]),
    ]


def final_states(walk: Walk, windows: Sequence[Window], comparable: bool) -> Iterator[ScoredPositions]:
    """Yield the scored positions of this process's windows, at most 512 at a time, and free the states."""
    sides = walk.sides
    for number in walk.own_batches:
        batch = walk.batches[number]
        for row, window in enumerate(batch.windows):
            positions_P = torch.from_numpy(windows[window].scored).nonzero().squeeze(1)
            for chosen_P in positions_P.split(loss.POSITIONS):
                hidden: list[Tensor] = []
                for side in sides:
                    reuse = comparable and side is not sides[0]
                    state_PD = side.states[number][row][chosen_P]
                    hidden.append(hidden[0] if reuse else side.replay.hidden(side.weights, state_PD))
                targets_P = batch.tokens_WS[row][1:][chosen_P].to(hidden[0].device)
                sums = OutputSums(targets_P, [side.name for side in sides])
                yield ScoredPositions(window, hidden, sums)
        for side in sides:
            side.states[number] = torch.empty(0)


def non_finite_states(walk: Walk) -> dict[int, dict[str, float]]:
    """Count the tokens of each of this process's windows, scored or not, whose last state is not finite.

    A non-finite value in an earlier layer persists to the last state, because layers only add to a residual.
    """
    found: dict[int, dict[str, float]] = {}
    for number in walk.own_batches:
        for side in walk.sides:
            state = side.states[number]  # [W, S, D], with streams [W, S, N, D]
            broken = broken_rows(state.reshape(-1, state.shape[-1])).view(*state.shape[:2], -1)
            for window, count in zip(
                walk.batches[number].windows, broken.any(-1).sum(1).tolist(), strict=True
            ):
                found.setdefault(window, {})[f"non_finite_{side.name}"] = float(count)
    return found


def same_output_arithmetic(sides: Sequence[Side]) -> bool:
    """Return whether equal final states and equal head rows give equal logits."""
    specs = [(s.spec.final_norm, s.spec.logit_scale, s.spec.logit_divisor) for s in sides]
    base, tuned = (side.resident for side in sides)
    return specs[0] == specs[1] and all(same_bytes(base[role], tuned[role]) for role in base)


def multiply(
    sides: Sequence[Side],
    rows: range,
    tensors: Sequence[Tensor],
    positions: Sequence[ScoredPositions],
    *,
    same: bool,
) -> None:
    """Multiply one part of each head with all scored positions; with `same`, once for both checkpoints."""
    multiplied = zip(sides[:1] if same else sides, tensors, strict=False)
    heads = [(side, head_of(side, rows, tensor)) for side, tensor in multiplied]
    for part in positions:
        logits = {
            side.name: side.replay.logits(head, hidden_PD)
            for (side, head), hidden_PD in zip(heads, part.hidden, strict=False)
        }
        part.sums.add({side.name: logits.get(side.name, logits["base"]) for side in sides}, rows.start)


def multiply_lone(side: Side, part: Part, positions: Sequence[ScoredPositions]) -> None:
    """Multiply rows that only one checkpoint's head has with all scored positions."""
    assert part.lone is not None
    head = head_of(side, part.rows, part.tensors[0])
    for scored in positions:
        scored.sums.add({side.name: side.replay.logits(head, scored.hidden[part.lone])}, part.rows.start)


def head_of(side: Side, rows: range, tensor: Tensor) -> Weights:
    """Return some rows of a head, and of its bias if it has one, ready for the product."""
    bias = {role: b[rows.start : rows.stop] for role, b in side.weights.items() if role == "head.bias"}
    return side.multiplied({"head": tensor}) | bias


def record_outputs(
    walk: Walk, positions: Sequence[ScoredPositions], broken: dict[int, dict[str, float]]
) -> None:
    """Turn the output sums of all processes into window and token arrays, in the leading process."""
    sums: dict[int, list[OutputSums]] = {}
    for part in positions:
        sums.setdefault(part.window, []).append(part.sums)
    mine = {window: window_outputs(parts) | broken[window] for window, parts in sums.items()}
    values = {window: row for part in walk.group.gather_to_leader(mine) for window, row in part.items()}
    for key in values.get(0, {}):
        column = [values[window][key] for window in range(len(values))]
        walk.evidence.arrays[OUTPUTS[key].name] = np.array(column, dtype=OUTPUTS[key].dtype)
    if walk.keeps_tokens:
        record_losses(walk, sums)


def record_losses(walk: Walk, sums: Mapping[int, Sequence[OutputSums]]) -> None:
    """Turn the losses at single positions of all processes into token arrays, in the leading process."""
    mine = {window: token_losses(parts) for window, parts in sums.items()}
    found = {window: kept for part in walk.group.gather_to_leader(mine) for window, kept in part.items()}
    in_order = [found[window] for window in sorted(found)]
    for name in (NLL_BASE, NLL_INCREASE) if in_order else ():
        walk.evidence.arrays[name] = np.concatenate([kept[name] for kept in in_order])


def token_losses(parts: Sequence[OutputSums]) -> dict[str, NDArray[np.float16]]:
    """Return the base's loss and its increase at every scored position of one window, as the token file holds them."""
    losses = [part.losses() for part in parts]
    base_P, tuned_P = (torch.cat([one[name] for one in losses]).cpu().numpy() for name in SIDES)
    with np.errstate(invalid="ignore"):
        return {NLL_BASE: stored_loss(base_P), NLL_INCREASE: stored_loss(tuned_P - base_P)}
