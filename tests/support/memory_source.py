"""A source of tensors without a file system, as somebody who adds a source would write it."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from moe_atlas.checkpoint.headers.header import StoredTensor
from moe_atlas.checkpoint.quantised.encoding import Encoded
from moe_atlas.checkpoint.side_files import KINDS, QUIET, SideFile, kind_of
from moe_atlas.checkpoint.source import Derived, OpenFile, logical_tensors
from moe_atlas.errors import InputRefused, IntegrityError

DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.int64: "I64"}
Identity = tuple[int, str, int]


class MemorySource:
    """Tensors, a configuration and small files in memory; each tensor is a file of its own, named like the tensor.

    Attributes:
        contents: the bytes of each tensor and of each small file; `write` alone changes them.
    """

    def __init__(
        self, tensors: Mapping[str, Tensor], config: dict[str, Any], small: Mapping[str, bytes]
    ) -> None:
        self.label = "memory"
        self.config = config
        self.encoded: Mapping[str, Encoded] = {}
        self.derived: Mapping[str, Derived] = {}
        stored = {name: tensors[name].contiguous().view(-1).view(torch.uint8) for name in sorted(tensors)}
        self.contents = {name: data.numpy().tobytes() for name, data in stored.items()} | dict(small)
        self._versions = dict.fromkeys(self.contents, 0)
        self._small = set(small)
        self.tensors: Mapping[str, StoredTensor] = {
            name: StoredTensor(
                name, DTYPES[tensors[name].dtype], tuple(tensors[name].shape), name, 0, data.numel()
            )
            for name, data in stored.items()
        }
        self.logical = logical_tensors(self.tensors, self.encoded)
        self.identities = {name: self._now(name) for name in self.tensors}

    def write(self, name: str, data: bytes) -> None:
        """Do what `TensorSource` promises to notice."""
        self.contents[name] = data
        self._versions[name] += 1

    def where(self, file: str) -> str:
        return f"{self.label}/{file}"

    @contextmanager
    def open(self, file: str, *, again: bool = False) -> Iterator[OpenFile]:
        if self._now(file) != self.identities[file]:
            raise IntegrityError("E_CHANGED", self.where(file), "was written while it was being read")
        yield _Opened(self.contents[file])

    def require_unchanged(self) -> None:
        for file in self.identities:
            with self.open(file):
                pass

    def read_small(self, name: str, limit: int) -> bytes | None:
        if name not in self._small:
            return None
        if len(self.contents[name]) > limit:
            raise InputRefused(
                "E_JSON", self.where(name), f"holds more than {limit} bytes", "make it shorter"
            )
        return self.contents[name]

    def beside(self) -> list[SideFile]:
        found = [self._listed(name) for name in self._small]
        return sorted(found, key=lambda entry: (KINDS.index(entry.kind), entry.file))

    def require_unchanged_beside(self, first: Collection[SideFile]) -> None:
        for entry in first:
            if entry.kind not in QUIET and entry.stat != self._now(entry.file):
                raise IntegrityError("E_CHANGED", self.where(entry.file), "was written while the audit ran")

    def _listed(self, name: str) -> SideFile:
        data = self.contents[name]
        sha256 = hashlib.sha256(data).hexdigest()
        return SideFile(name, kind_of(name), len(data), sha256, stat=self._now(name))

    def _now(self, name: str) -> Identity:
        return id(self), name, self._versions[name]


class _Opened:
    def __init__(self, data: bytes) -> None:
        self._data = data

    def read_into(self, buffer: memoryview, tensor: StoredTensor, start: int) -> None:
        buffer[:] = self._data[start : start + len(buffer)]
