"""Safetensors files that torch's HuggingFaceStorageWriter wrote from several processes and did not consolidate.

Each process writes files of its own, ``shard-00001-model-00001-of-00005.safetensors``. The entry
``DCP_SHARDING_INFO`` of a header's metadata says where each tensor of the file begins in the whole tensor
(torch.distributed.checkpoint, ``_hf_utils.py``, torch 2.7 and later).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from moe_atlas.checkpoint import files
from moe_atlas.checkpoint.files import FileStat
from moe_atlas.checkpoint.headers.header import StoredTensor, header_metadata, parse_header, raw_header
from moe_atlas.checkpoint.headers.refuse import place, refusal
from moe_atlas.checkpoint.headers.strict_json import parse_json_object
from moe_atlas.checkpoint.training.assembly import COMPLETE, Cut, Joined, join
from moe_atlas.checkpoint.training.pieces import Piece
from moe_atlas.errors import InputRefused

SHARD = re.compile(r"shard-(\d{5,})-model-(\d{5,})-of-(\d{5,})\.safetensors")
SHARDING = "DCP_SHARDING_INFO"


def read_hub_shards(root: Path, names: Iterable[str], found: dict[str, FileStat], label: str) -> Joined:
    """Read the headers of every shard and join their tensors.

    Args:
        root: the folder.
        names: the names of its files.
        found: where the facts that identify each shard go.
        label: what messages call the folder.

    Raises:
        InputRefused: every code of a header; ``E_INDEX_SET`` for a missing process; ``E_COVER`` for pieces that do not
            cover a tensor exactly once; ``E_TYPE`` for offsets that are none.
    """
    shards = sorted(name for name in names if SHARD.fullmatch(name))
    _require_every_process(shards, label)
    cuts: dict[str, tuple[Cut, str]] = {}
    for shard in shards:
        for tensor, offsets in _read_shard(root, shard, found):
            _add(cuts, tensor, offsets, root)
    return join((_whole(cut) for cut, _ in cuts.values()), root, found, label)


def _require_every_process(shards: list[str], label: str) -> None:
    numbers = sorted({int(SHARD.fullmatch(name)[1]) for name in shards})  # type: ignore[index]
    missing = next((n for n, number in enumerate(numbers, start=1) if n != number), None)
    if missing is not None:
        problem = f"holds the files of {len(numbers)} processes, but none of process {missing}"
        raise refusal("E_INDEX_SET", label, problem, COMPLETE)


def _read_shard(
    root: Path, shard: str, found: dict[str, FileStat]
) -> Iterator[tuple[StoredTensor, tuple[int, ...]]]:
    """Yield the tensors of a file, with the place of each in the whole tensor."""
    label = str(root / shard)
    with files.open_regular(root, shard) as (descriptor, stat):
        files.refuse_foreign_content(descriptor, label)
        found[shard] = stat
        try:
            raw = raw_header(descriptor, stat.size, shard)
            tensors = parse_header(raw, shard, stat.size - 8 - len(raw))
            text = header_metadata(raw, shard).get(SHARDING)
        except InputRefused as error:  # a header knows only its own file
            where = f"{place(str(root))}/{error.where}"
            raise InputRefused(error.code, where, error.problem, error.next_step) from None
    sharding = {} if text is None else parse_json_object(text.encode("utf-8"), label)
    for tensor in tensors:
        yield tensor, _offsets(sharding, tensor, label)


def _offsets(sharding: Mapping[str, Any], tensor: StoredTensor, label: str) -> tuple[int, ...]:
    """Return where a tensor begins in the whole tensor; at its first element if the file does not say."""
    if tensor.name not in sharding:
        return (0,) * len(tensor.shape)
    entry = sharding[tensor.name]
    offsets = entry.get("saved_offsets") if isinstance(entry, dict) else None
    listed = offsets if isinstance(offsets, list) else [None]
    if len(listed) != len(tensor.shape) or not all(type(n) is int and 0 <= n < 1 << 62 for n in listed):
        problem = f"{SHARDING} must give saved_offsets, one number for each dimension of {list(tensor.shape)}"
        raise refusal("E_TYPE", label, problem, name=tensor.name)
    return tuple(listed)


def _add(
    cuts: dict[str, tuple[Cut, str]], tensor: StoredTensor, offsets: tuple[int, ...], root: Path
) -> None:
    first = Cut(tensor.name, tensor.dtype, tensor.shape, [])
    cut, file = cuts.setdefault(tensor.name, (first, tensor.file))
    if (cut.dtype, len(cut.shape)) != (tensor.dtype, len(tensor.shape)):
        problem = f"is {tensor.dtype} of {len(tensor.shape)} dimensions, and {cut.dtype} of {len(cut.shape)} in {file}"
        raise refusal("E_COVER", str(root / tensor.file), problem, COMPLETE, name=tensor.name)
    cut.pieces.append(Piece(tensor.file, tensor.begin, offsets, tensor.shape))


def _whole(cut: Cut) -> Cut:
    """Give a tensor the smallest shape that holds all of its pieces: a file states no other."""
    ends = [[o + s for o, s in zip(piece.offsets, piece.sizes, strict=True)] for piece in cut.pieces]
    shape = tuple(max(column) for column in zip(*ends, strict=True)) if cut.shape else ()
    return Cut(cut.name, cut.dtype, shape, cut.pieces)
