"""A checkpoint of torch.distributed.checkpoint: ``.metadata`` beside ``__0_0.distcp``, read without torch's loader."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from moe_atlas.checkpoint import files
from moe_atlas.checkpoint.files import FileStat
from moe_atlas.checkpoint.headers.header import check_name, pread_all
from moe_atlas.checkpoint.headers.refuse import refusal, shown
from moe_atlas.checkpoint.index import is_plain_name
from moe_atlas.checkpoint.training.assembly import COMPLETE, Cut, Joined, join
from moe_atlas.checkpoint.training.items import find_data
from moe_atlas.checkpoint.training.metadata import MAX_METADATA_BYTES, Metadata, Place, read_metadata
from moe_atlas.checkpoint.training.names import find_model
from moe_atlas.checkpoint.training.pickles import NEXT_STEP
from moe_atlas.checkpoint.training.pieces import MAX_PIECES, Piece

METADATA = ".metadata"
Box = tuple[tuple[int, ...], tuple[int, ...]]
Item = tuple[Place, str, Box]


def read_dcp(
    root: Path, prefix: str, found: dict[str, FileStat], label: str
) -> tuple[Joined, Mapping[str, int]]:
    """Read the metadata of a checkpoint and find the bytes of the model's tensors.

    Args:
        root: the folder.
        prefix: the folder inside it that holds the files, with a final ``/``; empty for the folder itself.
        found: where the facts that identify each file go.
        label: what messages call the folder.

    Returns:
        The model's tensors, and how many other entries are left unread, by what they are.

    Raises:
        InputRefused: ``E_PICKLE``, ``E_METADATA``, ``E_ITEM``, ``E_COVER``, ``E_INDEX_PATH``, ``E_INDEX_SET``.
    """
    file = prefix + METADATA
    where = str(root / file)
    metadata = read_metadata(_read_whole(root, file, found), where)
    model = find_model(metadata, where)
    cuts = {
        key: Cut(name, metadata.tensors[key].dtype, metadata.tensors[key].shape, [])
        for key, name in model.names.items()
    }
    for name in model.names.values():
        check_name(name, where)
    for item, begin in _items(root, prefix, metadata, model.names, found):
        place, key, (offsets, sizes) = item
        cuts[key].pieces.append(Piece(prefix + place.file, begin, offsets, sizes))
    return join(cuts.values(), root, found, label), model.unread


def _read_whole(root: Path, file: str, found: dict[str, FileStat]) -> bytes:
    with files.open_regular(root, file) as (descriptor, stat):
        if stat.size > MAX_METADATA_BYTES:
            problem = f"holds {stat.size} bytes, more than the limit of {MAX_METADATA_BYTES}"
            raise refusal("E_METADATA", str(root / file), problem, NEXT_STEP)
        found[file] = stat
        return pread_all(descriptor, stat.size, 0)


def _items(
    root: Path, prefix: str, metadata: Metadata, names: Mapping[str, str], found: dict[str, FileStat]
) -> Iterator[tuple[Item, int]]:
    """Yield every stored chunk of the model, with where its bytes begin; each file is opened once."""
    by_file: dict[str, list[Item]] = {}
    for item in _chunks(root / prefix, metadata, names):
        by_file.setdefault(item[0].file, []).append(item)
    for plain, items in sorted(by_file.items()):
        file = prefix + plain
        label = str(root / file)
        _require_file(root, prefix, plain)
        with files.open_regular(root, file) as (descriptor, stat):
            found[file] = stat
            for item in sorted(items, key=lambda item: item[0].offset):
                place, key, (_, sizes) = item
                if place.offset + place.length > stat.size:
                    end = place.offset + place.length
                    problem = f"ends at byte {end} of a file of {stat.size} bytes: it is cut short"
                    raise refusal("E_ITEM", label, problem, COMPLETE, name=key)
                dtype = metadata.tensors[key].dtype
                yield item, find_data(descriptor, place, dtype, sizes, label, key)


def _chunks(folder: Path, metadata: Metadata, names: Mapping[str, str]) -> Iterator[Item]:
    """Yield each distinct chunk of the model that holds elements, with its place."""
    for key in names:
        chunks = set(metadata.tensors[key].chunks)
        if len(chunks) > MAX_PIECES:
            problem = f"is cut into {len(chunks)} pieces, more than {MAX_PIECES}"
            raise refusal("E_COVER", str(folder / METADATA), problem, NEXT_STEP, name=key)
        for offsets, sizes in sorted(chunks):
            place = metadata.places.get((key, offsets))
            if place is None:
                problem = f"does not say where the piece at {list(offsets)} is stored"
                raise refusal("E_METADATA", str(folder / METADATA), problem, NEXT_STEP, name=key)
            if all(sizes):
                yield place, key, (offsets, sizes)


def _require_file(root: Path, prefix: str, plain: str) -> None:
    label = str(root / (prefix + METADATA))
    if not is_plain_name(plain):
        problem = "the name is not the plain name of a file in the checkpoint folder"
        raise refusal("E_INDEX_PATH", label, problem, NEXT_STEP, name=plain)
    if not files.exists(root / (prefix + plain)):
        problem = f"names the file {shown(plain)}, and it does not exist"
        raise refusal("E_INDEX_SET", label, problem, COMPLETE)
