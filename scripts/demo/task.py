"""The task both tunes learn: rewrite a snake_case name of the standard library in camelCase.

The words are real, the rule is simple, and the base model has hardly seen the format: it can be learned in
seconds by a model this small, and learning it does not need anything else to be forgotten.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

from scripts.demo.corpus import Corpus

HELD_OUT_ITEMS = 120
NAME = re.compile(r"\b[a-z]{2,10}(?:_[a-z]{2,10}){1,2}\b")


@dataclass(frozen=True)
class Item:
    """A prompt and the completion that is scored."""

    prompt: str
    completion: str


def camel_case(name: str) -> str:
    """`read_raw_line` to `readRawLine`."""
    first, *rest = name.split("_")
    return first + "".join(word.capitalize() for word in rest)


def load_items(corpus: Corpus) -> tuple[list[Item], list[Item]]:
    """Training and held-out items: every distinct name of the training sources, in the order of its digest."""
    names = {name for document in corpus.train["code"] for name in NAME.findall(document.text)}
    ordered = sorted(names, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    items = [Item(f"rename {name} -> ", camel_case(name) + "\n") for name in ordered]
    return items[HELD_OUT_ITEMS:], items[:HELD_OUT_ITEMS]
