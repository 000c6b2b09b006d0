"""Checkpoints written byte by byte, so that tests can write what no library would."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from moe_atlas.errors import AtlasError


def entry(dtype: str = "F32", shape: Any = (1,), offsets: Any = (0, 4)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def safetensors_bytes(header: Any, data: bytes = b"") -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(raw).to_bytes(8, "little") + raw + data


def shard_bytes(tensors: dict[str, bytes]) -> bytes:
    """Bytes of a file of U8 vectors, in the order given."""
    header, position = {}, 0
    for name, data in tensors.items():
        header[name] = entry("U8", (len(data),), (position, position + len(data)))
        position += len(data)
    return safetensors_bytes(header, b"".join(tensors.values()))


def write_single(root: Path, content: bytes, config: str = "{}") -> Path:
    root.mkdir(parents=True, exist_ok=True)
    (root / "model.safetensors").write_bytes(content)
    (root / "config.json").write_text(config)
    return root


def write_sharded(root: Path, shards: dict[str, dict[str, bytes]]) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    for file, tensors in shards.items():
        (root / file).write_bytes(shard_bytes(tensors))
    write_index(root, {name: file for file, tensors in shards.items() for name in tensors})
    (root / "config.json").write_text("{}")
    return root


def write_index(root: Path, weight_map: Any) -> None:
    content = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (root / "model.safetensors.index.json").write_text(json.dumps(content))


def assert_one_line(error: AtlasError, code: str, exit_code: int, *mentions: str) -> None:
    text = str(error)
    assert error.code == code, text
    assert error.exit_code == exit_code
    assert text.isprintable(), "a message is one line and cannot steer a terminal"
    assert len(text) < 1200
    for mention in mentions:
        assert mention in text
