"""Files beside the weights: every one listed, bounded, nothing followed, opened twice or run."""

from __future__ import annotations

import hashlib
import json
import os

import pytest
from forge import shard_bytes, write_sharded, write_single

from moe_atlas.checkpoint import side_files as module
from moe_atlas.checkpoint.index import open_checkpoint
from moe_atlas.checkpoint.side_files import file_facts, kind_of
from moe_atlas.errors import IntegrityError


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "model"
    write_single(folder, shard_bytes({"a": b"\1" * 8}))
    return folder


def listed(path):
    return {entry.file: entry for entry in open_checkpoint(path).beside()}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("pytorch_model.bin", "weights"),
        ("pytorch_model.bin.index.json", "weights"),
        ("consolidated.00.pth", "weights"),
        ("model.gguf", "weights"),
        ("model-00002-of-00003.safetensors", "weights"),
        ("adapter_model.safetensors", "weights"),
        ("modeling_deepseek.py", "code"),
        ("zero_to_fp32.py", "code"),
        ("chat_template.jinja", "chat-template"),
        ("additional_chat_templates/tools.jinja", "chat-template"),
        ("tokenizer_config.json", "chat-template"),
        ("generation_config.json", "generation"),
        ("tokenizer.json", "tokenizer"),
        ("special_tokens_map.json", "tokenizer"),
        ("merges.txt", "tokenizer"),
        ("qwen.tiktoken", "tokenizer"),
        ("preprocessor_config.json", "preprocessor"),
        ("video_preprocessor_config.json", "preprocessor"),
        ("hf_quant_config.json", "settings"),
        ("params.json", "settings"),
        ("adapter_config.json", "settings"),
        ("something", "other"),
        ("training_args.bin", "trainer"),
        ("optimizer.pt", "trainer"),
        ("rng_state_0.pth", "trainer"),
        ("README.md", "documentation"),
        ("LICENSE", "documentation"),
    ],
)
def test_what_a_file_is_for(name, kind):
    assert kind_of(name) == kind


def test_every_file_is_listed_once_and_what_a_server_acts_on_first(folder):
    for name in (
        "README.md",
        "tokenizer.json",
        "modeling.py",
        "x.bin",
        "something",
        "model-2.safetensors.part",
    ):
        (folder / name).write_bytes(name.encode())
    (folder / "code").mkdir()
    (folder / "code/inner.py").write_text("x = 1")
    (folder / "code/notes.txt").write_text("x")
    (folder / ".git").mkdir()
    (folder / ".git/hook.py").write_text("x")
    found = open_checkpoint(folder).beside()
    assert [entry.file for entry in found] == [
        "x.bin", "code/inner.py", "modeling.py", "tokenizer.json", "model-2.safetensors.part", "something", "README.md",
        "code/",
    ]  # fmt: skip
    assert found[2].sha256 == hashlib.sha256(b"modeling.py").hexdigest()
    assert (found[2].size, found[2].unread) == (11, None)


def test_shards_that_no_index_names_are_listed(tmp_path):
    write_sharded(tmp_path / "m", {"model-1.safetensors": {"a": b"\1"}})
    (tmp_path / "m/model-2.safetensors").write_bytes(b"x")
    assert listed(tmp_path / "m")["model-2.safetensors"].kind == "weights"


def test_one_file_of_a_folder_is_not_answerable_for_the_other_weights(folder):
    (folder / "other.safetensors").write_bytes(b"x")
    (folder / "tokenizer.json").write_text("{}")
    assert list(listed(folder / "model.safetensors")) == ["tokenizer.json"]


def test_nothing_outside_is_read_and_nothing_hangs(folder, tmp_path):
    (tmp_path / "secret.json").write_text("{}")
    os.symlink(tmp_path / "secret.json", folder / "tokenizer.json")
    os.symlink(tmp_path, folder / "outside")
    os.symlink("nowhere", folder / "gone.py")
    os.mkfifo(folder / "pipe.py")
    found = listed(folder)
    assert {name: entry.sha256 for name, entry in found.items()} == dict.fromkeys(
        ("tokenizer.json", "outside", "gone.py", "pipe.py")
    )
    assert "link" in found["tokenizer.json"].unread
    assert "FIFO" in found["pipe.py"].unread


def test_the_links_of_a_cache_snapshot_are_read(tmp_path):
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots/abc"
    write_single(snapshot, shard_bytes({"a": b"\1" * 8}))
    blobs.mkdir()
    (blobs / "feed").write_text("{}")
    os.symlink("../../blobs/feed", snapshot / "tokenizer.json")
    assert listed(snapshot)["tokenizer.json"].sha256 == hashlib.sha256(b"{}").hexdigest()


def test_long_files_are_known_by_their_size(folder, monkeypatch):
    monkeypatch.setattr(module, "HASHED_BYTES", 10)
    monkeypatch.setattr(module, "HASHED_TOTAL", 15)
    (folder / "a.bin").write_bytes(b"0" * 10)
    (folder / "b.py").write_bytes(b"0" * 10)
    (folder / "c.py").write_bytes(b"0" * 11)
    (folder / "d.py").write_bytes(b"0" * 5)
    found = listed(folder)
    assert [name for name in found if found[name].sha256] == ["b.py", "d.py"]
    assert (found["a.bin"].size, found["a.bin"].unread) == (10, "too long to be read")


def test_a_receipt_stays_small_and_notices_the_rest(folder, monkeypatch):
    monkeypatch.setattr(module, "LISTED", 3)
    for number in range(5):
        (folder / f"{number}.py").write_text("x")
    first = file_facts(open_checkpoint(folder).beside())
    assert [row["file"] for row in first["listed"]] == ["0.py", "1.py", "2.py"]
    assert first["more"]["files"] == 2
    (folder / "4.py").write_text("y")
    assert file_facts(open_checkpoint(folder).beside())["more"]["sha256"] != first["more"]["sha256"]


def test_a_folder_of_more_names_than_are_looked_at_is_named(folder, monkeypatch):
    monkeypatch.setattr(module, "ENTRIES", 4)
    (folder / "code").mkdir()
    for number in range(5):
        (folder / f"code/{number}.py").write_text("x")
    assert list(listed(folder)) == ["code/"]


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ({"a": 1, "transformers_version": "4"}, {"transformers_version": "5", "a": 1}, True),
        ({"a": 1}, {"a": 2}, False),
        ({"a": 1}, {"a": 1.0}, False),
    ],
)
def test_the_content_of_json_leaves_out_how_it_was_written(folder, one, other, same):
    contents = []
    for value, indent in ((one, None), (other, 4)):
        (folder / "generation_config.json").write_text(json.dumps(value, indent=indent))
        contents.append(listed(folder)["generation_config.json"].content)
    assert (contents[0] == contents[1]) is same


@pytest.mark.parametrize("text", ['{"a": 1, "a": 2}', "{", "[" * 100_000])
def test_json_that_parsers_read_differently_has_no_content(folder, text):
    (folder / "generation_config.json").write_text(text)
    entry = listed(folder)["generation_config.json"]
    assert (entry.content, entry.sha256) == (None, hashlib.sha256(text.encode()).hexdigest())


@pytest.mark.parametrize("change", ["written", "removed", "added"])
def test_a_file_that_changes_meanwhile_is_noticed(folder, change):
    (folder / "modeling.py").write_text("x")
    (folder / "trainer_state.json").write_text("x")
    checkpoint = open_checkpoint(folder)
    first = checkpoint.beside()
    (folder / "trainer_state.json").write_text("a trainer goes on writing its own records")
    checkpoint.require_unchanged_beside(first)
    if change == "written":
        (folder / "modeling.py").write_text("yy")
    elif change == "removed":
        (folder / "modeling.py").unlink()
    else:
        (folder / "new.py").write_text("x")
    with pytest.raises(IntegrityError, match="E_CHANGED"):
        checkpoint.require_unchanged_beside(first)
