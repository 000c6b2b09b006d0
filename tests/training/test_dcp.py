"""Checkpoints of torch.distributed.checkpoint hold the model that was saved, whatever stands beside it."""

from __future__ import annotations

import pickle
import shutil

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file, save_file

from moe_atlas.checkpoint.digest import digest_checkpoint
from moe_atlas.checkpoint.index import open_checkpoint
from moe_atlas.checkpoint.reader import Reader
from moe_atlas.checkpoint.training.opening import open_folder
from moe_atlas.errors import InputRefused, IntegrityError
from scripts.oracle import tiny
from tests.support import pairs, trainings

CUTS = [(1, "rows"), (2, "rows"), (2, "columns"), (2, "replicas"), (4, "rows"), (4, "columns"), (4, "grid")]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.save("qwen3_moe", tmp_path_factory.mktemp("dcp") / "model", dtype=torch.bfloat16, seed=3)


@pytest.fixture(scope="module")
def plain(model):
    return open_checkpoint(model)


def save(folder, state):
    """Save a state from this process alone."""
    dcp.save(state, storage_writer=dcp.FileSystemWriter(str(folder)), no_dist=True)
    return folder


@pytest.mark.parametrize(("processes", "cut"), CUTS, ids=str)
def test_the_digest_is_that_of_the_plain_folder(model, plain, tmp_path, processes, cut):
    folder = trainings.write(model, tmp_path / "saved", processes=processes, cut=cut)
    found = open_folder(folder, plain)
    assert digest_checkpoint(found) == digest_checkpoint(plain)
    cut_up = max(len(pieces) for pieces in found.pieces.values())
    assert cut_up == (1 if cut == "replicas" else processes)
    ours, theirs = Reader(found), Reader(plain)
    for name, tensor in plain.tensors.items():
        if len(tensor.shape) == 3:
            part = range(1, tensor.shape[1] - 1)
            assert torch.equal(ours.read(name, 1, part), theirs.read(name, 1, part))


def test_an_optimizer_is_counted_and_left_unread(model, plain, tmp_path):
    folder = trainings.write(model, tmp_path / "saved", processes=2, wrapped="model", optimizer=True)
    found = open_folder(folder, plain)
    assert digest_checkpoint(found) == digest_checkpoint(plain)
    assert found.unread == {"optim": 2 * len(plain.tensors) + 1}


@pytest.mark.parametrize("around", [("app", "model"), ("model",), ()])
def test_the_model_is_found_in_a_nested_state(model, plain, tmp_path, around):
    state = load_file(model / "model.safetensors")
    for key in reversed(around):
        state = {key: state}
    state |= {"step": 7, "optimizer": {"m": torch.zeros(3)}} if around else {"step": 7}
    found = open_folder(save(tmp_path / "saved", state), plain)
    assert digest_checkpoint(found) == digest_checkpoint(plain)
    assert found.unread == ({"optimizer": 1, "step": 1} if around else {"step": 1})


def test_names_without_paths_are_told_from_a_dict_around_them(model, plain, tmp_path):
    for wrapped in (True, False):
        state = load_file(model / "model.safetensors")
        folder = save(tmp_path / str(wrapped), {"model": state, "optim": {"m": state}} if wrapped else state)
        file = folder / ".metadata"
        metadata = pickle.loads(file.read_bytes())
        metadata.planner_data = None
        file.write_bytes(pickle.dumps(metadata))
        found = open_folder(folder, plain)
        assert digest_checkpoint(found) == digest_checkpoint(plain)
        assert found.unread == ({"optim": len(plain.tensors)} if wrapped else {})


def test_an_entry_of_the_model_that_is_no_tensor_is_named(model, plain, tmp_path):
    state = load_file(model / "model.safetensors") | {"model.extra_state": {1, 2}}
    found = open_folder(save(tmp_path / "saved", {"model": state}), plain)
    assert found.unread == {"of the model, but no tensors": 1}


def test_masters_are_read_in_float32(model, plain, tmp_path):
    masters = {name: tensor.float() for name, tensor in load_file(model / "model.safetensors").items()}
    found = open_folder(save(tmp_path / "saved", {"model": masters}), plain)
    assert {tensor.dtype for tensor in found.tensors.values()} == {"F32"}
    assert torch.equal(Reader(found).read("lm_head.weight"), masters["lm_head.weight"])


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_protocol_of_the_pickler_is_read(model, plain, tmp_path, protocol):
    folder = save(tmp_path / "saved", load_file(model / "model.safetensors"))
    file = folder / ".metadata"
    file.write_bytes(pickle.dumps(pickle.loads(file.read_bytes()), protocol))
    assert digest_checkpoint(open_folder(folder, plain)) == digest_checkpoint(plain)


def test_every_dtype_and_shape_is_found(tmp_path, plain):
    kinds = ["float32", "bfloat16", "float16", "float64", "int64", "int32", "int16", "int8", "uint8", "bool"]
    tensors = {f"a.{kind}": torch.arange(6).reshape(2, 3).to(getattr(torch, kind)) for kind in kinds}
    tensors |= {"scalar": torch.tensor(3.5), "empty": torch.zeros(0, 4), "view": torch.arange(20.0)[5:9]}
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, tmp_path / "model.safetensors")
    shutil.copy(plain.root / "config.json", tmp_path / "config.json")
    found = open_folder(save(tmp_path / "saved", dict(tensors)), plain)
    assert digest_checkpoint(found) == digest_checkpoint(open_checkpoint(tmp_path))


def state_of(model, change):
    tensors = pairs.read(model)
    return change(tensors) or tensors


REFUSED = {
    "two models": (lambda t: {"model": t, "ema": {"model": t}}, "E_METADATA", "several models: ema.model and model"),
    "no model": (lambda t: {"weights": t}, "E_METADATA", "none under 'model'"),
    "torchtitan": (
        lambda t: {"tok_embeddings.weight": torch.zeros(2, 2)}, "E_FORMAT", "torchtitan", "convert_to_hf.py",
    ),
    "torchtitan, a layer": (
        lambda t: {"model": {"layers.0.moe.experts.w1": torch.zeros(2, 2)}}, "E_FORMAT", "torchtitan",
    ),
    "Megatron": (
        lambda t: {"decoder.layers.mlp.experts.experts.linear_fc1.weight": torch.zeros(2, 2)},
        "E_FORMAT", "Megatron-Core", "Megatron-Bridge",
    ),
    "a transposed tensor": (
        lambda t: {"lm_head.weight": torch.zeros(6, 4).T}, "E_ITEM", "'lm_head.weight'", "not in row-major order",
    ),
    "a name that steers a terminal": (lambda t: {"a\x1b[2J": torch.zeros(2)}, "E_NAME", "control"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_state_that_is_no_model_is_refused_by_name(model, plain, tmp_path, name):
    change, code, *mentions = REFUSED[name]
    folder = save(tmp_path / "saved", change(pairs.read(model)))
    with pytest.raises(InputRefused) as caught:
        open_folder(folder, plain)
    assert caught.value.code == code
    assert [mention for mention in mentions if mention not in str(caught.value)] == []


def test_a_file_that_changes_is_noticed(model, plain, tmp_path):
    folder = trainings.write(model, tmp_path / "saved", processes=2)
    opened = open_folder(folder, plain)
    file = folder / "__1_0.distcp"
    file.write_bytes(file.read_bytes())
    with pytest.raises(IntegrityError, match="E_CHANGED"):
        Reader(opened).read("lm_head.weight")


def test_a_missing_file_is_named(model, plain, tmp_path):
    folder = trainings.write(model, tmp_path / "saved", processes=2)
    (folder / "__1_0.distcp").unlink()
    with pytest.raises(InputRefused, match=r"E_INDEX_SET.*__1_0.distcp, and it does not exist"):
        open_folder(folder, plain)
