"""Opening the files of a checkpoint: regular files inside its folder, of no foreign format.

Every file is opened through here, each time it is read, so that the rules hold for every byte consumed.
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

PIECE_BYTES = 8 << 20  # read at a time where a file is read through

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
"""What a file of another format is called, by suffix. None of them is ever loaded, by design."""

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
    """What shows that a file is still the one that was opened first.

    Attributes:
        size: bytes.
        mtime_ns: time of the last write, nanoseconds; a writer can put it back.
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
        The file descriptor, closed on leaving, and what identifies the file.

    Raises:
        InputRefused: ``E_NOT_FOUND``, ``E_SYMLINK`` for a link other than a Hugging Face cache snapshot's,
            ``E_NOT_REGULAR`` for a FIFO, device, socket or folder, ``E_ACCESS`` when the system refuses.
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
    """Read a whole file of at most `max_bytes`; ``E_JSON`` when it is longer (used for JSON files)."""
    with open_regular(root, file) as (descriptor, found):
        if found.size > max_bytes:
            problem = f"holds {found.size} bytes, more than the limit of {max_bytes}"
            raise refusal("E_JSON", str(root / file), problem)
        return pread_all(descriptor, found.size, 0), found


def exists(path: Path) -> bool:
    """Tell whether a name is taken, be it by a dangling link."""
    return os.path.lexists(path)


def is_folder(path: Path) -> bool:
    """Tell whether a path as given is a folder; ``E_NOT_FOUND`` or ``E_ACCESS`` when that cannot be told."""
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
    """Follow the one kind of link that is allowed: from a cache snapshot into the blobs beside it."""
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
    _require_regular(found, label)  # before opening: opening a device can itself have effects
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
    """Refuse a file whose suffix says that it is of another format (``E_FORMAT``)."""
    kind = FOREIGN_SUFFIXES.get(Path(file).suffix.lower())
    if kind is not None:
        raise foreign(label, kind)


def refuse_foreign_content(descriptor: int, label: str) -> None:
    """Refuse a file whose first bytes say that it is of another format (``E_FORMAT``).

    The first eight bytes of a safetensors file are a number and may look like anything; the ``{`` of its
    header after them settles it.
    """
    start = os.pread(descriptor, 32, 0)
    if start[8:9] == b"{" and not start.startswith(b"version "):
        return
    for magic, kind in _MAGIC:
        if start.startswith(magic):
            raise foreign(label, kind)


def foreign(label: str, kind: str) -> InputRefused:
    """Build the refusal of a file of another format, with the step that helps for its kind."""
    if kind == "a Git LFS pointer":
        return refusal("E_FORMAT", label, "is a Git LFS pointer, not the weights", "run `git lfs pull`")
    if kind == "a web page":
        return refusal("E_FORMAT", label, "is a web page, not the weights", "download the file again")
    return refusal("E_FORMAT", label, f"is {kind}{ONLY}", step_for(label))


def require_same(first: FileStat, now: FileStat, label: str) -> None:
    """Raise ``E_CHANGED`` unless a file is the one that was opened first.

    A write with the time of writing put back, and a chmod, a rename or a new hard link, move nothing but the ctime.
    They cannot be told from each other without reading everything again, so all of them end here.
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
