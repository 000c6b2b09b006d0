"""The protocol of a source of tensors, through which an audit reads a checkpoint.

`open_checkpoint` makes a source of a folder of safetensors. Code outside this package knows only the protocol.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping
from contextlib import AbstractContextManager
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

from moe_atlas.checkpoint.headers.header import StoredTensor
from moe_atlas.checkpoint.quantised.encoding import Encoded, Encoding
from moe_atlas.checkpoint.side_files import SideFile

if TYPE_CHECKING:
    from torch import Tensor


class OpenFile(Protocol):
    """An open file of a source; the files of a source are the keys of `TensorSource.identities`."""

    def read_into(self, buffer: memoryview, tensor: StoredTensor, start: int) -> None:
        """Fill the buffer with the tensor's bytes from `start` on, or raise ``E_CHANGED``."""


class Given(Protocol):
    """Reads what is stored under a name, decoded where it is quantised."""

    def __call__(self, name: str, index: int | None, rows: range | None, /) -> Tensor:
        """Read a tensor, entry `index` of its leading dimension, or `rows` of either."""


class Derived(Protocol):
    """A tensor that is computed from stored tensors each time it is read."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the whole tensor."""

    @property
    def dtype(self) -> str:
        """The dtype of what `read` returns, as safetensors spells it."""

    @property
    def parts(self) -> Mapping[str, str]:
        """Stored names of the tensors that each reading of it reads anew, by role."""

    @property
    def encoding(self) -> Encoding | None:
        """The format of the tensor from which it is computed; None where that is stored plainly."""

    def read(self, given: Given, index: int | None, rows: range | None) -> Tensor:
        """Return the tensor, entry `index` of its leading dimension, or `rows` of either, in memory of its own."""


Logical = StoredTensor | Encoded | Derived
"""A tensor as it is meant."""


class TensorSource(Protocol):
    """A checkpoint as an audit reads it: a configuration, stored tensors, and the files beside them.

    Two threads may read at the same time if each calls `open` for itself.
    """

    @property
    def label(self) -> str:
        """The name that the user gave, for messages."""

    @property
    def config(self) -> dict[str, Any]:
        """The content of ``config.json``."""

    @property
    def tensors(self) -> Mapping[str, StoredTensor]:
        """Every stored tensor by name, in name order; `file` and `begin` say in which order to read them."""

    @property
    def encoded(self) -> Mapping[str, Encoded]:
        """Every quantised tensor by its name in an unquantised checkpoint; its parts are among `tensors`."""

    @property
    def derived(self) -> Mapping[str, Derived]:
        """Every tensor that is computed from stored tensors, by the name of the tensor that it replaces."""

    @property
    def logical(self) -> Mapping[str, Logical]:
        """Every logical tensor: the result of `logical_tensors` for `tensors`, `encoded` and `derived`."""

    @property
    def identities(self) -> Mapping[str, Hashable]:
        """The identity of each file when it was opened first; files with equal identities hold the same bytes."""

    def where(self, file: str) -> str:
        """Return what messages call a file of the source or a file beside it."""

    def open(self, file: str, *, again: bool = False) -> AbstractContextManager[OpenFile]:
        """Open a file for ranged reads.

        Args:
            file: a key of `identities`.
            again: whether its bytes will be read once more; a cache should then keep them.

        Raises:
            IntegrityError: ``E_CHANGED`` on entering, if the file is missing or has another identity.
        """

    def require_unchanged(self) -> None:
        """Raise ``E_CHANGED`` unless every file still has its identity in `identities`."""

    def read_small(self, name: str, limit: int) -> bytes | None:
        """Return the bytes of a small file beside the tensors; None if it does not exist.

        Raises:
            InputRefused: if it is longer than `limit` bytes or cannot be read.
        """

    def beside(self) -> list[SideFile]:
        """Return every file beside the source's own, those that a server acts on first."""

    def require_unchanged_beside(self, first: Collection[SideFile]) -> None:
        """Raise ``E_CHANGED`` if a file that a server may act on was added, removed or written since `beside`."""


def logical_tensors(
    tensors: Mapping[str, StoredTensor],
    encoded: Mapping[str, Encoded],
    derived: Mapping[str, Derived] = MappingProxyType({}),
) -> Mapping[str, Logical]:
    """Return every logical tensor, in name order: quantised and derived tensors replace what they are made of."""
    parts = {part for entry in encoded.values() for part in entry.parts.values()}
    plain = {name: tensor for name, tensor in tensors.items() if name not in parts}
    return MappingProxyType(dict(sorted((plain | dict(encoded) | dict(derived)).items())))
