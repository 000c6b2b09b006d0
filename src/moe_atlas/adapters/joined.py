"""A base's folder and an adapter's as one source of stored tensors; what the adapter means is not read. Torch-free."""

from __future__ import annotations

import os
from collections.abc import Collection, Hashable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

from moe_atlas.checkpoint.digest import config_sha256
from moe_atlas.checkpoint.headers.header import StoredTensor
from moe_atlas.checkpoint.headers.refuse import refusal
from moe_atlas.checkpoint.index import ADAPTER_MODEL, Checkpoint, open_adapter_folder, open_checkpoint
from moe_atlas.checkpoint.quantised.encoding import Encoded
from moe_atlas.checkpoint.side_files import KINDS, SideFile
from moe_atlas.checkpoint.source import Derived, Logical, OpenFile, TensorSource, logical_tensors
from moe_atlas.checkpoint.training.opening import is_training_folder, open_folder

FOLDER = "adapter/"
"""Stands before the adapter's file names; no file of a checkpoint has a name with a slash."""


@dataclass
class Joined:
    """The tensors of a base and of an adapter, a `TensorSource`.

    Attributes:
        base: the base.
        adapter: the adapter's folder.
    """

    base: TensorSource
    adapter: Checkpoint
    _listed: tuple[list[SideFile], list[SideFile]] | None = field(default=None, init=False, repr=False)

    @property
    def label(self) -> str:
        """The base's path as it was given, and the name of the adapter's folder."""
        return f"{self.base.label}+{self.adapter.root.resolve().name}"

    @property
    def config(self) -> dict[str, Any]:
        """The base's configuration."""
        return self.base.config

    @cached_property
    def tensors(self) -> Mapping[str, StoredTensor]:
        """Every stored tensor of both folders, in name order."""
        own = {
            name: replace(tensor, file=FOLDER + tensor.file) for name, tensor in self.adapter.tensors.items()
        }
        both = {**self.base.tensors, **own}
        return MappingProxyType({name: both[name] for name in sorted(both)})

    @property
    def encoded(self) -> Mapping[str, Encoded]:
        """The base's quantised tensors."""
        return self.base.encoded

    @property
    def derived(self) -> Mapping[str, Derived]:
        """The tensors of the base that the adapter changes: none, as long as nobody has matched the two."""
        return MappingProxyType({})

    @cached_property
    def logical(self) -> Mapping[str, Logical]:
        """Every tensor of the base as it is meant, the changed ones as the adapter changes them."""
        return logical_tensors(self.base.tensors, self.base.encoded, self.derived)

    @cached_property
    def identities(self) -> Mapping[str, Hashable]:
        """What identified each file of both folders when it was opened first."""
        own = {FOLDER + file: found for file, found in self.adapter.identities.items()}
        return MappingProxyType({**self.base.identities, **own})

    def where(self, file: str) -> str:
        """What messages call a file."""
        if file.startswith(FOLDER):
            return self.adapter.where(file.removeprefix(FOLDER))
        own = file not in self.base.identities and os.path.lexists(self.adapter.where(file))
        return (self.adapter if own else self.base).where(file)

    def open(self, file: str, *, again: bool = False) -> AbstractContextManager[OpenFile]:
        """Open a file of either folder."""
        if file.startswith(FOLDER):
            return self.adapter.open(file.removeprefix(FOLDER), again=again)
        return self.base.open(file, again=again)

    def require_unchanged(self) -> None:
        """Raise ``E_CHANGED`` unless every file of both folders is the one that was opened first."""
        self.base.require_unchanged()
        self.adapter.require_unchanged()

    def read_small(self, name: str, limit: int) -> bytes | None:
        """A small file of the adapter's folder, or else of the base's."""
        own = self.adapter.read_small(name, limit)
        return self.base.read_small(name, limit) if own is None else own

    def beside(self) -> list[SideFile]:
        """The files beside both; where both folders have a file, the adapter's, which a server takes."""
        self._listed = self.base.beside(), self.adapter.beside()
        named = {entry.file: entry for listed in self._listed for entry in listed}
        return sorted(named.values(), key=lambda entry: (KINDS.index(entry.kind), entry.file))

    def require_unchanged_beside(self, first: Collection[SideFile]) -> None:
        """Raise ``E_CHANGED`` when a file beside either came, went or was written since `beside`."""
        assert self._listed is not None, "`beside` comes first"
        for source, listed in zip((self.base, self.adapter), self._listed, strict=True):
            source.require_unchanged_beside(listed)


def join(base: Path | TensorSource, adapter: Path) -> Joined:
    """Open a base and an adapter's folder by reading configurations and headers.

    Raises:
        InputRefused: every code of `open_checkpoint` and `open_adapter_folder`; ``E_ADAPTER`` for a name that both use.
    """
    folder = open_adapter_folder(adapter)
    opened = open_checkpoint(base) if isinstance(base, Path) else base
    for name in folder.tensors:
        if name in opened.tensors:
            problem = "the base stores a tensor of this name, too"
            raise refusal("E_ADAPTER", folder.where(ADAPTER_MODEL), problem, name=name)
    return Joined(opened, folder)


def open_stored(path: Path, like: Path | None) -> TensorSource:
    """Open a checkpoint, a training checkpoint or an adapter, for its digests; what an adapter means is not read.

    Args:
        path: the checkpoint.
        like: the base of an adapter, or the checkpoint whose configuration describes a training checkpoint.

    Raises:
        InputRefused: as `join` and `open_folder`.
    """
    if like is None:
        return open_folder(path)
    if is_training_folder(path):
        return open_folder(path, open_checkpoint(like))
    return join(like, path)


def adapter_mismatches(recorded: Mapping[str, Any], source: TensorSource) -> Iterator[tuple[str, str, str]]:
    """Yield (key, recorded, found) where a receipt's facts of a checkpoint and a source differ in the adapter.

    Args:
        recorded: the facts of one checkpoint, as a receipt holds them.
        source: the source at hand; its tensors are compared by their digest, not here.
    """
    facts = recorded.get("adapter")
    if facts is None and isinstance(source, Joined):
        yield "adapter", "a checkpoint without an adapter", "one"
    elif facts is not None and not isinstance(source, Joined):
        yield "adapter", "an adapter together with its base (--like BASE)", "none"
    elif facts is not None and isinstance(source, Joined):
        found = config_sha256(source.adapter)
        if found != facts["config_sha256"]:
            yield "adapter.config_sha256", facts["config_sha256"], found
