"""The digest: what it depends on and what it does not, against hashlib alone."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
from forge import assert_one_line, entry, safetensors_bytes, write_sharded, write_single

from moe_atlas.checkpoint import CheckpointDigest, digest, digest_checkpoint, open_checkpoint
from moe_atlas.errors import IntegrityError

TENSORS = {"b.weight": bytes(range(200)), "a": b"\1" * 33, "c": b"", "d": os.urandom(5000)}


def single_digest(root: Path, tensors: dict[str, bytes]) -> CheckpointDigest:
    return digest_checkpoint(open_checkpoint(write_sharded(root, {"model-1.safetensors": tensors})))


def test_is_the_documented_manifest(tmp_path: Path) -> None:
    found = single_digest(tmp_path, TENSORS)
    lines = ""
    for name in sorted(TENSORS):
        sha = hashlib.sha256(TENSORS[name]).hexdigest()
        assert found.tensors[name] == sha
        lines += f"{name}\tU8\t[{len(TENSORS[name])}]\t{sha}\n"
    assert found.sha256 == hashlib.sha256(lines.encode()).hexdigest()


def test_does_not_depend_on_sharding_or_order(tmp_path: Path) -> None:
    reference = single_digest(tmp_path / "one", TENSORS)
    backwards = {name: TENSORS[name] for name in reversed(TENSORS)}
    assert single_digest(tmp_path / "order", backwards) == reference
    shards = {f"model-{i}.safetensors": {name: data} for i, (name, data) in enumerate(backwards.items())}
    assert digest_checkpoint(open_checkpoint(write_sharded(tmp_path / "many", shards))) == reference


def test_depends_on_every_bit_name_dtype_and_shape(tmp_path: Path) -> None:
    variants = {
        "reference": ("a", entry("U8", (2, 2), (0, 4)), b"\0\0\0\0"),
        "bit": ("a", entry("U8", (2, 2), (0, 4)), b"\0\0\0\1"),
        "name": ("b", entry("U8", (2, 2), (0, 4)), b"\0\0\0\0"),
        "dtype": ("a", entry("I8", (2, 2), (0, 4)), b"\0\0\0\0"),
        "shape": ("a", entry("U8", (4,), (0, 4)), b"\0\0\0\0"),
        "rank": ("a", entry("U8", (4, 1), (0, 4)), b"\0\0\0\0"),
    }
    digests = set()
    for label, (name, table, data) in variants.items():
        root = write_single(tmp_path / label, safetensors_bytes({name: table}, data))
        digests.add(digest_checkpoint(open_checkpoint(root)).sha256)
    assert len(digests) == len(variants)


def test_reads_in_bounded_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reference = single_digest(tmp_path, TENSORS)
    sizes = []
    preadv = os.preadv

    def counted(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        sizes.append(len(buffers[0]))
        return preadv(descriptor, [buffers[0][:7]], offset)  # and a system that reads less than was asked

    monkeypatch.setattr(digest, "PIECE_BYTES", 16)
    monkeypatch.setattr(os, "preadv", counted)
    assert digest_checkpoint(open_checkpoint(tmp_path)) == reference
    assert max(sizes) == 16


@pytest.mark.parametrize("most", [1, 16, 40, 48, 1000])
def test_the_beginning_of_the_largest_file_comes_in_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    largest = {"b": bytes(range(33)), "a": b"", "d": os.urandom(5), "c": os.urandom(100)}
    shards = {"model-1.safetensors": {"x": b"x" * 130}, "model-2.safetensors": largest}
    monkeypatch.setattr(digest, "PIECE_BYTES", 16)
    checkpoint = open_checkpoint(write_sharded(tmp_path, shards))
    pieces = [bytes(piece) for piece in digest.beginning(checkpoint, most)]
    assert b"".join(pieces) == b"".join(largest.values())[:most]
    assert all(len(piece) == 16 for piece in pieces[:-1])


@pytest.mark.parametrize("file", ["model-1.safetensors", "model.safetensors.index.json", "config.json"])
@pytest.mark.parametrize(
    "change", ["mtime", "size", "bytes", "mode", "hard link", "inode", "gone", "link", "fifo"]
)
def test_notices_a_changed_file(tmp_path: Path, file: str, change: str) -> None:
    checkpoint = open_checkpoint(write_sharded(tmp_path, {"model-1.safetensors": TENSORS}))
    path = tmp_path / file
    content, times = path.read_bytes(), (path.stat().st_atime_ns, path.stat().st_mtime_ns)
    if change == "mtime":
        os.utime(path, ns=(times[0], times[1] + 1))
    elif change == "size":
        os.truncate(path, len(content) + 1)
        os.utime(path, ns=times)
    elif change == "bytes":  # in place, with the time put back
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        os.utime(path, ns=times)
    elif change == "mode":
        path.chmod(0o600)
    elif change == "hard link":
        os.link(path, tmp_path / "another name")
    elif change == "inode":
        (tmp_path / "new").write_bytes(content)
        os.utime(tmp_path / "new", ns=times)
        os.replace(tmp_path / "new", path)
    else:
        path.rename(tmp_path / "moved")
        if change == "link":
            path.symlink_to("moved")
        elif change == "fifo":
            os.mkfifo(path)
    with pytest.raises(IntegrityError) as caught:
        digest_checkpoint(checkpoint)
    assert_one_line(caught.value, "E_CHANGED", 5, file)
    if change in ("bytes", "mode", "hard link"):
        assert "written with its time put back, or its mode, owner, name or hard links were changed" in str(
            caught.value
        )
