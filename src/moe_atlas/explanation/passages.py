"""The text of one window with the change of loss and of routes at every piece of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from moe_atlas.explanation.documents import Document
from moe_atlas.explanation.evidence import F64, Evidence
from moe_atlas.explanation.text import Piece, pieces

LEAST_SCALE = 0.1  # nats; smaller changes than this stay pale, however small all others are
LEVELS = 4


@dataclass(frozen=True)
class Shaded:
    """A piece of text.

    Attributes:
        text: the text, as the tokenizer gives it; not safe to show.
        base: loss of the base, nats, over the tokens of the piece; None where nothing is scored or kept.
        increase: change of the loss, nats, likewise.
        moved: largest number of layers in which the routed set of a token of the piece changed; None if not kept.
    """

    text: str
    base: float | None
    increase: float | None
    moved: int | None


@dataclass(frozen=True)
class Passage:
    """Part of a window, around the tokens that lost most.

    Attributes:
        document: the document's name.
        window: number of the window among those of the document, from 1.
        windows: the document's number of windows.
        first: tokens of the window in front of the passage.
        behind: tokens of the window behind it.
        pieces: its text.
    """

    document: str
    window: int
    windows: int
    first: int
    behind: int
    pieces: tuple[Shaded, ...]

    def worst(self, most: int) -> list[Shaded]:
        """Return the pieces whose loss rose most, worst first."""
        risen = [piece for piece in self.pieces if piece.increase is not None and piece.increase > 0]
        return sorted(risen, key=lambda piece: -(piece.increase or 0.0))[:most]


def passages(evidence: Evidence, document: Document, length: int) -> Iterator[Passage]:
    """Yield one passage of at most `length` tokens of each window of a document."""
    for number, window in enumerate(document.windows):
        ids = evidence.probes.windows[window].tokens
        first = densest(evidence.increase_T[evidence.place(window)], length) if evidence.tokens else 0
        stop = min(first + length, len(ids))
        found = pieces(evidence.tokenizer, ids[first:stop].tolist())
        shaded = tuple(_shaded(evidence, window, first, piece) for piece in found)
        yield Passage(document.name, number + 1, len(document.windows), first, len(ids) - stop, shaded)


def densest(increase_S: F64, length: int) -> int:
    """Return the start of the `length` consecutive tokens that gained most loss together."""
    gained_S = np.where(np.isfinite(increase_S), np.maximum(increase_S, 0.0), 0.0)
    before = np.concatenate([[0.0], np.cumsum(gained_S)])
    span = min(length, len(gained_S))
    return int(np.argmax(before[span:] - before[: len(before) - span]))


def _shaded(evidence: Evidence, window: int, first: int, piece: Piece) -> Shaded:
    if evidence.tokens is None:
        return Shaded(piece.text, None, None, None)
    start = evidence.place(window).start + first
    here = slice(start + piece.first, start + piece.stop)
    scored = evidence.scored_T[here]
    base, increase = (
        float(values_T[here][scored].sum()) if scored.any() else None
        for values_T in (evidence.base_T, evidence.increase_T)
    )
    return Shaded(piece.text, base, increase, int(evidence.layers_moved_T[here].max()))


def scale(evidence: Evidence) -> float:
    """Return the change of loss that is shaded darkest: of 19 in 20 tokens, no larger one; at least `LEAST_SCALE`."""
    change_P = np.abs(evidence.increase_T[evidence.scored_T])
    change_P = change_P[np.isfinite(change_P)]
    return max(LEAST_SCALE, float(np.quantile(change_P, 0.95))) if len(change_P) else LEAST_SCALE


def level(increase: float | None, darkest: float) -> int:
    """Return the shade of a change of loss: 1 to 4 for a rise, −1 to −4 for a fall, 0 for less than an eighth."""
    if increase is None:
        return 0
    if not np.isfinite(increase):
        return LEVELS
    shade = min(LEVELS, round(LEVELS * abs(increase) / darkest))
    return shade if increase > 0 else -shade
