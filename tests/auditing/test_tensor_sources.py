"""A source of tensors that is no folder goes through the same audit: same receipt, same resume, same refusals."""

from __future__ import annotations

import json
import random
import shutil
import string

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from moe_atlas.auditing.cost import throughput
from moe_atlas.auditing.opening.tokenizer_check import SAME_FILE
from moe_atlas.auditing.resume import StateFile
from moe_atlas.auditing.run import measure, shared_files
from moe_atlas.checkpoint.special_tokens import special_ids
from moe_atlas.errors import InputRefused, IntegrityError
from moe_atlas.options import AuditOptions
from moe_atlas.receipt.write import write_receipt
from scripts.oracle import tiny
from tests.support import pairs
from tests.support.memory_source import MemorySource

LETTERS = string.ascii_lowercase + string.ascii_uppercase[:20]
SMALL = ("tokenizer.json", "generation_config.json", "modeling.py", "README.md")
EOS = 47
ROUTER = "model.layers.1.mlp.gate.weight"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A pair whose folders hold a tokenizer and other small files, and a probe of text."""
    root = tmp_path_factory.mktemp("sources")
    base = tiny.save("deepseek_v3", root / "base", seed=5)
    pairs.variant(base, root / "tuned", pairs.jitter(3e-3, lambda name: "norm" not in name), shards=2)
    (root / "probe").mkdir()
    _probe(root / "probe")
    shutil.copy(root / "probe/tokenizer.json", root / "tuned")
    (root / "tuned/generation_config.json").write_text(json.dumps({"eos_token_id": EOS}))
    (root / "tuned/modeling.py").write_text("x = 1\n")
    (root / "tuned/README.md").write_text("tuned\n")
    return root


def _probe(folder):
    made = Tokenizer(models.WordLevel({letter: n for n, letter in enumerate(LETTERS)}, unk_token="a"))
    made.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    made.save(str(folder / "tokenizer.json"))
    generator = random.Random(0)
    rows = [{"text": "".join(generator.choices(LETTERS, k=24))} for _ in range(40)]
    (folder / "text.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    domain = {"name": "prose", "role": "base", "source": "text.jsonl", "documents": 40}
    pairs.probe(folder, tokenizer="tokenizer.json", domains=[domain])


@pytest.fixture
def source(place):
    config = json.loads((place / "tuned/config.json").read_text())
    small = {name: (place / "tuned" / name).read_bytes() for name in SMALL}
    return MemorySource(pairs.read(place / "tuned"), config, small)


def audited(place, tuned, folder, *, resume=False):
    """Audit the folder of the base against a tuned checkpoint, and write the receipt."""
    state = (folder / "state", folder / "floor-state") if resume else None
    facts, arrays = measure(place / "base", tuned, place / "probe/probes.yaml", AuditOptions(resume=state))
    return write_receipt(facts, arrays, folder / "receipt.json"), arrays


def alike(receipt):
    """A receipt without times, the tuned checkpoint's path, and what only a folder digests."""
    left = json.loads(json.dumps(receipt))
    del left["timing"], left["evidence"]["receipt_sha256"], left["checkpoints"]["tuned"]["path"]
    for row in left["checkpoints"]["tuned"]["files"]["listed"]:
        del row["content"]
    return left


def after_layer(monkeypatch, layers, act):
    """Do something right after the state of so many layers was kept."""
    real = StateFile.save

    def save(self, walk, done):
        real(self, walk, done)
        if done == layers:
            act()

    monkeypatch.setattr(StateFile, "save", save)


class Killed(BaseException):
    """Nothing catches it."""


def kill():
    raise Killed


def interrupt(place, source, folder, monkeypatch):
    """Leave the state after two layers."""
    with monkeypatch.context() as patched:
        after_layer(patched, 2, kill)
        with pytest.raises(Killed):
            audited(place, source, folder, resume=True)
    assert (folder / "state").exists()


@pytest.mark.parametrize("interrupted", [False, True])
def test_a_source_in_memory_gives_the_receipt_of_the_folder(
    place, source, tmp_path, monkeypatch, interrupted
):
    (tmp_path / "folder").mkdir()
    expected, windows = audited(place, place / "tuned", tmp_path / "folder")
    if interrupted:
        interrupt(place, source, tmp_path, monkeypatch)
    found, arrays = audited(place, source, tmp_path, resume=interrupted)
    assert alike(found) == alike(expected)
    assert arrays.keys() == windows.keys()
    assert all(np.array_equal(arrays[name], windows[name], equal_nan=True) for name in windows)
    tuned = found["checkpoints"]["tuned"]
    assert (tuned["path"], tuned["tokenizer"]["result"]) == ("memory", SAME_FILE)
    assert [row["file"] for row in tuned["files"]["listed"]] == [
        "modeling.py", "generation_config.json", "tokenizer.json", "README.md"
    ]  # fmt: skip


def test_small_files_of_a_source_name_its_special_tokens(source):
    assert special_ids(source) == {EOS: "eos"}


@pytest.mark.parametrize("name", [ROUTER, "lm_head.weight", "modeling.py"])
def test_what_changes_in_a_source_during_the_audit_is_noticed(place, source, tmp_path, monkeypatch, name):
    """Also where the bytes are the same: the identity is what tells."""
    after_layer(monkeypatch, 2, lambda: source.write(name, source.contents[name]))
    with pytest.raises(IntegrityError, match="E_CHANGED") as raised:
        audited(place, source, tmp_path, resume=True)
    assert f"memory/{name}" in str(raised.value)


def test_a_resumed_audit_notices_other_bytes(place, source, tmp_path, monkeypatch):
    interrupt(place, source, tmp_path, monkeypatch)
    tensors = pairs.read(place / "tuned")
    tensors[ROUTER] = tensors[ROUTER] + 1
    small = {name: source.contents[name] for name in SMALL}
    with pytest.raises(IntegrityError, match="holds other bytes than the interrupted audit consumed"):
        audited(place, MemorySource(tensors, source.config, small), tmp_path, resume=True)


def test_another_tokenizer_in_a_source_is_refused_at_its_place(place, source, tmp_path):
    source.write("tokenizer.json", b"{}")
    with pytest.raises(InputRefused, match="E_PROBE_TOKENIZER") as raised:
        audited(place, source, tmp_path)
    assert "memory/tokenizer.json" in str(raised.value)


def test_files_are_shared_where_their_identities_are_equal(source, place):
    other = MemorySource(pairs.read(place / "tuned"), source.config, {})
    assert shared_files(source, source) == set(source.tensors)
    assert not shared_files(source, other)


def test_the_speed_of_a_source_can_be_tried(source):
    assert throughput.read_rate([source]) > 0
