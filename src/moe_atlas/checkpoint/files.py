"""Open the files of a checkpoint: only regular files inside its folder, never of a foreign format.

This module opens every file each time it is read, so its rules hold for every byte that is read.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from moe_atlas.checkpoint.folders import ONLY, step_for
from moe_atlas.checkpoint.headers.header import pread_all
from moe_atlas.checkpoint.headers.refuse import place, refusal, shown
from moe_atlas.errors import InputRefused, IntegrityError
from moe_atlas.text import not_there

PIECE_BYTES = 8 << 20  # bytes read at a time of a file that is read from begin to end

_CACHE_LINK = re.compile(r"\.\./\.\./blobs/([^/]+)")
_OPEN_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NOCTTY
_COPY_IT = "put the file itself into the folder, or give the path of the folder that holds it"

FOREIGN_SUFFIXES = {
    ".bin": "a PyTorch pickle",
    ".pt": "a PyTorch pickle",
    ".pth": "a PyTorch pickle",
    ".ckpt": "a PyTorch pickle",
    ".pkl": "a pickle",
    ".pickle": "a pickle",
    ".npz": "a NumPy archive",
    ".npy": "a NumPy array",
    ".gguf": "a GGUF file",
    ".ggml": "a GGML file",
    ".h5": "an HDF5 file",
    ".hdf5": "an HDF5 file",
    ".msgpack": "a Flax file",
    ".onnx": "an ONNX model",
    ".zip": "a zip archive",
    ".tar": "a tar archive",
    ".tgz": "a tar archive",
    ".nemo": "a NeMo archive",
    ".distcp": "a shard of torch.distributed.checkpoint (DCP)",
}
"""Names of foreign formats by suffix. No file of these formats is ever loaded."""

_MAGIC = (
    (b"PK\x03\x04", "a zip archive (PyTorch or NumPy)"),
    (b"PK\x05\x06", "an empty zip archive"),
    (b"GGUF", "a GGUF file"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"\x89HDF", "an HDF5 file"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"\x28\xb5\x2f\xfd", "a zstd archive"),
    (b"version https://git-lfs", "a Git LFS pointer"),
    (b"<!DOCTYPE", "a web page"),
    (b"<html", "a web page"),
    (b"\x80\x02", "a pickle"),
    (b"\x80\x03", "a pickle"),
    (b"\x80\x04", "a pickle"),
    (b"\x80\x05", "a pickle"),
)


@dataclass(frozen=True, slots=True)
class FileStat:
    """The facts that show whether a file is still the file that was opened first.

    Attributes:
        size: bytes.
        mtime_ns: time of the last write, nanoseconds; a writer can set it back.
        ctime_ns: time of the last change of the file or of its attributes, nanoseconds; only the system sets it.
        inode: the file's number on its device.
        device: the number of the device.
    """

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int
    device: int


@contextmanager
def open_regular(root: Path, file: str, label: str | None = None) -> Iterator[tuple[int, FileStat]]:
    """Open one file of a checkpoint for reading.

    Args:
        root: the checkpoint folder.
        file: the plain name of a file inside it.
        label: what messages call the file; its path by default.

    Yields:
        The file descriptor, which is closed on leaving, and the facts that identify the file.

    Raises:
        InputRefused: ``E_NOT_FOUND``, ``E_SYMLINK`` for a link other than a Hugging Face cache snapshot's,
            ``E_NOT_REGULAR`` for a FIFO, device, socket or folder, ``E_ACCESS`` if the system refuses access.
    """
    label = label or str(root / file)
    descriptor = _open(_real_path(root, file, label), label)
    try:
        found = os.fstat(descriptor)
        _require_regular(found, label)
        yield (
            descriptor,
            FileStat(found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_dev),
        )
    finally:
        os.close(descriptor)


def read_small(root: Path, file: str, max_bytes: int) -> tuple[bytes, FileStat]:
    """Read a whole JSON file of at most `max_bytes`; ``E_JSON`` if it is longer."""
    with open_regular(root, file) as (descriptor, found):
        if found.size > max_bytes:
            problem = f"holds {found.size} bytes, more than the limit of {max_bytes}"
            raise refusal("E_JSON", str(root / file), problem)
        return pread_all(descriptor, found.size, 0), found


def exists(path: Path) -> bool:
    """Return whether a path exists; a dangling link exists, too."""
    return os.path.lexists(path)


def is_folder(path: Path) -> bool:
    """Return whether a path is a folder; ``E_NOT_FOUND`` or ``E_ACCESS`` if the system does not say."""
    try:
        return stat.S_ISDIR(os.stat(path).st_mode)
    except OSError as error:
        raise _cannot_open(error, str(path)) from None


def _lstat(path: Path, label: str) -> os.stat_result:
    try:
        return os.lstat(path)
    except OSError as error:
        raise _cannot_open(error, label) from None


def _real_path(root: Path, file: str, label: str) -> Path:
    """Follow the only allowed kind of link: from a snapshot of the cache into the blobs beside it."""
    path = root / file
    found = _lstat(path, label)
    if stat.S_ISLNK(found.st_mode):
        target = os.readlink(path)
        blob = _CACHE_LINK.fullmatch(target)
        if blob is None or blob[1] in (".", "..") or root.resolve().parent.name != "snapshots":
            problem = f"is a link to '{shown(target)}', which may lie outside the checkpoint"
            raise refusal("E_SYMLINK", label, problem, _COPY_IT)
        path = root / target
        found = _lstat(path, label)
        if stat.S_ISLNK(found.st_mode):
            raise refusal("E_SYMLINK", label, "is a link to a link", _COPY_IT)
    _require_regular(found, label)  # check before opening, because opening a device can have effects
    return path


def _require_regular(found: os.stat_result, label: str) -> None:
    if not stat.S_ISREG(found.st_mode):
        kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket"}
        kind = kinds.get(stat.S_IFMT(found.st_mode), "a device")
        raise refusal("E_NOT_REGULAR", label, f"is {kind}, not a regular file")


def _open(path: Path, label: str) -> int:
    try:
        return os.open(path, _OPEN_FLAGS)
    except OSError as error:
        raise _cannot_open(error, label) from None


def _cannot_open(error: OSError, label: str) -> InputRefused:
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return refusal("E_NOT_FOUND", label, not_there(label), "check the path")
    if error.errno == errno.ELOOP:
        return refusal("E_SYMLINK", label, "is a link", _COPY_IT)
    return refusal("E_ACCESS", label, f"cannot be opened: {error.strerror}", "check its permissions")


def refuse_foreign_name(file: str, label: str) -> None:
    """Refuse a file with the suffix of a foreign format (``E_FORMAT``)."""
    kind = FOREIGN_SUFFIXES.get(Path(file).suffix.lower())
    if kind is not None:
        raise foreign(label, kind)


def refuse_foreign_content(descriptor: int, label: str) -> None:
    """Refuse a file whose first bytes show a foreign format (``E_FORMAT``).

    The first eight bytes of a safetensors file are a number, which may look like any format. The ``{`` of the header
    behind them shows that the file is a safetensors file.
    """
    start = os.pread(descriptor, 32, 0)
    if start[8:9] == b"{" and not start.startswith(b"version "):
        return
    for magic, kind in _MAGIC:
        if start.startswith(magic):
            raise foreign(label, kind)


def foreign(label: str, kind: str) -> InputRefused:
    """Return the refusal of a file of a foreign format, with the next step for that format."""
    if kind == "a Git LFS pointer":
        return refusal("E_FORMAT", label, "is a Git LFS pointer, not the weights", "run `git lfs pull`")
    if kind == "a web page":
        return refusal("E_FORMAT", label, "is a web page, not the weights", "download the file again")
    return refusal("E_FORMAT", label, f"is {kind}{ONLY}", step_for(label))


def require_same(first: FileStat, now: FileStat, label: str) -> None:
    """Raise ``E_CHANGED`` unless a file is the file that was opened first.

    A write whose mtime was set back changes only the ctime. So do a chmod, a rename and a new hard link. Only reading
    the whole file again could distinguish them, so this function refuses all of them.
    """
    if now == first:
        return
    if now == replace(first, ctime_ns=now.ctime_ns):
        problem = (
            "was changed while it was being read: written with its time put back, or its mode, owner, name or hard "
            "links were changed"
        )
        step = "start again when nothing touches the checkpoint; an audit with --resume goes on where it was"
        raise IntegrityError("E_CHANGED", place(label), problem, step)
    if now.size != first.size:
        problem = f"changed while it was being read: {first.size} bytes became {now.size}"
    else:
        problem = "was written or replaced while it was being read"
    raise IntegrityError(
        "E_CHANGED", place(label), problem, "start again when nothing writes to the checkpoint"
    )
