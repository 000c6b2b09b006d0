"""From token ids to pieces of text that are safe to show: every piece whole, no character in control of a screen."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from moe_atlas.probes.documents.tokenizer import Detokenizer

INCOMPLETE = "\ufffd"
LONGEST = 4  # bytes of a character in UTF-8, and so most tokens of one
SPELLED = {"\n": "↵\n", "\t": "⇥   "}


@dataclass(frozen=True)
class Piece:
    """Text of one token, or of the few tokens that spell one character together.

    Attributes:
        first: place of its first token in the window.
        stop: place behind its last token.
        text: the text, as the tokenizer gives it.
    """

    first: int
    stop: int
    text: str


def pieces(tokenizer: Detokenizer, ids: Sequence[int]) -> Iterator[Piece]:
    """Yield the pieces of a window in order; together they cover every token.

    A token is decoded behind the piece in front of it, because tokenizers drop a space at the start of a text.
    """
    before, first = 0, 0
    for stop in range(1, len(ids) + 1):
        front = tokenizer.decode(ids[before:first])
        text = tokenizer.decode(ids[before:stop])
        added = text[len(front) :] if text.startswith(front) else tokenizer.decode(ids[first:stop])
        waits = added.endswith(INCOMPLETE) or not added
        if waits and stop < len(ids) and stop - first < LONGEST:
            continue
        yield Piece(first, stop, added)
        before, first = first, stop


def visible(text: str) -> str:
    """Return text in which line breaks and tabs are marked, and other unprintable characters are escaped.

    Controls, bidi and other format characters and lone surrogates become backslash escapes.
    """
    return "".join(map(_spelled, text))


def _spelled(character: str) -> str:
    if character in SPELLED:
        return SPELLED[character]
    return character if character.isprintable() else character.encode("unicode_escape").decode("ascii")


def without_commands(texts: Iterable[str]) -> Iterator[str]:
    """Yield texts that show as they are but hold no ``##[``, which a log of GitHub Actions obeys, even across texts."""
    tail = ""
    for text in texts:
        out = []
        for character in text:
            command = character == "[" and tail == "##"
            out.append(r"\x5b" if command else character)
            tail = (tail + character)[-2:]
        yield "".join(out)
