"""What an audit needs of the place that a checkpoint's tensors come from.

`open_checkpoint` makes a source of a folder of safetensors; everything outside this package knows the protocol alone.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping
from contextlib import AbstractContextManager
from types import MappingProxyType
from typing import Any, Protocol

from moe_atlas.checkpoint.headers.header import StoredTensor
from moe_atlas.checkpoint.quantised.encoding import Encoded
from moe_atlas.checkpoint.side_files import SideFile


class OpenFile(Protocol):
    """A file of a source, open for reading; a file is whatever `TensorSource.identities` lists."""

    def read_into(self, buffer: memoryview, tensor: StoredTensor, start: int) -> None:
        """Fill the buffer with the tensor's bytes from `start` on, or raise ``E_CHANGED``."""


class TensorSource(Protocol):
    """A checkpoint as an audit reads it: a configuration, stored tensors, and the files beside them.

    Two threads may read at the same time, each through its own `open`.
    """

    @property
    def label(self) -> str:
        """How the user named it, for messages."""

    @property
    def config(self) -> dict[str, Any]:
        """The content of ``config.json``."""

    @property
    def tensors(self) -> Mapping[str, StoredTensor]:
        """Every stored tensor by name, in name order; `file` and `begin` say in which order to read them."""

    @property
    def encoded(self) -> Mapping[str, Encoded]:
        """Every quantised tensor by the name it stands for; its parts are among `tensors`."""

    @property
    def logical(self) -> Mapping[str, StoredTensor | Encoded]:
        """Every tensor as it is meant: what `logical_tensors` makes of the two."""

    @property
    def identities(self) -> Mapping[str, Hashable]:
        """What identified each file when it was opened first; files with equal identities hold the same bytes."""

    def where(self, file: str) -> str:
        """What messages call a file of the source or beside it."""

    def open(self, file: str, *, again: bool = False) -> AbstractContextManager[OpenFile]:
        """Open a file for ranged reads.

        Args:
            file: a key of `identities`.
            again: whether its bytes will be read once more, so that they had better be kept nearby.

        Raises:
            IntegrityError: ``E_CHANGED`` on entering, when the file is gone or is not the one of `identities`.
        """

    def require_unchanged(self) -> None:
        """Raise ``E_CHANGED`` unless every file is the one of `identities`."""

    def read_small(self, name: str, limit: int) -> bytes | None:
        """Read a small file beside the tensors; None where there is none.

        Raises:
            InputRefused: when it holds more than `limit` bytes or cannot be read.
        """

    def beside(self) -> list[SideFile]:
        """Every file beside the source's own, what a server acts on first."""

    def require_unchanged_beside(self, first: Collection[SideFile]) -> None:
        """Raise ``E_CHANGED`` when a file that a server may act on came, went or was written since `beside`."""


def logical_tensors(
    tensors: Mapping[str, StoredTensor], encoded: Mapping[str, Encoded]
) -> Mapping[str, StoredTensor | Encoded]:
    """Every tensor as it is meant, in name order: quantised ones decoded, their parts gone."""
    parts = {part for entry in encoded.values() for part in entry.parts.values()}
    plain = {name: tensor for name, tensor in tensors.items() if name not in parts}
    return MappingProxyType(dict(sorted((plain | dict(encoded)).items())))
