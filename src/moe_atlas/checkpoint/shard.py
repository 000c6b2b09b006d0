"""Ranged reads of a file in a checkpoint's folder, which must be the file that was opened first."""

from __future__ import annotations

import os
from pathlib import Path

from moe_atlas.checkpoint import uncached
from moe_atlas.checkpoint.files import FileStat, open_regular, require_same
from moe_atlas.checkpoint.headers.header import StoredTensor
from moe_atlas.checkpoint.headers.refuse import place
from moe_atlas.errors import InputRefused, IntegrityError


class OpenShard:
    """A file of a checkpoint, open for positional reads.

    It is a context manager. Entering it raises ``E_CHANGED`` unless the file is the file that was opened first.

    Args:
        root: the folder of the checkpoint.
        file: its plain name.
        first: the facts that identified it when it was opened first.
        again: whether its bytes will be read once more; the system's cache then keeps them.
    """

    def __init__(self, root: Path, file: str, first: FileStat, *, again: bool = False) -> None:
        self._again = again
        self._label = str(root / file)
        self._opening = open_regular(root, file)
        self._first = first
        self.size = first.size

    def __enter__(self) -> OpenShard:
        try:
            self._descriptor, now = self._opening.__enter__()
        except InputRefused as error:
            problem = f"changed while it was being read: {error.problem}"
            raise IntegrityError("E_CHANGED", error.where, problem) from None
        try:
            require_same(self._first, now, self._label)
        except IntegrityError:
            self._opening.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self._opening.__exit__(None, None, None)

    def read_into(self, buffer: memoryview, tensor: StoredTensor, start: int) -> None:
        """Fill the buffer with the tensor's bytes from `start` on, or raise ``E_CHANGED``."""
        self.fill(buffer, tensor.begin + start, tensor.name)

    def fill(self, buffer: memoryview, offset: int, name: str | None = None) -> None:
        """Fill the buffer with the file's bytes from `offset` on, or raise ``E_CHANGED``."""
        filled = 0
        while filled < len(buffer):
            count = self._pread(buffer[filled:], offset + filled)
            if count == 0:
                problem = "the file became shorter while it was being read"
                raise IntegrityError("E_CHANGED", place(self._label, name), problem)
            filled += count

    def _pread(self, buffer: memoryview, offset: int) -> int:
        try:
            if not self._again and (count := uncached.read(self._descriptor, buffer, offset)):
                return count
            return os.preadv(self._descriptor, [buffer], offset)
        except OSError as error:
            raise IntegrityError(
                "E_CHANGED", place(self._label), f"can no longer be read: {error.strerror}"
            ) from None
