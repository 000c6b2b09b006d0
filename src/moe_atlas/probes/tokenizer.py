"""From text to token ids: a ``tokenizer.json``, or UTF-8 bytes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from moe_atlas.errors import InputRefused
from moe_atlas.probes.files import read_bounded, sha256_hex

Tokens = NDArray[np.int64]

MAX_TOKENIZER_BYTES = 256 << 20


class Tokenizer(Protocol):
    """What the windows need of a tokenizer."""

    @property
    def kind(self) -> str:
        """``file``, ``bytes`` or ``ids`` (no tokenizer: every source holds token ids)."""

    @property
    def sha256(self) -> str | None:
        """Digest of the tokenizer file, None when there is none."""

    def encode(self, text: str, where: str) -> Tokens:
        """Token ids of `text`, int64 [any length], without special tokens around it."""


@dataclass(frozen=True)
class ByteTokenizer:
    """UTF-8 bytes, ids 0 to 255."""

    kind: str = "bytes"
    sha256: str | None = None

    def encode(self, text: str, where: str) -> Tokens:
        """Token ids of `text`, int64."""
        del where
        return np.frombuffer(text.encode("utf-8"), dtype=np.uint8).astype(np.int64)


@dataclass(frozen=True)
class NoTokenizer:
    """The probe file names no tokenizer: text is refused."""

    kind: str = "ids"
    sha256: str | None = None

    def encode(self, text: str, where: str) -> Tokens:
        """Refuse.

        Raises:
            InputRefused: E_PROBE_TOKENIZER.
        """
        del text
        hint = "name a tokenizer.json or bytes under tokenizer"
        raise InputRefused("E_PROBE_TOKENIZER", where, "is text, but the probe file names no tokenizer", hint)


@dataclass(frozen=True)
class FileTokenizer:
    """A ``tokenizer.json`` of the tokenizers library.

    Truncation and padding that such a file may carry from its training are switched off, and no special token
    is put around a text: a window is cut from the middle of a document, where none would stand.
    """

    inner: Any
    sha256: str | None
    kind: str = "file"

    def encode(self, text: str, where: str) -> Tokens:
        """Token ids of `text`, int64.

        Raises:
            InputRefused: E_PROBE_TOKENIZER when the library cannot encode the text.
        """
        try:
            ids = self.inner.encode(text, add_special_tokens=False).ids
        except Exception as error:  # the library raises plain Exception
            raise InputRefused("E_PROBE_TOKENIZER", where, f"cannot be encoded ({error})") from error
        return np.asarray(ids, dtype=np.int64)


def open_tokenizer(name: str | None, folder: Path) -> Tokenizer:
    """The tokenizer a probe file names, relative to its folder.

    Raises:
        InputRefused: E_PROBE_TOKENIZER when the file is missing or is no tokenizer.
    """
    if name is None:
        return NoTokenizer()
    if name == "bytes":
        return ByteTokenizer()
    path = folder / name
    return parse_tokenizer(read_bounded(path, MAX_TOKENIZER_BYTES, "E_PROBE_TOKENIZER"), str(path))


def parse_tokenizer(raw: bytes, where: str) -> FileTokenizer:
    """The tokenizer that the bytes of a ``tokenizer.json`` describe.

    Raises:
        InputRefused: E_PROBE_TOKENIZER when they describe none.
    """
    import tokenizers  # noqa: PLC0415  only text sources need it

    try:
        inner = tokenizers.Tokenizer.from_buffer(raw)
    except Exception as error:  # the library raises plain Exception
        raise InputRefused("E_PROBE_TOKENIZER", where, "is not a tokenizer.json") from error
    inner.no_truncation()
    inner.no_padding()
    return FileTokenizer(inner, sha256_hex(raw))
