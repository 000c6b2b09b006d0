"""Crash-safe writing: a file appears whole or not at all, and it is on the disk before the caller continues."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


def write_atomic(path: Path, data: bytes) -> None:
    """Replace the content of `path` by `data`; a crash leaves either the old file or the new file.

    The function writes a temporary file in the same folder, syncs it to the disk, renames it, and syncs the folder.

    Raises:
        OSError: the folder is not writable or the disk is full; the temporary file is removed.
    """
    take_place(write_temporary(path, data), path)


def write_temporary(path: Path, data: bytes) -> Path:
    """Write `data` to the disk beside `path` and return the file; the caller renames or removes it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with on_disk(temporary) as descriptor:
        write_all(descriptor, data)
    return temporary


@contextlib.contextmanager
def on_disk(temporary: Path) -> Iterator[int]:
    """Open a file for writing; flush it to disk at the end of the block, or remove it on an error."""
    descriptor = os.open(
        temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644
    )
    try:
        try:
            yield descriptor
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def take_place(temporary: Path, path: Path) -> None:
    """Rename a file that is on disk to its final path, and flush the folder; remove the file if the rename fails."""
    try:
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_all(descriptor: int, data: bytes) -> None:
    """Write every byte of `data`; a single `os.write` may write only part of it without an error."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def sync_folder(folder: Path) -> None:
    """Sync a folder's entries to the disk, so that a rename survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
