"""Changes of loss and of routes by kind of token: how often it occurs, where it stands, what it is made of.

A token belongs to one category of each grouping. Loss is that of predicting the token; routing is that of the token.

Legend: T tokens of all windows, P scored tokens of one domain, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moe_atlas.explanation.evidence import F64, Evidence, Ints

FREQUENCIES = {"once": 1, "2 to 9 times": 2, "10 to 99 times": 10, "100 times and more": 100}
"""The least number of occurrences in the probe, by band."""
QUARTERS = ("first quarter", "second quarter", "third quarter", "last quarter")
SPECIAL, SPACE, LETTERS, DIGITS, PUNCTUATION, OTHER = KINDS = (
    *("special token", "white space", "letters", "digits", "punctuation"),
    "mixed or part of a character",
)


@dataclass(frozen=True)
class Category:
    """The tokens of one category in one domain.

    Attributes:
        grouping: what the category is one of: occurrences in the probe, place in the window, or text.
        name: its name.
        tokens: number of scored tokens.
        base: mean loss of the base, nats.
        increase: mean change of the loss, nats.
        share: share of the loss that the domain's tokens gained, over tokens whose loss rose; None if none rose.
        moved: mean share of layers in which a token's routed set changed.
    """

    grouping: str
    name: str
    tokens: int
    base: float
    increase: float
    share: float | None
    moved: float


def by_category(evidence: Evidence) -> Mapping[str, list[Category]]:
    """Return the categories of every domain that has tokens, by domain; needs token data."""
    groupings = groups(evidence)
    domain_W = [window.domain for window in evidence.probes.windows]
    domain_T = np.repeat(domain_W, [len(window.tokens) for window in evidence.probes.windows])
    return {
        domain.name: list(_of_domain(evidence, groupings, (domain_T == number) & evidence.scored_T))
        for number, domain in enumerate(evidence.probes.config.domains)
    }


def groups(evidence: Evidence) -> dict[str, tuple[tuple[str, ...], Ints]]:
    """Return each grouping with the names of its categories, and the category of every token, int64 [T]."""
    found = {
        "occurrences in the probe": (tuple(FREQUENCIES), frequency_bands(evidence.ids_T)),
        "place in the window": (QUARTERS, quarters([len(w.tokens) for w in evidence.probes.windows])),
    }
    if evidence.tokenizer.kind != "ids":
        found["text of the token"] = (KINDS, kinds(evidence))
    return found


def frequency_bands(ids_T: Ints) -> Ints:
    """Return the band of each token's number of occurrences, int64 [T]."""
    _, which_T, counts = np.unique(ids_T, return_inverse=True, return_counts=True)
    return np.searchsorted(list(FREQUENCIES.values()), counts[which_T], side="right") - 1


def quarters(lengths: list[int]) -> Ints:
    """Return the quarter of its window in which each token stands, int64 [T]."""
    return np.concatenate([4 * np.arange(length) // length for length in lengths])


def kinds(evidence: Evidence) -> Ints:
    """Return the kind of text of every token, int64 [T]."""
    special = evidence.tokenizer.special_ids()
    ids_V, which_T = np.unique(evidence.ids_T, return_inverse=True)
    kind_V = [
        KINDS.index(SPECIAL if one in special else kind_of(evidence.tokenizer.decode([one])))
        for one in ids_V.tolist()
    ]
    return np.array(kind_V, dtype=np.int64)[which_T]


def kind_of(text: str) -> str:
    """Return what a token's text is made of, white space around it aside."""
    core = text.strip()
    if not core:
        return SPACE
    if core.isalpha():
        return LETTERS
    if core.isnumeric():
        return DIGITS
    plain = all(c.isprintable() and not c.isalnum() and c != "\ufffd" for c in core)
    return PUNCTUATION if plain else OTHER


def _of_domain(
    evidence: Evidence, groupings: Mapping[str, tuple[tuple[str, ...], Ints]], chosen_T: NDArray[np.bool_]
) -> Iterator[Category]:
    if not chosen_T.any():
        return
    base_P, increase_P = evidence.base_T[chosen_T], evidence.increase_T[chosen_T]
    moved_P = evidence.layers_moved_T[chosen_T] / len(evidence.layers)
    gained_P = np.where(np.isfinite(increase_P), np.maximum(increase_P, 0.0), 0.0)
    for grouping, (names, which_T) in groupings.items():
        which_P = which_T[chosen_T]
        for number, name in enumerate(names):
            here_P = which_P == number
            if here_P.any():
                yield Category(
                    grouping,
                    name,
                    tokens=int(here_P.sum()),
                    base=float(base_P[here_P].mean()),
                    increase=float(increase_P[here_P].mean()),
                    share=_share(gained_P, here_P),
                    moved=float(moved_P[here_P].mean()),
                )


def _share(gained_P: F64, here_P: NDArray[np.bool_]) -> float | None:
    total = float(gained_P.sum())
    return float(gained_P[here_P].sum()) / total if total else None
