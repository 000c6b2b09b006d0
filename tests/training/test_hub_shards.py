"""Safetensors that torch wrote from several processes and did not consolidate hold the model that was saved."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from moe_atlas.checkpoint.digest import digest_checkpoint
from moe_atlas.checkpoint.index import open_checkpoint
from moe_atlas.checkpoint.reader import Reader
from moe_atlas.checkpoint.training import source
from moe_atlas.checkpoint.training.opening import is_training_folder, open_folder
from moe_atlas.errors import InputRefused, IntegrityError
from scripts.oracle import tiny
from tests.support import trainings

KEY = "DCP_SHARDING_INFO"
CUTS = [(1, "rows"), (2, "rows"), (2, "columns"), (2, "replicas"), (4, "columns"), (4, "grid")]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.save("qwen3_moe", tmp_path_factory.mktemp("hub") / "model", dtype=torch.bfloat16, seed=3)


@pytest.fixture(scope="module")
def plain(model):
    return open_checkpoint(model)


@pytest.fixture(scope="module")
def rows(model):
    return trainings.write(model, model.parent / "rows", processes=2, hub=True, files=2)


@pytest.fixture
def copy(rows, tmp_path):
    return shutil.copytree(rows, tmp_path / "copy")


def rewrite(file, change):
    """Write a shard anew, with its tensors and its metadata as `change` leaves them."""
    with safe_open(file, "pt") as opened:
        metadata = dict(opened.metadata())
    tensors, sharding = load_file(file), json.loads(metadata[KEY])
    change(tensors, sharding)
    save_file(tensors, file, metadata | {KEY: json.dumps(sharding)})


@pytest.mark.parametrize(("processes", "cut"), CUTS, ids=str)
def test_the_digest_is_that_of_the_plain_folder(model, plain, tmp_path, processes, cut):
    folder = trainings.write(
        model, tmp_path / "saved", processes=processes, cut=cut, hub=True, files=3 - processes % 2
    )
    found = open_folder(folder, plain)
    assert digest_checkpoint(found) == digest_checkpoint(plain)
    cut_up = max(len(pieces) for pieces in found.pieces.values())
    assert cut_up == (1 if cut == "replicas" else processes)
    assert found.config == plain.config


@pytest.mark.parametrize("scratch", [1, 100, 1 << 20])
@pytest.mark.parametrize("long", [1, 64 << 10])
def test_entries_and_rows_are_read_as_from_the_plain_folder(
    model, plain, tmp_path, monkeypatch, scratch, long
):
    monkeypatch.setattr(source, "SCRATCH_BYTES", scratch)
    monkeypatch.setattr(source, "LONG_RUN", long)
    folder = trainings.write(model, tmp_path / "saved", processes=4, cut="grid", hub=True)
    ours, theirs = Reader(open_folder(folder, plain)), Reader(plain)
    for name, tensor in plain.tensors.items():
        assert torch.equal(ours.read(name), theirs.read(name))
        if len(tensor.shape) < 2:
            continue
        last = tensor.shape[0] - 1
        assert torch.equal(ours.read(name, last), theirs.read(name, last))
        assert torch.equal(ours.read(name, rows=range(1, last)), theirs.read(name, rows=range(1, last)))
        if len(tensor.shape) == 3:
            part = range(1, tensor.shape[1] - 1)
            assert torch.equal(ours.read(name, 1, part), theirs.read(name, 1, part))
    assert ours.finish() == theirs.finish()


def test_a_configuration_of_its_own_comes_first(copy, plain):
    (copy / "config.json").write_text(json.dumps(plain.config | {"rms_norm_eps": 0.5}))
    assert open_folder(copy).config["rms_norm_eps"] == open_folder(copy, plain).config["rms_norm_eps"] == 0.5


def test_a_quantised_base_describes_plain_tensors(rows, plain):
    plain = open_checkpoint(plain.root)
    plain.config["quantization_config"] = {"quant_method": "fp8"}
    assert "quantization_config" not in open_folder(rows, plain).config


def test_a_model_in_its_final_form_comes_first(copy, model):
    for file in ("config.json", "model.safetensors"):
        shutil.copy(model / file, copy / file)
    assert not is_training_folder(copy)
    assert open_folder(copy) == open_checkpoint(copy)


def moved(by):
    def change(tensors, sharding):
        sharding["lm_head.weight"]["saved_offsets"][0] += by

    return change


def drop(tensors, sharding):
    tensors.pop("lm_head.weight")


def another_dtype(tensors, sharding):
    tensors["lm_head.weight"] = tensors["lm_head.weight"].float()


def another_rank(tensors, sharding):
    tensors["lm_head.weight"] = tensors["lm_head.weight"].flatten()
    sharding["lm_head.weight"]["saved_offsets"] = [0]


def says(value):
    def change(tensors, sharding):
        sharding["lm_head.weight"] = value

    return change


BAD = {
    "a gap": (moved(1), "E_COVER", "a piece is missing"),
    "an overlap": (moved(-1), "E_COVER", "overlap"),
    "a dtype": (another_dtype, "E_COVER", "is F32 of 2 dimensions, and BF16 of 2"),
    "a rank": (another_rank, "E_COVER", "of 1 dimensions"),
    "offsets of another rank": (says({"saved_offsets": [0]}), "E_TYPE", "one number for each dimension"),
    "negative offsets": (says({"saved_offsets": [-1, 0]}), "E_TYPE", "saved_offsets"),
    "huge offsets": (says({"saved_offsets": [1 << 70, 0]}), "E_TYPE", "saved_offsets"),
    "offsets that are truth values": (says({"saved_offsets": [True, False]}), "E_TYPE", "saved_offsets"),
    "no offsets": (says([]), "E_TYPE", "saved_offsets"),
}


def shard_with(folder, name):
    """The second process's file that holds a tensor."""
    for file in sorted(folder.glob("shard-00002-*")):
        with safe_open(file, "pt") as opened:
            if name in opened.keys():  # noqa: SIM118  an object of safetensors
                return file
    raise AssertionError(name)


@pytest.mark.parametrize("name", BAD)
def test_pieces_that_do_not_fit_are_refused_by_name(copy, plain, name):
    change, code, mention = BAD[name]
    rewrite(shard_with(copy, "lm_head.weight"), change)
    with pytest.raises(InputRefused) as caught:
        open_folder(copy, plain)
    assert caught.value.code == code
    assert "'lm_head.weight'" in str(caught.value)
    assert mention in str(caught.value)


def test_the_files_of_a_process_that_are_missing_are_noticed(copy, plain):
    for file in copy.glob("shard-00001-*"):
        file.unlink()
    with pytest.raises(InputRefused, match="E_INDEX_SET.*none of process 1"):
        open_folder(copy, plain)


def test_a_piece_that_is_stored_twice_counts_once_if_both_copies_are_equal(copy, plain):
    second = shard_with(copy, "lm_head.weight")
    twin = copy / second.name.replace("shard-00002", "shard-00003")
    kept = {}

    def alone(tensors, sharding):
        kept.update(tensors)
        for name in [name for name in tensors if name != "lm_head.weight"]:
            del tensors[name]

    shutil.copy(second, twin)
    rewrite(twin, alone)
    assert digest_checkpoint(open_folder(copy, plain)) == digest_checkpoint(plain)
    rewrite(twin, lambda tensors, sharding: tensors["lm_head.weight"][0, 0].add_(1))
    with pytest.raises(InputRefused, match="with other bytes"):
        open_folder(copy, plain)


def test_a_file_that_changes_is_noticed_wherever_it_holds_a_piece(copy, plain):
    opened = open_folder(copy, plain)
    second = shard_with(copy, "lm_head.weight")
    data = bytearray(second.read_bytes())
    data[-1] ^= 1
    second.write_bytes(data)
    with pytest.raises(IntegrityError, match="E_CHANGED"):
        Reader(opened).read("lm_head.weight")
    with pytest.raises(IntegrityError, match="E_CHANGED"):
        opened.require_unchanged()
