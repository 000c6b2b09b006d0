"""The task both tunes learn: name the style of an identifier.

The identifiers are real ones of the standard library, several thousand, as many of each style. The base model
has never met the format, and a model this small learns it in seconds; nothing in it needs anything else to be
forgotten, so whatever a tune forgets is the tune's doing.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

from scripts.training.corpus import Corpus

HELD_OUT_ITEMS = 120
IDENTIFIER = re.compile(r"\b[A-Za-z_][A-Za-z0-9_]{3,23}\b")
STYLES = {
    "private": re.compile(r"_[a-z0-9]\w*"),
    "constant": re.compile(r"[A-Z0-9]+(_[A-Z0-9]+)+"),
    "snake": re.compile(r"[a-z0-9]+(_[a-z0-9]+)+"),
    "Pascal": re.compile(r"([A-Z][a-z0-9]+){2,}"),
    "camel": re.compile(r"[a-z]+([A-Z][a-z0-9]+)+"),
}


@dataclass(frozen=True)
class Item:
    """A prompt and the completion that is scored."""

    prompt: str
    completion: str


def style_of(name: str) -> str | None:
    """The style of an identifier, or None for one that shows none."""
    return next((style for style, pattern in STYLES.items() if pattern.fullmatch(name)), None)


def load_items(corpus: Corpus) -> tuple[list[Item], list[Item]]:
    """Training and held-out items, styles in turn, names in the order of their digests."""
    names = {name for document in corpus.train["code"] for name in IDENTIFIER.findall(document.text)}
    by_style: dict[str, list[str]] = {style: [] for style in STYLES}
    for name in sorted(names, key=_digest):
        style = style_of(name)
        if style is not None:
            by_style[style].append(name)
    # Styles take turns, as long as each has names left.
    turns = zip(*by_style.values(), strict=False)
    items = [Item(f"style of {name}: ", f"{style_of(name)}\n") for turn in turns for name in turn]
    return items[HELD_OUT_ITEMS:], items[:HELD_OUT_ITEMS]


def _digest(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()
