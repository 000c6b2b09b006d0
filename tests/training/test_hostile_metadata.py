"""A hostile ``.metadata`` or ``.distcp`` is one plain refusal: nothing is called, imported or opened on its word."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import random
import sys
import zipfile
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex

from moe_atlas.checkpoint.index import open_checkpoint
from moe_atlas.checkpoint.training import pickles
from moe_atlas.checkpoint.training.metadata import NAMES, read_metadata
from moe_atlas.checkpoint.training.opening import open_folder
from moe_atlas.checkpoint.training.pickles import read_pickle
from moe_atlas.errors import AtlasError, InputRefused
from scripts.oracle import tiny

WATCHED = ("exec", "compile", "import", "os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "os.remove",
           "os.rename", "socket.connect", "pickle.find_class", "ctypes.dlopen", "shutil.rmtree")  # fmt: skip
SHAPE = (4, 6)


class Watch:
    """What Python does while a hostile file is read; an audit hook cannot be taken away, so there is one for all."""

    def __init__(self):
        self.on, self.events, self.folder = False, [], ""
        for codec in (
            "cp437",
            "unicode_escape",
        ):  # of names in archives, of messages: Python loads a codec when it is used
            "a".encode(codec)
        sys.addaudithook(self)

    def __call__(self, event, arguments):
        if not self.on:
            return
        if event in WATCHED or (event == "open" and not str(arguments[0]).startswith(self.folder)):
            self.events.append((event, str(arguments[:1])))


WATCH = Watch()


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return open_checkpoint(tiny.save("qwen3_moe", tmp_path_factory.mktemp("hostile") / "model"))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "saved"
    state = {
        "model": {"a": torch.arange(24.0).reshape(SHAPE), "b": torch.ones(3)},
        "optim": {"m": torch.ones(2)},
    }
    dcp.save(state, storage_writer=dcp.FileSystemWriter(str(folder)), no_dist=True)
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.fixture
def refused(tmp_path, plain):
    """Open a folder with these files under the hook; return the refusal, which must be one line."""

    def call(contents):
        for name, content in contents.items():
            (tmp_path / name).write_bytes(content)
        WATCH.events, WATCH.folder, WATCH.on = [], str(tmp_path), True
        try:
            with pytest.raises(InputRefused) as caught:
                open_folder(tmp_path, plain)
        finally:
            WATCH.on = False
        assert WATCH.events == []
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 2000
        return caught.value

    return call


class Call:
    """Pickles as the call of a function."""

    def __init__(self, function, *arguments):
        self.how = function, arguments

    def __reduce__(self):
        return self.how


def text(value: str) -> bytes:
    return b"\x8c" + bytes([len(value)]) + value.encode()


def named(module: str, attribute: str) -> bytes:
    return text(module) + text(attribute) + b"\x93"


SIZE = named("torch", "Size")
BOMB = (
    b"\x80\x04)\x94"
    + b"".join(b"h" + bytes([n]) + b"h" + bytes([n]) + b"\x86\x94" for n in range(200))
    + b"."
)
PICKLES = {
    "os.system": (pickle.dumps(Call(os.system, "touch owned")), "'posix.system'", "STACK_GLOBAL"),
    "os.system, protocol 0": (b"cos\nsystem\n(S'touch owned'\ntR.", "'os.system'", "GLOBAL"),
    "eval": (pickle.dumps(Call(eval, "1")), "'builtins.eval'"),
    "a module of torch": (pickle.dumps(Call(torch.load, "x")), "'torch.serialization.load'"),
    "an attribute of a name": (b"\x80\x04" + named("torch", "Size.__class__") + b".", "'torch.Size.__class__'"),
    "two parts": (b"\x80\x04ctorch.Size\n__init__\n.", "'torch.Size.__init__'"),
    "the call of text": (b"\x80\x04" + text("x") + b")R.", "calls something that is no name", "REDUCE"),
    "the call of a record": (b"\x80\x04" + SIZE + b")R)R.", "calls something that is no name"),
    "arguments that are a list": (b"\x80\x04" + SIZE + b"]R.", "calls something that is no name"),
    "arguments by name": (b"\x80\x04" + SIZE + b")}\x92.", "NEWOBJ_EX"),
    "an instance": (b"(cos\nsystem\no.", "'os.system'"),
    "an instance by text": (b"(ios\nsystem\n.", "INST"),
    "an extension": (b"\x80\x04\x82\x01.", "EXT1"),
    "a reference outside": (b"\x80\x04K\x01Q.", "refers to something outside"),
    "a buffer outside": (b"\x80\x05\x97.", "NEXT_BUFFER"),
    "the state of text": (b"\x80\x04" + text("x") + b"}b.", "expects a Record"),
    "a state that is a list": (b"\x80\x04" + SIZE + b")\x81]b.", "to no state"),
    "a state set twice": (b"\x80\x04" + SIZE + b")\x81}b}b.", "sets the state of a record that has one"),
    "marks": (b"\x80\x04" + b"(" * 100_000 + b".", "levels deep", "MARK"),
    "tuples in tuples": (b"\x80\x04)" + b"\x85" * 100_000 + b".", "levels deep", "TUPLE1"),
    "lists in lists": (b"\x80\x04" + b"]" * 40 + b"a" * 39 + b".", "levels deep", "APPEND"),
    "records in records": (b"\x80\x04" + SIZE + b"\x940" + b"h\x00)R" * 5, "POP"),
    "a list in itself": (b"\x80\x04]\x94" + b"h\x00a" * 40 + b".", "levels deep", "APPEND"),
    "a memo bomb": (BOMB, "levels deep", "TUPLE2"),
    "a memo set twice": (b"\x80\x04]q\x00]q\x00.", "stores a value twice"),
    "a memo never set": (b"\x80\x04h\x07.", "recalls a value that it never stored"),
    "an empty stack": (b"\x80\x040.", "POP"),
    "a tuple of nothing": (b"\x80\x04\x86.", "takes a value that is not there"),
    "members without a mark": (b"\x80\x04]e.", "takes members that are not there"),
    "what stands before a mark": (b"\x80\x04K\x01(\x85.", "takes a value that is not there"),
    "a long integer": (b"\x80\x04\x8a\xff" + b"\x7f" * 255 + b".", "integer that is too long"),
    "a very long integer": (b"\x80\x04\x8b\x00\x00\x10\x00" + b"\x7f" * (1 << 20) + b".", "LONG4"),
    "an integer in digits": (b"L" + b"9" * 100_000 + b"L\n.", "LONG"),
    "escaped text": (b"V\\u0041\n.", "UNICODE"),
    "a huge text": (b"\x80\x04X\xff\xff\xff\x7fa.", "no whole pickle"),
    "a huge frame": (b"\x80\x04\x95" + b"\xff" * 8 + b".", "does not leave one value"),
    "a key that is a tuple": (b"\x80\x04}(K\x01\x85K\x01u.", "key of type tuple"),
    "a key that is a list": (b"\x80\x04}(]K\x01u.", "key of type list"),
    "a key twice": (b"\x80\x04}(K\x01K\x01K\x01K\x02u.", "sets a key twice"),
    "a record as a key twice": (b"\x80\x04}(" + SIZE + b")R\x94K\x01h\x00K\x02u.", "sets a key twice"),
    "a key without a value": (b"\x80\x04}(K\x01u.", "without a value"),
    "nothing": (b"", "no whole pickle"),
    "no end": (b"\x80\x04N", "no whole pickle"),
    "an unknown opcode": (b"\x80\x04\xf0.", "no opcode"),
    "two values": (b"\x80\x04NN.", "does not leave one value"),
    "no metadata": (b"\x80\x04N.", "where a Metadata must stand"),
    "bytes of another kind": (os.urandom(0) + b"\xff" * 100, "no whole pickle"),
}  # fmt: skip


@pytest.mark.parametrize("name", PICKLES)
def test_a_pickle_that_is_more_than_data_is_refused_with_its_opcode(refused, saved, name):
    raw, *mentions = PICKLES[name]
    error = refused(saved | {".metadata": raw})
    assert error.code in ("E_PICKLE", "E_METADATA")
    assert [mention for mention in mentions if mention not in str(error)] == []
    assert not Path("owned").exists()


def test_a_call_deep_inside_of_real_metadata_is_refused(refused, saved):
    metadata = pickle.loads(saved[".metadata"])
    metadata.planner_data["model.a"] = Call(os.system, "touch owned")
    assert "'posix.system'" in str(refused(saved | {".metadata": pickle.dumps(metadata)}))


def test_caps_hold(monkeypatch):
    for cap, raw, said in (
        ("MAX_RECORDS", SIZE + b"\x94" + b"h\x00)R0" * 9, "records"),
        ("MAX_MEMO", b"]\x94" * 9, "remembers too many"),
        ("MAX_OPCODES", b"N" * 9, "opcodes"),
    ):
        monkeypatch.setattr(pickles, cap, 3)
        with pytest.raises(InputRefused, match=said):
            read_pickle(b"\x80\x04" + raw.replace(b"0", b"") + b".", NAMES, "f")
        monkeypatch.undo()


def info(metadata, key="model.a"):
    return next(entry for index, entry in metadata.storage_data.items() if index.fqn == key)


def place_at(**changes):
    def change(metadata):
        for name, value in changes.items():
            setattr(info(metadata), name, value)

    return change


def chunks(*boxes):
    def change(metadata):
        entry, stored = metadata.state_dict_metadata["model.a"], info(metadata)
        metadata.storage_data = {i: v for i, v in metadata.storage_data.items() if i.fqn != "model.a"}
        entry.chunks = [ChunkStorageMetadata(torch.Size(o), torch.Size(s)) for o, s in boxes]
        metadata.storage_data |= {MetadataIndex("model.a", o): stored for o, _ in boxes}

    return change


def size(*extents):
    def change(metadata):
        metadata.state_dict_metadata["model.a"].size = torch.Size(extents)

    return change


def unplaced(metadata):
    metadata.storage_data = {}


def many_dimensions(metadata):
    size(*[1] * 70)(metadata)
    chunks(([0] * 70, [1] * 70))(metadata)


FORMS = {
    "a file above": (place_at(relative_path="../saved/__0_0.distcp"), "E_INDEX_PATH"),
    "an absolute path": (place_at(relative_path="/etc/passwd"), "E_INDEX_PATH"),
    "a folder": (place_at(relative_path=".."), "E_INDEX_PATH"),
    "another file": (place_at(relative_path="none.distcp"), "E_INDEX_SET"),
    "the metadata itself": (place_at(relative_path=".metadata", offset=0, length=40), "E_ITEM"),
    "an offset outside": (place_at(offset=1 << 40), "E_ITEM", "cut short"),
    "a negative offset": (place_at(offset=-5), "E_METADATA"),
    "a length beyond the file": (place_at(length=1 << 40), "E_ITEM", "cut short"),
    "a length of nothing": (place_at(length=0), "E_ITEM"),
    "a place inside of an item": (place_at(offset=7, length=300), "E_ITEM"),
    "an offset that is text": (place_at(offset="0"), "E_METADATA"),
    "a transformation": (place_at(transform_descriptors=["zstd"]), "E_METADATA"),
    "an item of another tensor": (lambda m: place_at(**vars(info(m, "model.b")))(m), "E_ITEM"),
    "a huge size": (size(1 << 61, 6), "E_SHAPE"),
    "a size of another rank": (size(24), "E_METADATA"),
    "a larger size": (size(4, 7), "E_COVER"),
    "a smaller size": (size(4, 5), "E_COVER"),
    "overlapping chunks": (chunks(([0, 0], SHAPE), ([1, 0], SHAPE)), "E_COVER"),
    "chunks that share bytes": (lambda m: (size(8, 6)(m), chunks(([0, 0], SHAPE), ([4, 0], SHAPE))(m)), "E_COVER"),
    "a chunk beyond the tensor": (chunks(([1, 0], SHAPE)), "E_COVER"),
    "a chunk of huge size": (chunks(([0, 0], (1 << 61, 6))), "E_ITEM"),
    "no chunk": (chunks(), "E_COVER"),
    "no place": (unplaced, "E_METADATA"),
    "too many dimensions": (many_dimensions, "E_"),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMS)
def test_metadata_that_contradicts_the_files_is_refused_by_name(refused, saved, name):
    change, code, *mentions = FORMS[name]
    metadata = pickle.loads(saved[".metadata"])
    change(metadata)
    error = refused(saved | {".metadata": pickle.dumps(metadata)})
    assert error.code.startswith(code)
    assert [mention for mention in mentions if mention not in str(error)] == []


def zipped(entries, **options):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", **options) as archive:
        for name, content in entries:
            archive.writestr(name, content)
    return file.getvalue()


def whole(tensor=None):
    """The entries of what torch.save writes."""
    file = io.BytesIO()
    torch.save(torch.arange(24.0).reshape(SHAPE) if tensor is None else tensor, file)
    with zipfile.ZipFile(file) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def item(**changes):
    entries = whole() | {f"archive/{name}": content for name, content in changes.items()}
    return zipped([(name, content) for name, content in entries.items() if content is not None])


EVIL = pickle.dumps(Call(os.system, "touch owned"), 2)
ITEMS = {
    "compressed": (zipped(whole().items(), compression=zipfile.ZIP_DEFLATED), "compressed"),
    "a call": (item(**{"data.pkl": EVIL}), "'posix.system'"),
    "no description": (item(**{"data.pkl": None}), "not what torch.save writes"),
    "another description": (item(**{"data.pkl": b"\x80\x02N."}), "describes no plain tensor"),
    "a long description": (item(**{"data.pkl": b"N" * 100_000}), "describes a tensor in 100000 bytes"),
    "fewer bytes": (item(**{"data/0": b"x" * 95}), "does not hold the 24 elements"),
    "more bytes": (item(**{"data/0": b"x" * 97}), "does not hold the 24 elements"),
    "no bytes": (item(**{"data/0": None}), "does not hold the 24 elements"),
    "another byte order": (item(byteorder=b"big"), "another byte order"),
    "another dtype": (zipped(whole(torch.zeros(SHAPE, dtype=torch.int32)).items()), "holds I32 of [4, 6]"),
    "another shape": (zipped(whole(torch.zeros(6, 4)).items()), "holds F32 of [6, 4]"),
    "turned": (zipped(whole(torch.zeros(6, 4).T).items()), "not in row-major order"),
    "repeated rows": (zipped(whole(torch.zeros(1, 6).expand(4, 6)).items()), "not in row-major order"),
    "safetensors": (b"\x08" + bytes(7) + b"{}      ", "no zip archive"),
    "many entries": (zipped([(f"archive/{n}", b"") for n in range(3000)]), "no zip archive"),
}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("name", ITEMS)
def test_an_item_that_is_no_plain_tensor_is_refused(refused, saved, name):
    raw, mention = ITEMS[name]
    metadata = pickle.loads(saved[".metadata"])
    place_at(relative_path="x.distcp", offset=3, length=len(raw))(metadata)
    error = refused(saved | {".metadata": pickle.dumps(metadata), "x.distcp": b"abc" + raw})
    assert mention in str(error)
    assert "'model.a'" in str(error)


def test_two_entries_of_one_name_are_refused(refused, saved):
    with pytest.warns(UserWarning, match="Duplicate name"):
        raw = zipped([*whole().items(), ("archive/data/0", bytes(96))])
    metadata = pickle.loads(saved[".metadata"])
    place_at(relative_path="x.distcp", offset=0, length=len(raw))(metadata)
    assert "two entries of one name" in str(
        refused(saved | {".metadata": pickle.dumps(metadata), "x.distcp": raw})
    )


def mutated(raw: bytes, dice: random.Random) -> bytes:
    """The bytes with a few of them changed, taken out, doubled or moved."""
    data = bytearray(raw)
    for _ in range(dice.randint(1, 6)):
        at, length = dice.randrange(len(data)), dice.choice((1, 1, 2, 8, 40))
        match dice.randrange(4):
            case 0:
                data[at] = dice.randrange(256)
            case 1:
                del data[at : at + length]
            case 2:
                data[at:at] = data[at : at + length]
            case _:
                other = dice.randrange(len(data))
                data[at : at + length] = data[other : other + length]
    return bytes(data)


def fuzz(saved, folder, plain, count: int, seed: int) -> tuple[int, int]:
    """Read mutated files; return how many were read and how many refused. Any other end is an error."""
    dice, read, refusals = random.Random(seed), 0, 0
    for name, content in saved.items():
        (folder / name).write_bytes(content)
    for _ in range(count):
        name = dice.choice((".metadata", ".metadata", ".metadata", "__0_0.distcp"))
        (folder / name).write_bytes(mutated(saved[name], dice))
        try:
            open_folder(folder, plain)
            read += 1
        except AtlasError:
            refusals += 1
        (folder / name).write_bytes(saved[name])
    return read, refusals


def test_mutated_files_are_read_or_refused(saved, plain, tmp_path):
    WATCH.events, WATCH.folder, WATCH.on = [], str(tmp_path), True
    try:
        read, refusals = fuzz(saved, tmp_path, plain, 1000, 7)
    finally:
        WATCH.on = False
    assert WATCH.events == []
    assert read + refusals == 1000
    assert refusals > 300


def test_mutated_metadata_never_ends_otherwise(saved):
    dice, codes = random.Random(3), set()
    for _ in range(2000):
        with contextlib.suppress(AtlasError):
            read_metadata(mutated(saved[".metadata"], dice), "f")
            codes.add("")
    assert codes == {""}  # some are read: what changed was a name or a number
