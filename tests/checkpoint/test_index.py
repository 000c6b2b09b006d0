"""Opening checkpoints: the layouts that are accepted, and every refusal around them."""

from __future__ import annotations

import json
import os
import pickle
import socket
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from forge import (
    assert_one_line,
    entry,
    safetensors_bytes,
    shard_bytes,
    write_index,
    write_sharded,
    write_single,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_atlas.checkpoint import Checkpoint, files, open_checkpoint
from moe_atlas.errors import AtlasError, InputRefused

TENSORS = {"b": b"\1\2\3", "a": b"\4\5"}
SHARDS = {
    "model-00001-of-00002.safetensors": {"b": b"\1\2\3"},
    "model-00002-of-00002.safetensors": {"a": b"\4\5"},
}
FIRST, SECOND = SHARDS


def refused(path: Path, code: str, *mentions: str) -> AtlasError:
    with pytest.raises(InputRefused) as caught:
        open_checkpoint(path)
    assert_one_line(caught.value, code, 4, *mentions)
    return caught.value


def contents(checkpoint: Checkpoint) -> dict[str, bytes]:
    found = {}
    for name, tensor in checkpoint.tensors.items():
        data = (checkpoint.root / tensor.file).read_bytes()
        found[name] = data[tensor.begin : tensor.begin + tensor.nbytes]
    return found


def write_snapshot(cache: Path) -> Path:
    """A Hugging Face cache: snapshot files are links to blobs."""
    blobs, snapshot = cache / "blobs", cache / "snapshots" / "0123abcd"
    source = write_sharded(cache / "source", SHARDS)
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    for number, file in enumerate(sorted(os.listdir(source))):
        os.rename(source / file, blobs / f"blob{number}")
        os.symlink(f"../../blobs/blob{number}", snapshot / file)
    return snapshot


def test_opens_a_folder_with_an_index(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_sharded(tmp_path, SHARDS))
    assert contents(checkpoint) == TENSORS
    assert list(checkpoint.tensors) == ["a", "b"]
    assert checkpoint.shards == (FIRST, SECOND)
    assert set(checkpoint.files) == {FIRST, SECOND, "config.json", "model.safetensors.index.json"}
    assert checkpoint.files[FIRST].size == (tmp_path / FIRST).stat().st_size


def test_opens_a_single_file_by_its_folder_and_by_its_path(tmp_path: Path) -> None:
    write_single(tmp_path, shard_bytes(TENSORS), '{"model_type": "x", "eps": 1e-6}')
    for path in (tmp_path, tmp_path / "model.safetensors"):
        checkpoint = open_checkpoint(path)
        assert contents(checkpoint) == TENSORS
        assert checkpoint.config == {"model_type": "x", "eps": 1e-6}
        assert checkpoint.label == str(path)
        assert checkpoint.root == tmp_path


def test_opens_a_cache_snapshot(tmp_path: Path) -> None:
    snapshot = write_snapshot(tmp_path)
    assert contents(open_checkpoint(snapshot)) == TENSORS
    latest = tmp_path / "latest"
    latest.symlink_to(snapshot)  # the path that a person gives may be a link
    assert contents(open_checkpoint(latest)) == TENSORS


def test_opens_from_a_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_single(tmp_path, shard_bytes(TENSORS))
    monkeypatch.chdir(tmp_path)
    assert contents(open_checkpoint(Path("model.safetensors"))) == TENSORS
    assert contents(open_checkpoint(Path())) == TENSORS


def test_opening_reads_headers_only(tmp_path: Path) -> None:
    root = write_single(tmp_path, safetensors_bytes({"a": entry("U8", (1 << 40,), (0, 1 << 40))}))
    size = (root / "model.safetensors").stat().st_size
    os.truncate(root / "model.safetensors", size + (1 << 40))  # a sparse terabyte
    assert open_checkpoint(root).tensors["a"].nbytes == 1 << 40


def test_refuses_a_missing_path(tmp_path: Path) -> None:
    refused(tmp_path / "nothing", "E_NOT_FOUND", str(tmp_path / "nothing"), "check the path")
    refused(tmp_path / "nothing" / "model.safetensors", "E_NOT_FOUND", "check the path")


def test_refuses_an_empty_folder(tmp_path: Path) -> None:
    refused(
        tmp_path,
        "E_NOT_FOUND",
        "neither model.safetensors.index.json nor a .safetensors file",
        "give the folder",
    )


def test_refuses_a_missing_config(tmp_path: Path) -> None:
    write_single(tmp_path, shard_bytes(TENSORS))
    (tmp_path / "config.json").unlink()
    refused(tmp_path, "E_NOT_FOUND", "config.json", "beside the weights")


def test_refuses_a_checkpoint_without_tensors(tmp_path: Path) -> None:
    refused(write_single(tmp_path / "single", safetensors_bytes({})), "E_INDEX_SET", "no tensor")
    root = write_sharded(tmp_path / "sharded", SHARDS)
    write_index(root, {})
    refused(root, "E_INDEX_SET", "no tensor")


def test_refuses_several_files_without_an_index(tmp_path: Path) -> None:
    write_sharded(tmp_path, SHARDS)
    (tmp_path / "model.safetensors.index.json").unlink()
    refused(tmp_path, "E_INDEX_SET", "2 .safetensors files", "give the path of one file")


def test_refuses_an_index_beside_an_unlisted_single_file(tmp_path: Path) -> None:
    """Some loaders take the single file, others the index."""
    write_sharded(tmp_path, SHARDS)
    (tmp_path / "model.safetensors").write_bytes(shard_bytes({"a": b"\0\0"}))
    refused(tmp_path, "E_INDEX_SET", "loaders disagree")


def test_an_index_may_list_the_single_file(tmp_path: Path) -> None:
    root = write_sharded(tmp_path, {"model.safetensors": TENSORS})
    assert contents(open_checkpoint(root)) == TENSORS


def test_refuses_an_adapter(tmp_path: Path) -> None:
    (tmp_path / "adapter_model.safetensors").write_bytes(shard_bytes(TENSORS))
    refused(tmp_path, "E_FORMAT", "adapter", "--like BASE")


@pytest.mark.parametrize(
    ("edit", "mentions"),
    [
        ({"c": FIRST}, ("'c'", FIRST, "lacks it")),
        ({"a": FIRST}, ("'a'", FIRST, SECOND)),
        ({"a": None}, (SECOND,)),
        ({"a": FIRST, "b": SECOND}, ("is stored in",)),
    ],
)
def test_refuses_an_index_that_disagrees_with_the_headers(
    tmp_path: Path, edit: dict[str, str | None], mentions: tuple[str, ...]
) -> None:
    shards = {FIRST: {"b": b"\1", "d": b"\2"}, SECOND: {"a": b"\3", "e": b"\4"}}
    write_sharded(tmp_path, shards)
    weight_map = {"b": FIRST, "d": FIRST, "a": SECOND, "e": SECOND} | edit
    write_index(tmp_path, {name: file for name, file in weight_map.items() if file})
    refused(tmp_path, "E_INDEX_SET", *mentions)


def test_names_one_and_counts_the_rest(tmp_path: Path) -> None:
    write_sharded(tmp_path, {FIRST: dict.fromkeys("abcd", b"\x01")})
    write_index(tmp_path, {"a": FIRST})
    refused(tmp_path, "E_INDEX_SET", "'b'", "and 2 more like it")


def test_refuses_one_tensor_in_two_shards(tmp_path: Path) -> None:
    write_sharded(tmp_path, {FIRST: {"a": b"\1", "b": b"\1"}, SECOND: {"a": b"\2", "c": b"\1"}})
    write_index(tmp_path, {"a": FIRST, "b": FIRST, "c": SECOND})
    refused(tmp_path, "E_INDEX_SET", "'a'", FIRST, SECOND, "again")


def test_refuses_a_missing_shard(tmp_path: Path) -> None:
    (write_sharded(tmp_path, SHARDS) / SECOND).unlink()
    refused(tmp_path, "E_INDEX_SET", SECOND, "download")


def test_refuses_a_truncated_shard(tmp_path: Path) -> None:
    path = write_sharded(tmp_path, SHARDS) / SECOND
    os.truncate(path, path.stat().st_size - 1)
    refused(tmp_path, "E_COVER", SECOND, "cut short", "download")


@pytest.mark.parametrize(
    "shard",
    [
        "../outside.safetensors",
        "/etc/outside.safetensors",
        "sub/model.safetensors",
        "./model.safetensors",
        "..",
        ".",
        "",
        "..\\outside.safetensors",
        "a\0b.safetensors",
        "a\nb.safetensors",
        "\u202e.safetensors",
        "x" * 256 + ".safetensors",
    ],
)
def test_refuses_shard_names_that_are_paths(tmp_path: Path, shard: str) -> None:
    (tmp_path / "outside.safetensors").write_bytes(shard_bytes(TENSORS))
    root = write_sharded(tmp_path / "checkpoint", SHARDS)
    write_index(root, {"a": shard, "b": FIRST})
    refused(root, "E_INDEX_PATH", "plain name")


@pytest.mark.parametrize(
    ("content", "code", "mention"),
    [
        ('{"weight_map": {"a": "x.safetensors", "a": "y.safetensors"}}', "E_DUP_KEY", "'a'"),
        ('{"weight_map": {}, "weight_map": {}}', "E_DUP_KEY", "'weight_map'"),
        ('{"weight_map": ["a"]}', "E_TYPE", "'weight_map'"),
        ("{}", "E_TYPE", "'weight_map'"),
        ("[]", "E_TYPE", "one JSON object"),
        ('{"weight_map": {"a": 1}}', "E_TYPE", "'a'"),
        ('{"weight_map": {"a": "pytorch_model.bin"}}', "E_FORMAT", "pickle"),
        ('{"weight_map": {"a": "weights.data"}}', "E_FORMAT", "'weights.data'"),
        ('{"weight_map": ', "E_JSON", "not strict JSON"),
        ("", "E_JSON", "not strict JSON"),
    ],
)
def test_refuses_a_malformed_index(tmp_path: Path, content: str, code: str, mention: str) -> None:
    (write_sharded(tmp_path, SHARDS) / "model.safetensors.index.json").write_text(content)
    refused(tmp_path, code, "model.safetensors.index.json" if code != "E_FORMAT" else "", mention)


@pytest.mark.parametrize(
    ("content", "code", "mention"),
    [
        (b'{"num_experts": 8, "num_experts": 16}', "E_DUP_KEY", "'num_experts'"),
        (b'{"rope": {"a\x7f": 1, "a\x7f": 2}}', "E_DUP_KEY", "x7f"),
        (b'{"eps": NaN}', "E_JSON", "NaN"),
        (b'{"eps": -Infinity}', "E_JSON", "Infinity"),
        (b'{"eps": Infinite}', "E_JSON", "strict JSON"),
        (b'{"eps": 1e999}', "E_JSON", "1e999"),
        (b'{"eps": -1e999}', "E_JSON", "1e999"),
        (b'{"name": "\\ud800"}', "E_JSON", "surrogate"),
        (b'{"\\udc00": 1}', "E_JSON", "surrogate"),
        (b'{"name": "\xff"}', "E_JSON", "UTF-8"),
        (b'{"n": ' + b"9" * 10_000 + b"}", "E_JSON", "digits"),
        (b'{"a":' * 100_000, "E_JSON", "nested"),
        (b'{"a":' + b"[" * 100_000, "E_JSON", "nested"),
        (b"{} {}", "E_JSON", "Extra data"),
        (b"\xef\xbb\xbf{}", "E_JSON", "strict JSON"),
        (b"null", "E_TYPE", "one JSON object"),
        (b'{"a": "' + b"x" * (5 << 20) + b'"}', "E_JSON", "limit"),
    ],
)
def test_refuses_a_malformed_config(tmp_path: Path, content: bytes, code: str, mention: str) -> None:
    write_single(tmp_path, shard_bytes(TENSORS))
    (tmp_path / "config.json").write_bytes(content)
    refused(tmp_path, code, "config.json", mention)


@settings(max_examples=200, deadline=None)
@given(
    st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"])),
        st.recursive(
            st.one_of(
                st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False)
            ),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab"), inner, max_size=3),
            max_leaves=8,
        ),
    )
)
def test_any_ordinary_config_is_read_as_it_was_written(value: dict[str, Any]) -> None:
    from moe_atlas.checkpoint.headers.strict_json import parse_json_object

    assert parse_json_object(json.dumps(value).encode(), "config.json") == value


# Files that are no plain files.


@pytest.mark.parametrize("file", [FIRST, "config.json", "model.safetensors.index.json"])
@pytest.mark.parametrize(
    ("target", "copy"),
    [
        ("elsewhere", True),
        ("../elsewhere", True),
        ("/proc/self/mem", False),
        ("../../blobs/../elsewhere", False),
        ("../../blobs/sub/elsewhere", False),
        ("../../blobs/..", False),
        ("../../blobs/", False),
        ("../../../blobs/elsewhere", False),
    ],
)
def test_refuses_links_out_of_a_snapshot(tmp_path: Path, file: str, target: str, copy: bool) -> None:
    snapshot = write_snapshot(tmp_path)
    (snapshot / file).unlink()
    (snapshot / file).symlink_to(target)
    if copy:
        (snapshot / target).write_bytes(b"secret")
    error = refused(snapshot, "E_SYMLINK", file)
    assert "secret" not in str(error)


def test_refuses_cache_links_outside_a_cache(tmp_path: Path) -> None:
    """The form of the link alone does not make a cache: `../../blobs` may be anything there."""
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "weights").write_bytes(shard_bytes(TENSORS))
    root = tmp_path / "models" / "mine"
    root.mkdir(parents=True)
    (root / "model.safetensors").symlink_to("../../blobs/weights")
    (root / "config.json").write_text("{}")
    refused(root, "E_SYMLINK", "model.safetensors")


def test_refuses_a_blob_that_is_a_link_and_a_dangling_link(tmp_path: Path) -> None:
    snapshot = write_snapshot(tmp_path)
    (snapshot / FIRST).unlink()
    (snapshot / FIRST).symlink_to("../../blobs/link")
    refused(snapshot, "E_NOT_FOUND", FIRST)
    (tmp_path / "blobs" / "link").symlink_to("/etc/passwd")
    refused(snapshot, "E_SYMLINK", FIRST)


@pytest.mark.parametrize("file", [FIRST, "config.json", "model.safetensors.index.json"])
def test_a_fifo_is_refused_without_hanging(tmp_path: Path, file: str) -> None:
    root = write_sharded(tmp_path, SHARDS)
    (root / file).unlink()
    os.mkfifo(root / file)
    script = f"from moe_atlas.checkpoint import open_checkpoint; open_checkpoint({str(root)!r})"
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=False
    )
    assert "E_NOT_REGULAR" in run.stderr
    assert "is a FIFO" in run.stderr


def test_a_fifo_in_a_snapshot_and_a_fifo_as_the_path(tmp_path: Path) -> None:
    snapshot = write_snapshot(tmp_path)
    target = (snapshot / SECOND).resolve()
    target.unlink()
    os.mkfifo(target)
    refused(snapshot, "E_NOT_REGULAR", SECOND, "FIFO")
    os.mkfifo(tmp_path / "weights.safetensors")
    refused(tmp_path / "weights.safetensors", "E_NOT_REGULAR", "FIFO")


def test_refuses_folders_sockets_and_devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_sharded(tmp_path / "ckpt", SHARDS)
    (root / FIRST).unlink()
    (root / FIRST).mkdir()
    refused(root, "E_NOT_REGULAR", FIRST, "a folder")
    (root / FIRST).rmdir()
    with socket.socket(socket.AF_UNIX) as server:
        monkeypatch.chdir(root)  # a socket's path must be short
        server.bind(FIRST)
        refused(root, "E_NOT_REGULAR", FIRST, "a socket")
    refused(Path("/dev/zero"), "E_NOT_REGULAR", "a device")


@pytest.mark.parametrize("call", ["open", "lstat"])
def test_refuses_what_the_system_does_not_let_it_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    root = write_single(tmp_path, shard_bytes(TENSORS))

    def denied(*_: object, **__: object) -> int:
        raise PermissionError(13, "Permission denied")  # permissions alone would not stop root

    with monkeypatch.context() as patch:
        patch.setattr(files.os, call, denied)
        with pytest.raises(InputRefused) as caught, files.open_regular(root, "config.json"):
            pass
    assert_one_line(caught.value, "E_ACCESS", 4, "config.json", "Permission denied", "permissions")


# Other formats.


class Canary:
    """Unpickling this would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def foreign_files(folder: Path) -> dict[str, bytes]:
    archive = folder / "archive.zip"
    with zipfile.ZipFile(archive, "w") as target:
        target.writestr("data.pkl", pickle.dumps(Canary(folder / "executed")))
    np.savez(folder / "arrays.npz", a=np.ones(3))
    np.save(folder / "array.npy", np.ones(3))
    found = {
        "pickle 2": pickle.dumps(Canary(folder / "executed"), 2),
        "pickle 4": pickle.dumps(Canary(folder / "executed"), 4),
        "zip": archive.read_bytes(),
        "npz": (folder / "arrays.npz").read_bytes(),
        "npy": (folder / "array.npy").read_bytes(),
        "GGUF": b"GGUF\3\0\0\0" + b"\0" * 64,
        "LFS": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n",
        "web page": b"<!DOCTYPE html><html>404</html>",
    }
    for file in (archive, folder / "arrays.npz", folder / "array.npy"):
        file.unlink()
    return found


def test_refuses_other_formats_by_their_content(tmp_path: Path) -> None:
    for label, content in foreign_files(tmp_path).items():
        refused(write_single(tmp_path / label, content), "E_FORMAT", "model.safetensors")
    assert not (tmp_path / "executed").exists()
    refused(tmp_path / "LFS", "E_FORMAT", "git lfs pull")


@pytest.mark.parametrize(
    "file",
    ["pytorch_model.bin", "model.pt", "x.pth", "x.ckpt", "x.npz", "x.gguf", "x.GGUF", "model.pkl", "x.h5"],
)
def test_refuses_other_formats_by_their_name(tmp_path: Path, file: str) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / file).write_bytes(pickle.dumps(Canary(tmp_path / "executed")))
    for path in (tmp_path, tmp_path / file):
        refused(path, "E_FORMAT", file, "by design", "safetensors")
    assert not (tmp_path / "executed").exists()


def test_a_header_length_that_looks_like_a_pickle_is_read(tmp_path: Path) -> None:
    """0x80 0x02, the start of a pickle, is also the length 640."""
    header = json.dumps({"a": entry("U8", (1,), (0, 1))}).encode().ljust(640)
    content = safetensors_bytes(header, b"\0")
    assert content[:2] == b"\x80\x02"
    assert list(open_checkpoint(write_single(tmp_path, content)).tensors) == ["a"]


def test_refuses_a_json_file_as_the_path(tmp_path: Path) -> None:
    root = write_sharded(tmp_path, SHARDS)
    refused(root / "model.safetensors.index.json", "E_FORMAT", "give the folder")


def test_names_from_files_are_inert_in_messages(tmp_path: Path) -> None:
    root = write_sharded(tmp_path / "a\x1b[2J\u202eb\nc", SHARDS)
    write_index(root, {"x\x1b]0;title\x07\n::error::\u202e": FIRST})
    refused(root, "E_INDEX_SET", "x1b", "u202e")


def test_opening_needs_no_torch(tmp_path: Path) -> None:
    root = write_single(tmp_path, shard_bytes(TENSORS))
    script = (
        "import sys; from moe_atlas.checkpoint import open_checkpoint, digest_checkpoint;"
        f"digest_checkpoint(open_checkpoint({str(root)!r})); print('torch' in sys.modules)"
    )
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    assert run.stdout.strip() == "False"
