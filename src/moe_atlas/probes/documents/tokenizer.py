"""Turn text into token ids by a ``tokenizer.json``, or into UTF-8 bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, Protocol

import numpy as np
from numpy.typing import NDArray

from moe_atlas.errors import InputRefused
from moe_atlas.probes.reading.bounded_files import read_bounded, sha256_hex

Tokens = NDArray[np.int64]
Marks = NDArray[np.bool_]

MAX_TOKENIZER_BYTES = 256 << 20


class Tokenizer(Protocol):
    """The interface of a tokenizer."""

    @property
    def kind(self) -> str:
        """Return ``file``, ``bytes`` or ``ids`` (no tokenizer: every source holds token ids)."""

    @property
    def sha256(self) -> str | None:
        """Return the digest of the tokenizer file, None if there is no file."""

    def encode(self, text: str, where: str) -> Tokens:
        """Return the token ids of `text`, int64 [T], without special tokens around it."""

    def encode_marked(self, text: str, spans: Sequence[tuple[int, int]], where: str) -> tuple[Tokens, Marks]:
        """Return the token ids of `text`, int64 [T], and for each whether it holds characters of `spans`, bool [T]."""

    def token_id(self, token: str) -> int | None:
        """Return the id of the token of this name, None if there is no such token."""


class Detokenizer(Protocol):
    """The interface of what turns token ids into text."""

    @property
    def kind(self) -> str:
        """Return ``file``, ``bytes`` or ``ids`` (no tokenizer: the text is the ids themselves)."""

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of token ids; an incomplete character ends in U+FFFD."""

    def special_ids(self) -> frozenset[int]:
        """Return the ids of special tokens."""


@dataclass(frozen=True)
class ByteTokenizer:
    """UTF-8 bytes, ids 0 to 255."""

    kind: str = "bytes"
    sha256: str | None = None

    def encode(self, text: str, where: str) -> Tokens:
        """Return the token ids of `text`, int64 [T]."""
        del where
        return np.frombuffer(text.encode("utf-8"), dtype=np.uint8).astype(np.int64)

    def encode_marked(self, text: str, spans: Sequence[tuple[int, int]], where: str) -> tuple[Tokens, Marks]:
        """Return the token ids of `text`, int64 [T], and for each whether it holds characters of `spans`, bool [T]."""
        tokens = self.encode(text, where)
        marked = np.zeros(len(tokens), dtype=np.bool_)
        for start, end in spans:
            first = len(text[:start].encode("utf-8"))
            marked[first : first + len(text[start:end].encode("utf-8"))] = True
        return tokens, marked

    def token_id(self, token: str) -> None:
        """Return None: byte tokens have no names."""

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of bytes."""
        return bytes(tokens).decode("utf-8", "replace")

    def special_ids(self) -> frozenset[int]:
        """Return nothing: no byte is special."""
        return frozenset()


@dataclass(frozen=True)
class NoTokenizer:
    """Refuses text, because the probe file names no tokenizer."""

    kind: str = "ids"
    sha256: str | None = None

    def encode(self, text: str, where: str) -> NoReturn:
        """Refuse.

        Raises:
            InputRefused: E_PROBE_TOKENIZER.
        """
        del text
        hint = "name a tokenizer.json or bytes under tokenizer"
        raise InputRefused("E_PROBE_TOKENIZER", where, "is text, but the probe file names no tokenizer", hint)

    def encode_marked(self, text: str, spans: Sequence[tuple[int, int]], where: str) -> NoReturn:
        """Refuse.

        Raises:
            InputRefused: E_PROBE_TOKENIZER.
        """
        del spans
        self.encode(text, where)

    def token_id(self, token: str) -> None:
        """Return None: there are no tokens."""

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the ids themselves: nothing says what they stand for."""
        return "".join(f"[{token}]" for token in tokens)

    def special_ids(self) -> frozenset[int]:
        """Return nothing: nothing says which ids are special."""
        return frozenset()


@dataclass(frozen=True)
class FileTokenizer:
    """A ``tokenizer.json`` of the tokenizers library.

    Truncation and padding, which such a file may carry from its training, are switched off. No special token is put
    around a text, because windows are cut from the middle of documents.
    """

    inner: Any
    sha256: str | None
    kind: str = "file"

    def encode(self, text: str, where: str) -> Tokens:
        """Return the token ids of `text`, int64 [T].

        Raises:
            InputRefused: E_PROBE_TOKENIZER if the library cannot encode the text.
        """
        return np.asarray(self._encoding(text, where).ids, dtype=np.int64)

    def encode_marked(self, text: str, spans: Sequence[tuple[int, int]], where: str) -> tuple[Tokens, Marks]:
        """Return the token ids of `text`, int64 [T], and for each whether it holds characters of `spans`, bool [T].

        A token that holds characters on both sides of an edge is marked.

        Raises:
            InputRefused: E_PROBE_TOKENIZER if the library cannot encode the text.
        """
        encoding = self._encoding(text, where)
        starts, ends = np.asarray(encoding.offsets, dtype=np.int64).reshape(-1, 2).T
        marked = np.zeros(len(starts), dtype=np.bool_)
        for start, end in spans:
            marked |= (starts < end) & (ends > start)
        return np.asarray(encoding.ids, dtype=np.int64), marked

    def token_id(self, token: str) -> int | None:
        """Return the id of the token of this name, None if there is no such token."""
        found: int | None = self.inner.token_to_id(token)
        return found

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of token ids, special tokens included."""
        text: str = self.inner.decode(list(tokens), skip_special_tokens=False)
        return text

    def special_ids(self) -> frozenset[int]:
        """Return the ids of special tokens."""
        added = self.inner.get_added_tokens_decoder()
        return frozenset(number for number, token in added.items() if token.special)

    def _encoding(self, text: str, where: str) -> Any:
        try:
            return self.inner.encode(text, add_special_tokens=False)
        except Exception as error:  # the library raises plain Exception
            raise InputRefused("E_PROBE_TOKENIZER", where, f"cannot be encoded ({error})") from error


def open_tokenizer(name: str | None, folder: Path) -> ByteTokenizer | NoTokenizer | FileTokenizer:
    """Return the tokenizer that a probe file names, relative to the file's folder.

    Raises:
        InputRefused: E_PROBE_TOKENIZER if the file is missing or is no ``tokenizer.json``.
    """
    if name is None:
        return NoTokenizer()
    if name == "bytes":
        return ByteTokenizer()
    path = folder / name
    return parse_tokenizer(read_bounded(path, MAX_TOKENIZER_BYTES, "E_PROBE_TOKENIZER"), str(path))


def parse_tokenizer(raw: bytes, where: str) -> FileTokenizer:
    """Parse the bytes of a ``tokenizer.json`` and return its tokenizer.

    Raises:
        InputRefused: E_PROBE_TOKENIZER if the bytes describe no tokenizer.
    """
    import tokenizers  # noqa: PLC0415  only text sources need it

    try:
        inner = tokenizers.Tokenizer.from_buffer(raw)
    except Exception as error:  # the library raises plain Exception
        raise InputRefused("E_PROBE_TOKENIZER", where, "is not a tokenizer.json") from error
    inner.no_truncation()
    inner.no_padding()
    # Without special tokens, a post-processor would only remove white space from the offsets of tokens.
    inner.post_processor = None
    return FileTokenizer(inner, sha256_hex(raw))
