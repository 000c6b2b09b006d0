"""Cluster near-copies: documents that hold the same text are one observation, however their rows are spelled.

A shingle is a run of token ids. Texts are compared from the longest to the shortest. If at least half of a text's
shingles stand in longer texts, the text joins the cluster that holds most of them. So every counted document brings
more new text than old text. Hashes of all shingles are compared exactly. 10 000 windows of 512 tokens give five million
numbers to sort, which takes about two seconds; a signature (MinHash) would save little and could miss a copy.

Shape legend: P shingles of all texts, longest text first; N texts; C documents.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

U64 = NDArray[np.uint64]
I64 = NDArray[np.int64]

SHINGLE = 8  # tokens, about six words: a common phrase makes no copy
BYTE_SHINGLE = 32  # tokens, if tokens are bytes or characters
SEEN = 0.5
"""Share of shingles in longer texts from which on a text is a near-copy; the reference page gives the measurement."""
MOST = 1 << 23
"""Most shingles of all texts; beyond it, only hashes that some m divides are kept, in all texts (FracMinHash)."""

_ODD, _SHIFT = np.uint64(0x9E3779B97F4A7C15), np.uint64(29)


@dataclass(frozen=True)
class Text:
    """A text to compare.

    Attributes:
        document: number of the text's document.
        tokens: token ids, int64 [S].
        prompt: number of tokens of the prompt. Prompt and completion must each be a copy: the same refusal is the right
            answer to many prompts, and the same passage serves many questions.
        template: number of first tokens that all prompts of the domain share; they are not compared.
    """

    document: int
    tokens: I64
    prompt: int = 0
    template: int = 0


def shingle_length(window: int, highest: int) -> int:
    """Return the number of tokens of a shingle for windows of `window` tokens and token ids up to `highest`."""
    return max(1, min(BYTE_SHINGLE if highest < 256 else SHINGLE, window // 2))


def common_opening(prompts: Sequence[I64]) -> int:
    """Return the length of the template with which all prompts begin, in tokens; 0 for fewer than two prompts."""
    if len(prompts) < 2:
        return 0
    length = min(map(len, prompts))
    alike = np.all([prompt[:length] == prompts[0][:length] for prompt in prompts], axis=0)
    return length if alike.all() else int(np.argmin(alike))


def clustered(texts: Sequence[Text], shingle: int, cluster_C: I64) -> I64:
    """Join the clusters of near-copies.

    Args:
        texts: any number of texts per document.
        shingle: tokens of a shingle.
        cluster_C: the previous cluster of each document, int64 [C].

    Returns:
        The new cluster of each document, int64 [C]: the lowest number among the joined clusters.
    """
    index = _Index(texts, shingle)
    _, first_P, run_P = np.unique(index.key_P, return_index=True, return_inverse=True)
    document_N = np.array([text.document for text in index.texts], dtype=np.int64)
    holder_P = document_N[index.text_P[first_P[run_P]]]
    cluster_C = cluster_C.copy()
    for number, text in enumerate(index.texts):
        held = cluster_C[holder_P[index.at(number)]]
        own = cluster_C[text.document]
        if index.mostly(number, held != own):
            clusters, counts = np.unique(held[held != own], return_counts=True)
            pair = int(own), int(clusters[np.argmax(counts)])
            cluster_C[cluster_C == max(pair)] = min(pair)
    return cluster_C


def across(texts: Sequence[Text], groups: Sequence[int], shingle: int) -> list[tuple[int, int]]:
    """Find the texts that stand mostly in texts of other groups.

    Args:
        texts: all texts.
        groups: the group of each text.
        shingle: tokens of a shingle.

    Returns:
        Pairs in ascending order: the index of such a text, and the index of the text of another group that holds many
        of its shingles.
    """
    index = _Index(texts, shingle)
    order_N = np.array(index.order, dtype=np.int64)
    group_P = np.asarray(groups, dtype=np.int64)[order_N][index.text_P]
    run_P = np.unique(index.key_P, return_inverse=True)[1]
    sorted_P = np.lexsort((group_P, run_P))
    starts = np.searchsorted(run_P[sorted_P], np.arange(run_P.max(initial=-1) + 2))
    first_P, last_P = sorted_P[starts[:-1]][run_P], sorted_P[starts[1:] - 1][run_P]
    other_P = np.where(group_P[first_P] == group_P, last_P, first_P)
    elsewhere_P = group_P[other_P] != group_P
    found = []
    for number in range(len(texts)):
        at = index.at(number)
        if index.mostly(number, elsewhere_P[at]):
            holders = index.text_P[other_P[at][elsewhere_P[at]]]
            found.append((int(order_N[number]), int(order_N[np.argmax(np.bincount(holders))])))
    return sorted(found)


class _Index:
    """The shingles of texts, longest text first.

    Attributes:
        order: indices of the texts in that order.
        texts: the texts in that order.
        key_P: hash of each shingle, uint64 [P].
        text_P: position of the shingle's text in that order, int32 [P].
    """

    def __init__(self, texts: Sequence[Text], shingle: int) -> None:
        self.order = sorted(range(len(texts)), key=lambda n: -len(texts[n].tokens))
        self.texts = [texts[n] for n in self.order]
        step = max(1, -(-sum(len(text.tokens) for text in texts) // MOST))
        kept = [_shingles(text, shingle, step) for text in self.texts]
        self._in_prompt = [prompt for _, prompt in kept]
        lengths = [len(keys) for keys, _ in kept]
        self.key_P = np.concatenate([keys for keys, _ in kept])
        self.text_P = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
        self._edges = np.cumsum([0, *lengths])

    def at(self, number: int) -> slice:
        """Return the slice of a text's shingles within all shingles."""
        return slice(self._edges[number], self._edges[number + 1])

    def mostly(self, number: int, seen: NDArray[np.bool_]) -> bool:
        """Return whether at least half of the prompt's shingles and half of the completion's shingles are seen."""
        parts = [seen[part] for part in (self._in_prompt[number], ~self._in_prompt[number])]
        return len(seen) > 0 and all(part.mean() >= SEEN for part in parts if len(part))


def _shingles(text: Text, shingle: int, step: int) -> tuple[U64, NDArray[np.bool_]]:
    """Return the hashes of shingles that `step` divides, and for each whether its shingle ends in the prompt."""
    tokens = text.tokens.astype(np.uint64)
    count = max(0, len(tokens) - shingle + 1)
    keys = np.zeros(count, dtype=np.uint64)
    for offset in range(shingle):
        keys = (keys ^ tokens[offset : offset + count]) * _ODD
        keys ^= keys >> _SHIFT
    last = np.arange(count) + shingle - 1
    kept = (last >= text.template) & (keys % np.uint64(step) == 0)
    return keys[kept], last[kept] < text.prompt
