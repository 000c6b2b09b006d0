"""What torch.distributed.checkpoint's ``.metadata`` says: tensors, their chunks, and where each chunk is stored.

The file is a pickle of the data classes of ``torch/distributed/checkpoint/metadata.py`` and ``filesystem.py``
(torch 2.0 to 2.13). `read_pickle` makes plain records of it; this module checks their form.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from moe_atlas.checkpoint.headers.header import TORCH_NAMES
from moe_atlas.checkpoint.headers.refuse import refusal, shown
from moe_atlas.checkpoint.training.pickles import NEXT_STEP, Name, Record, read_pickle
from moe_atlas.errors import InputRefused

MAX_METADATA_BYTES = 256 << 20
_MODULE = "torch.distributed.checkpoint.metadata."
_INFO = "torch.distributed.checkpoint.filesystem._StorageInfo"
_SIZE, _LAYOUT = "torch.Size", "torch.serialization._get_layout"
_MEMORY_FORMAT = _MODULE + "_MEM_FORMAT_ENCODING"
_DTYPES = {f"torch.{name}": dtype for dtype, name in TORCH_NAMES.items()}
_CLASSES = ("Metadata", "MetadataIndex", "StorageMeta", "TensorProperties")
_ENTRIES = ("TensorStorageMetadata", "ChunkStorageMetadata", "BytesStorageMetadata")
NAMES = frozenset(
    {
        *(_MODULE + name for name in (*_CLASSES, *_ENTRIES)),
        *(_INFO, _SIZE, _LAYOUT, _MEMORY_FORMAT, "pathlib.PosixPath", "pathlib._local.PosixPath"),
        *_DTYPES,
    }
)
"""Every global that the metadata may name."""

Numbers = tuple[int, ...]
Path = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Place:
    """Where an item is stored: `length` bytes from `offset` on in a file."""

    file: str
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Described:
    """A tensor: its dtype as safetensors spells it, its shape, and offsets and sizes of its chunks."""

    dtype: str
    shape: Numbers
    chunks: list[tuple[Numbers, Numbers]]


@dataclass(frozen=True)
class Metadata:
    """The content of a ``.metadata`` file.

    Attributes:
        tensors: every tensor by key.
        others: the keys of entries that are no tensors.
        places: the place of each chunk, by key and offsets.
        paths: where each key stood in the nested state that was saved, if the file says so.
    """

    tensors: Mapping[str, Described]
    others: list[str]
    places: Mapping[tuple[str, Numbers], Place]
    paths: Mapping[str, Path]


def read_metadata(raw: bytes, label: str) -> Metadata:
    """Read the bytes of a ``.metadata`` file.

    Raises:
        InputRefused: ``E_PICKLE`` for a pickle that does anything but describe a checkpoint; ``E_METADATA`` for a
            description of another form.
    """
    return _Form(label).metadata(read_pickle(raw, NAMES, label))


class _Form:
    """Checks the form of records and gives them types."""

    def __init__(self, label: str) -> None:
        self.label = label

    def refuse(self, problem: str, key: str | None = None) -> InputRefused:
        return refusal("E_METADATA", self.label, problem, NEXT_STEP, name=key)

    def metadata(self, value: Any) -> Metadata:
        state = self.state(value, "Metadata")
        entries = self.mapping(state.get("state_dict_metadata"), "state_dict_metadata")
        stored = self.mapping(state.get("storage_data"), "storage_data")
        tensors, others = {}, []
        for key, entry in entries.items():
            if not isinstance(key, str):
                raise self.refuse("has a key that is no text")
            if self.is_a(entry, "BytesStorageMetadata"):
                others.append(key)
            else:
                tensors[key] = self.tensor(entry, key)
        return Metadata(tensors, others, self.places(stored), self.paths(state.get("planner_data")))

    def is_a(self, value: Any, name: str) -> bool:
        return isinstance(value, Record) and value.name == _MODULE + name

    def state(self, value: Any, name: str) -> dict[str, Any]:
        if not self.is_a(value, name) or value.arguments or not isinstance(value.state, dict):
            raise self.refuse(f"holds {_kind(value)} where a {name} must stand")
        return value.state

    def mapping(self, value: Any, name: str) -> dict[Any, Any]:
        if not isinstance(value, dict):
            raise self.refuse(f"holds {_kind(value)} where the mapping {name} must stand")
        return value

    def numbers(self, value: Any, key: str) -> Numbers:
        numbers = value.arguments[0] if isinstance(value, Record) and len(value.arguments) == 1 else None
        if not isinstance(value, Record) or value.name != _SIZE or not isinstance(numbers, tuple):
            raise self.refuse(f"holds {_kind(value)} where a torch.Size must stand", key)
        if not all(type(n) is int and 0 <= n < 1 << 62 for n in numbers):
            raise self.refuse("holds a size that is no list of extents", key)
        return numbers

    def tensor(self, entry: Any, key: str) -> Described:
        state = self.state(entry, "TensorStorageMetadata")
        shape, chunks = self.numbers(state.get("size"), key), state.get("chunks")
        if not isinstance(chunks, list):
            raise self.refuse(f"holds {_kind(chunks)} where a list of chunks must stand", key)
        found = []
        for chunk in chunks:
            box = self.state(chunk, "ChunkStorageMetadata")
            offsets, sizes = self.numbers(box.get("offsets"), key), self.numbers(box.get("sizes"), key)
            if not len(offsets) == len(sizes) == len(shape):
                raise self.refuse(f"has a chunk with another number of dimensions than {list(shape)}", key)
            found.append((offsets, sizes))
        return Described(self.dtype(state.get("properties"), key), shape, found)

    def dtype(self, value: Any, key: str) -> str:
        state = value.state if self.is_a(value, "TensorProperties") else None
        if not isinstance(state, tuple) or len(state) != 5:
            raise self.refuse(f"holds {_kind(value)} where TensorProperties must stand", key)
        dtype, layout, _, memory_format, _ = state
        if not isinstance(dtype, Name) or dtype not in _DTYPES:
            raise self.refuse(f"has the dtype {_kind(dtype)}, which is none that safetensors has", key)
        if not isinstance(layout, Record) or layout.arguments != ("torch.strided",):
            raise self.refuse("is not stored strided", key)
        if not isinstance(memory_format, Record) or memory_format.arguments not in ((0,), (2,)):
            raise self.refuse("is not stored in row-major order", key)
        return _DTYPES[dtype]

    def places(self, stored: dict[Any, Any]) -> dict[tuple[str, Numbers], Place]:
        found: dict[tuple[str, Numbers], Place] = {}
        for index, info in stored.items():
            state = self.state(index, "MetadataIndex")
            key, offset = state.get("fqn"), state.get("offset")
            if type(key) is not str:
                raise self.refuse(f"holds {_kind(key)} where the key of a tensor must stand")
            at = key, (() if offset is None else self.numbers(offset, key))
            if at in found:
                raise self.refuse("is stored in two places", key)
            found[at] = self.place(info, key)
        return found

    def place(self, info: Any, key: str) -> Place:
        state = info.state if isinstance(info, Record) and info.name == _INFO else None
        if not isinstance(state, dict):
            raise self.refuse(f"holds {_kind(info)} where the place of a chunk must stand", key)
        if state.get("transform_descriptors"):
            raise self.refuse("is stored compressed or otherwise transformed", key)
        file, offset, length = (state.get(name) for name in ("relative_path", "offset", "length"))
        if type(file) is not str or type(offset) is not int or type(length) is not int:
            raise self.refuse("has a place that is no file, offset and length", key)
        if offset < 0 or length < 0:
            raise self.refuse(f"is stored at {offset}, in {length} bytes", key)
        return Place(file, offset, length)

    def paths(self, planned: Any) -> dict[str, Path]:
        """Return the path of each key; torch keeps them for its own planner, and older ones keep none."""
        if not isinstance(planned, dict):
            return {}
        return {
            key: path
            for key, path in planned.items()
            if isinstance(key, str)
            and isinstance(path, tuple)
            and path
            and all(type(part) in (str, int) for part in path)
        }


def _kind(value: Any) -> str:
    if isinstance(value, Name):
        return f"'{shown(value)}'"
    return f"a {shown(value.name)}" if isinstance(value, Record) else f"a {type(value).__name__}"
