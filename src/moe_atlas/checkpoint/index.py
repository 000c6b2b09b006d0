"""Open a checkpoint: find its files and their tensors, from headers alone."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

from moe_atlas.checkpoint import files, folders, side_files
from moe_atlas.checkpoint.detect import detect
from moe_atlas.checkpoint.files import FileStat
from moe_atlas.checkpoint.folders import INDEX, MODEL, SUFFIX
from moe_atlas.checkpoint.headers.header import MAX_HEADER_BYTES, StoredTensor, read_header
from moe_atlas.checkpoint.headers.refuse import RE_DOWNLOAD, place, refusal, shown
from moe_atlas.checkpoint.headers.strict_json import parse_json_object
from moe_atlas.checkpoint.quantised.encoding import Encoded
from moe_atlas.checkpoint.shard import OpenShard
from moe_atlas.checkpoint.side_files import SideFile
from moe_atlas.checkpoint.source import Derived, Logical, logical_tensors
from moe_atlas.errors import InputRefused
from moe_atlas.text import not_there

CONFIG = "config.json"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_MODEL = "adapter_model.safetensors"
QUANTISATION = "hf_quant_config.json"
"""The file in which ModelOpt keeps settings that other libraries write into config.json."""
_MAX_CONFIG_BYTES = 4 << 20
_MAX_INDEX_BYTES = 128 << 20


@dataclass(frozen=True)
class Checkpoint:
    """A folder of safetensors as its headers describe it, without any tensor data; it is a `TensorSource`.

    Attributes:
        root: the folder of its files.
        label: the path as it was given, for messages.
        config: the content of ``config.json``.
        tensors: every stored tensor by name, in name order.
        files: the facts that identified each file when it was opened first (shards, ``config.json``,
            ``hf_quant_config.json``, the index), by plain name.
        encoded: every quantised tensor by its name in an unquantised checkpoint; its parts are among `tensors`.
    """

    root: Path
    label: str
    config: dict[str, Any]
    tensors: Mapping[str, StoredTensor]
    files: Mapping[str, FileStat]
    encoded: Mapping[str, Encoded] = field(default_factory=dict)

    @property
    def derived(self) -> Mapping[str, Derived]:
        """A folder stores all of its tensors."""
        return MappingProxyType({})

    @cached_property
    def logical(self) -> Mapping[str, Logical]:
        """Every logical tensor, in name order: a quantised tensor replaces its stored parts."""
        return logical_tensors(self.tensors, self.encoded)

    @property
    def shards(self) -> tuple[str, ...]:
        """The plain names of the files that hold tensors, sorted."""
        return tuple(sorted({tensor.file for tensor in self.tensors.values()}))

    @property
    def identities(self) -> Mapping[str, FileStat]:
        """The facts that identified each file when it was opened first, by plain name."""
        return self.files

    def where(self, file: str) -> str:
        """Return the path of a file of the folder."""
        return str(self.root / file)

    def open(self, file: str, *, again: bool = False) -> OpenShard:
        """Open one of `files` for ranged reads; see `OpenShard`."""
        return OpenShard(self.root, file, self.files[file], again=again)

    def require_unchanged(self) -> None:
        """Raise ``E_CHANGED`` unless every file is the file that was opened first."""
        for file in self.files:
            with self.open(file):
                pass

    def read_small(self, name: str, limit: int) -> bytes | None:
        """Return the bytes of a file of the folder, None if there is none; ``E_JSON`` if it is longer than `limit`."""
        return files.read_small(self.root, name, limit)[0] if files.exists(self.root / name) else None

    def beside(self) -> list[SideFile]:
        """Return every file of the folder that is not among `files`, those that a server acts on first."""
        return side_files.side_files(self.root, self.files, one_file=self._one_file)

    def require_unchanged_beside(self, first: Collection[SideFile]) -> None:
        """Raise ``E_CHANGED`` if a file that a server may act on was added, removed or written since `beside`."""
        side_files.require_unchanged(self.root, self.files, first, one_file=self._one_file)

    @property
    def _one_file(self) -> bool:
        return Path(self.label) != self.root


def open_checkpoint(path: Path, *, max_header_bytes: int = MAX_HEADER_BYTES) -> Checkpoint:
    """Open a checkpoint by reading its configuration and its headers.

    Args:
        path: a folder with ``model.safetensors.index.json``, a folder with a single ``.safetensors`` file, a
            snapshot folder of the Hugging Face cache, or a ``.safetensors`` file; always with ``config.json``
            beside the weights.
        max_header_bytes: the longest header to accept, in bytes.

    Returns:
        The checkpoint, whose index and headers agree.

    Raises:
        InputRefused: with the code of what is wrong: ``E_NOT_FOUND``, ``E_ACCESS``, ``E_FORMAT``,
            ``E_INDEX_PATH``, ``E_INDEX_SET``, ``E_NOT_REGULAR``, ``E_SYMLINK``, ``E_JSON``, ``E_TYPE``,
            ``E_DUP_KEY``, ``E_QUANT`` or one of a header's.
    """
    path = Path(path)
    root, index, shards = _locate(path)
    found: dict[str, FileStat] = {}
    weight_map = _read_weight_map(root, found) if index else None
    if weight_map is not None:
        shards = _indexed_shards(root, weight_map)
    tensors: dict[str, StoredTensor] = {}
    for shard in shards:
        for tensor in _read_shard(root, shard, max_header_bytes, found):
            _add(tensors, tensor, root)
    if not tensors:
        raise refusal("E_INDEX_SET", str(path), "holds no tensor at all", RE_DOWNLOAD)
    if weight_map is not None:
        _compare(weight_map, tensors, str(root / INDEX))
    config = read_config(root, found)
    ordered = {name: tensors[name] for name in sorted(tensors)}
    apart = files.exists(root / QUANTISATION)
    beside = _read_json(root, QUANTISATION, _MAX_CONFIG_BYTES, found) if apart else None
    encoded = detect(config, ordered, str(path), beside)
    return Checkpoint(root, str(path), config, MappingProxyType(ordered), MappingProxyType(found), encoded)


def read_config(root: Path, found: dict[str, FileStat]) -> dict[str, Any]:
    """Read the ``config.json`` of a folder strictly, and record the facts that identify it in `found`."""
    return _read_json(root, CONFIG, _MAX_CONFIG_BYTES, found)


def is_adapter(path: Path) -> bool:
    """Whether a path is a folder that holds an adapter of PEFT and no model of its own."""
    try:
        names = os.listdir(path)
    except OSError:
        return False
    return ADAPTER_CONFIG in names and INDEX not in names and not folders.own_weights(names)


def open_adapter_folder(path: Path) -> Checkpoint:
    """Open an adapter's folder by reading its configuration and its header; nothing of it is a model by itself.

    Raises:
        InputRefused: as `open_checkpoint`; ``E_FORMAT`` for an adapter in a pickle, which is never loaded.
    """
    root = Path(path)
    found: dict[str, FileStat] = {}
    if not files.exists(root / ADAPTER_CONFIG):
        step = "give the folder that PEFT's save_pretrained wrote"
        raise refusal("E_NOT_FOUND", str(root / ADAPTER_CONFIG), not_there(str(root / ADAPTER_CONFIG)), step)
    config = _read_json(root, ADAPTER_CONFIG, _MAX_CONFIG_BYTES, found)
    if not files.exists(root / ADAPTER_MODEL):
        step = "save the adapter again with save_pretrained of a current PEFT, which writes safetensors"
        for name in sorted(_names(root)):
            kind = files.FOREIGN_SUFFIXES.get(Path(name).suffix.lower())
            if name.startswith("adapter_model.") and kind is not None:
                raise refusal("E_FORMAT", str(root / name), f"is {kind}{folders.ONLY}", step)
        raise refusal("E_NOT_FOUND", str(root / ADAPTER_MODEL), not_there(str(root / ADAPTER_MODEL)), step)
    stored = _read_shard(root, ADAPTER_MODEL, MAX_HEADER_BYTES, found)
    if not stored:
        raise refusal("E_ADAPTER", str(root / ADAPTER_MODEL), "holds no tensor at all", RE_DOWNLOAD)
    tensors = {tensor.name: tensor for tensor in sorted(stored, key=lambda tensor: tensor.name)}
    return Checkpoint(root, str(path), config, MappingProxyType(tensors), MappingProxyType(found))


def _locate(path: Path) -> tuple[Path, bool, tuple[str, ...]]:
    """Return the folder, whether it has an index, and the single weights file if it has none."""
    if _is_folder(path):
        if files.exists(path / INDEX):
            return path, True, ()
        return path, False, (_single_file(path),)
    files.refuse_foreign_name(path.name, str(path))
    if path.suffix == ".json":
        raise refusal("E_FORMAT", str(path), "is not a weights file", "give the folder that holds it")
    if path.name == ADAPTER_MODEL:
        raise refusal(
            "E_FORMAT", str(path), "is a file of an adapter", "give the adapter's folder, with its base"
        )
    return path.parent, False, (path.name,)


def _is_folder(path: Path) -> bool:
    try:
        return files.is_folder(path)
    except InputRefused as error:
        raise (folders.absent(path) if error.code == "E_NOT_FOUND" else error) from None


def _single_file(folder: Path) -> str:
    """Return the only safetensors file of a folder without an index, or refuse the folder with the reason."""
    names = sorted(_names(folder))
    weights = folders.own_weights(names)
    if len(weights) > 1:
        problem = f"holds {len(weights)} {SUFFIX} files and no {INDEX} to say which belong together"
        step = "download or save the index as well, or give the path of one file"
        raise refusal("E_INDEX_SET", str(folder), problem, step)
    if weights:
        return weights[0]
    found = folders.foreign_folder(folder, names)
    if found is not None:
        raise found
    for name in names:
        files.refuse_foreign_name(name, str(folder / name))
    step = "give the folder of a checkpoint, or a .safetensors file"
    raise refusal("E_NOT_FOUND", str(folder), f"holds neither {INDEX} nor a {SUFFIX} file", step)


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError as error:
        problem = f"cannot be listed: {error.strerror}"
        raise refusal("E_ACCESS", str(folder), problem, "check its permissions") from None


def _read_json(root: Path, file: str, max_bytes: int, found: dict[str, FileStat]) -> dict[str, Any]:
    if not files.exists(root / file):
        step = "put it beside the weights; every Hugging Face checkpoint has one"
        raise refusal("E_NOT_FOUND", str(root / file), not_there(str(root / file)), step)
    raw, found[file] = files.read_small(root, file, max_bytes)
    # In these files Python writes an absent limit as Infinity; no other file of a checkpoint may hold it.
    return parse_json_object(raw, str(root / file), infinite=file == CONFIG)


def _read_weight_map(root: Path, found: dict[str, FileStat]) -> dict[str, str]:
    """Return the file of each tensor according to the index."""
    label = str(root / INDEX)
    weight_map = _read_json(root, INDEX, _MAX_INDEX_BYTES, found).get("weight_map")
    if not isinstance(weight_map, dict):
        raise refusal("E_TYPE", label, "must map tensors to files in an object", name="weight_map")
    if not weight_map:
        raise refusal("E_INDEX_SET", label, "names no tensor at all", RE_DOWNLOAD)
    for name, shard in weight_map.items():
        if type(shard) is not str:
            raise refusal("E_TYPE", label, "the file name must be a string", name=name)
    return weight_map


def _indexed_shards(root: Path, weight_map: dict[str, str]) -> tuple[str, ...]:
    """Check the shard names of the index: plain names of existing safetensors files, no other model beside them."""
    label = str(root / INDEX)
    shards = tuple(sorted(set(weight_map.values())))
    for shard in shards:
        if not is_plain_name(shard):
            problem = "the shard's name is not the plain name of a file in the checkpoint folder"
            raise refusal("E_INDEX_PATH", label, problem, name=shard)
        files.refuse_foreign_name(shard, str(root / shard))
        if not shard.endswith(SUFFIX):
            raise refusal("E_FORMAT", label, f"the shard is not a {SUFFIX} file", name=shard)
    missing = [shard for shard in shards if not files.exists(root / shard)]
    if missing:
        problem = f"the index names this file, and it does not exist; missing: {len(missing)} of {len(shards)} files"
        step = (
            f"download what is missing, for example with hf download ORG/NAME --local-dir {shown(str(root))}"
        )
        raise refusal("E_INDEX_SET", label, problem, step, name=missing[0])
    if MODEL not in shards and files.exists(root / MODEL):
        problem = f"stands beside {MODEL}, which it does not name; loaders disagree about which one counts"
        raise refusal(
            "E_INDEX_SET", label, problem, f"give {MODEL} by its path, or export the checkpoint again"
        )
    return shards


def is_plain_name(name: str) -> bool:
    """Return whether a name is the plain name of a file in a folder."""
    forbidden = "/" in name or "\\" in name or not name.isprintable()
    return not forbidden and name not in ("", ".", "..") and len(os.fsencode(name)) <= 255


def _read_shard(
    root: Path, shard: str, max_header_bytes: int, found: dict[str, FileStat]
) -> list[StoredTensor]:
    label = str(root / shard)
    with files.open_regular(root, shard) as (descriptor, stat):
        files.refuse_foreign_content(descriptor, label)
        found[shard] = stat
        try:
            return read_header(descriptor, stat.size, shard, max_header_bytes)
        except InputRefused as error:  # a header knows only its own file
            where = f"{place(str(root))}/{error.where}"
            raise InputRefused(error.code, where, error.problem, error.next_step) from None


def _add(tensors: dict[str, StoredTensor], tensor: StoredTensor, root: Path) -> None:
    rival = tensors.setdefault(tensor.name, tensor)
    if rival is not tensor:
        problem = f"stored in {shown(rival.file)} and again in {shown(tensor.file)}"
        raise refusal("E_INDEX_SET", str(root / INDEX), problem, RE_DOWNLOAD, name=tensor.name)


def _compare(weight_map: dict[str, str], tensors: Mapping[str, StoredTensor], label: str) -> None:
    """Refuse an index that differs from the headers in the name or the file of any tensor."""
    for name, shard in weight_map.items():
        if name not in tensors:
            problem = (
                f"the index places it in {shown(shard)}, whose header lacks it{_among(weight_map, tensors)}"
            )
            raise refusal("E_INDEX_SET", label, problem, RE_DOWNLOAD, name=name)
        if tensors[name].file != shard:
            problem = f"the index places it in {shown(shard)}, it is stored in {shown(tensors[name].file)}"
            raise refusal("E_INDEX_SET", label, problem, RE_DOWNLOAD, name=name)
    for name, tensor in tensors.items():
        if name not in weight_map:
            problem = f"stored in {shown(tensor.file)}, unknown to the index{_among(tensors, weight_map)}"
            raise refusal("E_INDEX_SET", label, problem, RE_DOWNLOAD, name=name)


def _among(names: Iterable[str], known: Mapping[str, object]) -> str:
    """Return how many names have the fault, if there are several."""
    count = sum(name not in known for name in names)
    return f" (and {count - 1} more like it)" if count > 1 else ""
