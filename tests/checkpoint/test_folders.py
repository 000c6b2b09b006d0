"""Folders that a training run leaves, and paths that are none: read where they hold a model, else named."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from moe_atlas.api import audit
from moe_atlas.checkpoint.folders import FOREIGN, own_weights
from moe_atlas.checkpoint.index import open_checkpoint
from moe_atlas.cli import run
from moe_atlas.errors import Exit, InputRefused
from moe_atlas.text import shown
from scripts.oracle import tiny
from tests.support import pairs


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("folders")


@pytest.fixture(scope="module")
def model(root):
    return tiny.save("olmoe", root / "model", seed=3)


@pytest.fixture(scope="module")
def probes(root):
    return pairs.probe(root / "probe", documents=4, length=16)


def filled(folder: Path, *names: str) -> Path:
    """A folder with these files, of a few bytes that are no safetensors, and folders (a final ``/``)."""
    for name in names:
        path = folder / name
        (path if name.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
        if not name.endswith("/"):
            path.write_bytes(b"{}")
    return folder


@pytest.fixture
def refused(model, probes, capsys):
    """Refuse a path on the command line and in Python, as base and as tuned, alike; give the line without its start."""

    def call(given: str | Path, code: str, *mentions: str) -> str:
        lines = []
        for arguments in (
            ["inspect", given],
            ["audit", given, model, "--probe", probes],
            ["audit", model, given, "--probe", probes],
            ["baseline", given, "--probe", probes],
        ):
            assert run([str(argument) for argument in arguments]) == Exit.REFUSED
            out, err = capsys.readouterr()
            assert out == ""
            lines += err.splitlines()
        assert len(lines) == 4
        assert len(set(lines)) == 1
        for base, tuned in ((given, model), (model, given)):
            with pytest.raises(InputRefused) as caught:
                audit(str(base), str(tuned), probes)
            assert f"atlas: {shown(str(caught.value), 2000)}" == lines[0]
            assert caught.value.code == code
        missing = [mention for mention in mentions if mention not in lines[0]]
        assert not missing, lines[0]
        assert "routed experts" not in lines[0]
        return lines[0]

    return call


FOLDERS = {
    "megatron": (("iter_0000100/mp_rank_00/x", "latest_checkpointed_iteration.txt"), "Megatron", "Megatron-Bridge"),
    "megatron, a step": (("mp_rank_00/model_optim_rng.pt", "mp_rank_01/x"), "Megatron", "Megatron-Bridge"),
    "megatron, of a step": ((".metadata", "common.pt", "__0_0.distcp"), "Megatron", "Megatron-Bridge"),
    "megatron, a run": (("iter_0000100/common.pt", "iter_0000200/common.pt"), "Megatron", "Megatron-Bridge"),
    "deepspeed": (("global_step100/mp_rank_00_model_states.pt", "latest", "zero_to_fp32.py"), "DeepSpeed",
                  "zero_to_fp32.py FOLDER OUT --safe_serialization"),
    "deepspeed, a step": (("zero_pp_rank_0_mp_rank_00_optim_states.pt",), "DeepSpeed", "zero_to_fp32.py"),
    "verl": (("model_world_size_8_rank_0.pt", "fsdp_config.json"), "verl", "verl.model_merger"),
    "verl, a run": (("global_step_580/actor/x", "latest_checkpointed_iteration.txt"), "verl", "verl.model_merger"),
    "orbax": (("_CHECKPOINT_METADATA", "_METADATA", "manifest.ocdbt", "d/x"), "Orbax", "to_huggingface"),
    "gguf": (("model-q4_k_m.gguf",), "GGUF", "converted from"),
    "pickle": (("config.json", "pytorch_model.bin"), "PyTorch pickle", "save_pretrained"),
    "pickles": (("config.json", "pytorch_model-00001-of-00002.bin", "pytorch_model.bin.index.json"), "PyTorch pickle",
                "save_pretrained"),
    "nemo": (("model.nemo",), "NeMo", "export_ckpt"),
    "nemo, unpacked": (("model_config.yaml", "model_weights/common.pt"), "NeMo", "export_ckpt"),
    "mistral": (("consolidated.safetensors", "params.json", "tekken.json"), "Mistral", "transformers' format"),
    "archive": (("model.tar.gz",), "an archive", "unpack it"),
}  # fmt: skip


TRAININGS = {
    "dcp of hf": (("shard-00001-model-00001-of-00001.safetensors",), "did not consolidate"),
    "dcp": (("__0_0.distcp", "__1_0.distcp", ".metadata"), "torch.distributed.checkpoint"),
    "dcp, cut short": (("__0_0.distcp",), "torch.distributed.checkpoint"),
    "accelerate": (("pytorch_model_fsdp_0/.metadata", "optimizer_0/x"), "Accelerate"),
}


@pytest.mark.parametrize("name", TRAININGS)
def test_a_training_checkpoint_without_a_configuration_says_what_to_give(
    tmp_path, model, probes, capsys, name
):
    names, kind = TRAININGS[name]
    given = filled(tmp_path / "given", *names)
    for words in (
        ["inspect", given],
        ["audit", given, model, "--probe", probes],
        ["baseline", given, "--probe", probes],
    ):
        assert run([str(word) for word in words]) == Exit.REFUSED
        line = capsys.readouterr().err
        for said in ("E_FORMAT", str(given), kind, "atlas audit BASE FOLDER", "--like BASE"):
            assert said in line


ADAPTERS = {
    "whole": ("adapter_config.json", "adapter_model.safetensors"),
    "pickled": ("adapter_config.json", "adapter_model.bin"),
    "its configuration": ("adapter_config.json",),
}


@pytest.mark.parametrize("name", ADAPTERS)
def test_an_adapter_without_its_base_is_named_with_what_to_give(tmp_path, model, probes, capsys, name):
    given = filled(tmp_path / "given", *ADAPTERS[name])
    for words in (["inspect", given], ["audit", given, model, "--probe", probes]):
        assert run([str(word) for word in words]) == Exit.REFUSED
        line = capsys.readouterr().err
        assert "E_FORMAT" in line
        for said in (str(given), "adapter, not a checkpoint", "atlas audit BASE ADAPTER", "--like BASE"):
            assert said in line


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_of_another_kind_is_named_with_what_converts_it(tmp_path, refused, name):
    names, *mentions = FOLDERS[name]
    refused(filled(tmp_path / "given", *names), "E_FORMAT", str(tmp_path / "given"), *mentions)


def test_every_kind_that_is_known_is_tested():
    said = [*(mentions[0] for _, *mentions in FOLDERS.values()), "adapter"]
    said += [kind for _, kind in TRAININGS.values()]
    assert [kind.what for kind in FOREIGN if not any(words in kind.what for words in said)] == []


@pytest.mark.parametrize(
    ("names", "nearest"),
    [
        (("hf/",), "hf"),
        (("huggingface/", "optimizer.pt"), "huggingface"),
        (("checkpoint-9/", "checkpoint-100/", "checkpoint-20/", "runs/"), "checkpoint-100"),
        (("checkpoint-9/", "checkpoint-100/", "zero_to_fp32.py", "global_step7/"), "checkpoint-100"),
        (("snapshots/0a1b/", "blobs/", "refs/main"), "snapshots/0a1b"),
    ],
)
def test_a_folder_around_checkpoints_names_the_newest(tmp_path, model, refused, names, nearest):
    given = filled(tmp_path / "given", *names)
    for name in names:
        if name.startswith(("hf", "hugg", "check", "snap")):
            shutil.copytree(model, given / name, dirs_exist_ok=True)
    refused(given, "E_NOT_FOUND", f"a checkpoint in {Path(nearest).name}/", f"give {given / nearest}")
    open_checkpoint(given / nearest)


def test_a_numbered_folder_that_holds_no_model_is_named_all_the_same_and_says_what_it_is(tmp_path, refused):
    given = filled(
        tmp_path, "checkpoint-5/x", "checkpoint-40/zero_to_fp32.py", "checkpoint-40/global_step40/"
    )
    refused(given, "E_NOT_FOUND", f"give {given / 'checkpoint-40'}")
    refused(given / "checkpoint-40", "E_FORMAT", "DeepSpeed")


@pytest.mark.parametrize(
    "beside",
    [
        ("optimizer.pt", "scheduler.pt", "rng_state_0.pth", "trainer_state.json", "training_args.bin"),
        ("consolidated.safetensors", "params.json"),
        ("consolidated-00001-of-00002.safetensors", "consolidated-00002-of-00002.safetensors"),
        ("adapter_model.safetensors", "adapter_config.json"),
        ("optimizer.safetensors", "scheduler.safetensors"),
        ("pytorch_model.bin", "model.gguf"),
        ("global_step7/x", "zero_to_fp32.py", "latest"),
        ("checkpoint-5/model.safetensors", "hf/config.json"),
    ],
    ids=lambda names: names[0],
)  # fmt: skip
def test_a_model_among_other_files_is_read(tmp_path, model, probes, beside):
    given = filled(tmp_path / "given", *beside)
    shutil.copytree(model, given, dirs_exist_ok=True)
    assert open_checkpoint(given).shards == ("model.safetensors",)
    facts, _ = pairs.audited(model, given, probes, dtype="float32")
    assert facts["identity"]["identical_checkpoints"] is True
    listed = {row["file"] for row in facts["checkpoints"]["tuned"]["files"]["listed"]}
    assert {name if "/" not in name else f"{name.split('/')[0]}/" for name in beside} <= listed


def test_a_second_model_beside_the_first_is_still_refused(tmp_path, model, refused):
    given = tmp_path / "given"
    shutil.copytree(model, given)
    shutil.copy(given / "model.safetensors", given / "other.safetensors")
    refused(given, "E_INDEX_SET", "holds 2 .safetensors files", "the path of one file")
    assert own_weights(["a.safetensors", "adapter_model.safetensors"]) == ["a.safetensors"]


@pytest.mark.parametrize(
    ("file", "content", "mentions"),
    [
        ("model.nemo", b"x", ("a NeMo archive", "export_ckpt")),
        ("model.gguf", b"GGUF", ("a GGUF file", "converted from")),
        ("model.zip", b"PK\3\4", ("a zip archive", "unpack it")),
        ("model.tgz", b"\x1f\x8b", ("a tar archive", "unpack it")),
        ("model.tar", b"x", ("a tar archive", "unpack it")),
        ("pytorch_model.bin", b"x", ("a PyTorch pickle", "save_pretrained")),
        ("__0_0.distcp", b"x", ("(DCP)", "--like BASE")),
    ],
)
def test_a_file_of_another_format_names_what_converts_it(tmp_path, refused, file, content, mentions):
    (tmp_path / file).write_bytes(content)
    refused(tmp_path / file, "E_FORMAT", *mentions)


def test_a_pointer_of_git_lfs_is_named(tmp_path, model, refused):
    shutil.copytree(model, tmp_path / "given")
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n"
    (tmp_path / "given/model.safetensors").write_bytes(pointer)
    refused(tmp_path / "given", "E_FORMAT", "Git LFS pointer", "git lfs pull")


def test_shards_that_were_not_downloaded_are_counted(tmp_path, model, refused):
    given = pairs.write(tmp_path / "given", pairs.read(model), model, shards=4)
    for number in (2, 3):
        (given / f"model-0000{number}-of-00004.safetensors").unlink()
    refused(
        given,
        "E_INDEX_SET",
        "'model-00002-of-00004.safetensors'",
        "missing: 2 of 4 files",
        "hf download ORG/NAME",
    )


def test_an_error_of_a_header_names_the_checkpoint_and_the_shard(tmp_path, model, refused):
    given = pairs.write(tmp_path / "given", pairs.read(model), model, shards=2)
    second = given / "model-00002-of-00002.safetensors"
    os.truncate(second, second.stat().st_size - 7)
    refused(given, "E_COVER", f"E_COVER {second}: ", "cut short")


def test_a_table_that_is_stored_as_the_head_alone_is_read(tmp_path):
    base = tiny.save("qwen3_moe-mixed-layers", tmp_path / "base", seed=3)

    def rename(tensors):
        tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")

    spec, _ = tiny.open_tiny(pairs.variant(base, tmp_path / "head", rename))
    assert spec.embed_refs[0].stored == spec.final_refs[-1].stored == "lm_head.weight"


@pytest.mark.parametrize(
    ("given", "where", "mentions"),
    [
        ("s3://bucket/run/ckpt", "s3://bucket/run/ckpt: ", ("aws s3 cp --recursive s3://bucket/run/ckpt FOLDER",)),
        ("gs://b/c", "gs://b/c: ", ("gcloud storage cp -r gs://b/c FOLDER",)),
        ("https://huggingface.co/Qwen/Qwen3-30B-A3B", "https://huggingface.co/Qwen/Qwen3-30B-A3B: ",
         ("hf download Qwen/Qwen3-30B-A3B --local-dir Qwen3-30B-A3B",)),
        ("https://huggingface.co/Qwen/Qwen3-30B-A3B/tree/main", "https://huggingface.co/",
         ("hf download Qwen/Qwen3-30B-A3B --local-dir",)),
        ("hf://Qwen/Qwen3-30B-A3B", "hf://Qwen/Qwen3-30B-A3B: ", ("hf download Qwen/Qwen3-30B-A3B --local-dir",)),
        ("https://example.org/x", "https://example.org/x: ", ("download https://example.org/x into FOLDER",)),
    ],
)  # fmt: skip
def test_an_address_is_echoed_as_it_was_typed_and_says_how_to_fetch_it(refused, given, where, mentions):
    line = refused(given, "E_NOT_FOUND", "is an address", *mentions)
    assert line.startswith(f"atlas: E_NOT_FOUND {where}")


def test_a_name_on_the_hub_says_how_to_fetch_it(tmp_path, monkeypatch, refused):
    monkeypatch.chdir(tmp_path)
    line = refused("Qwen/Qwen3-30B-A3B", "E_NOT_FOUND", "does not exist; looked for",
                   "hf download Qwen/Qwen3-30B-A3B --local-dir Qwen3-30B-A3B")  # fmt: skip
    assert shown(str(tmp_path / "Qwen/Qwen3-30B-A3B")) in line
    (tmp_path / "runs").mkdir()
    assert "Hub" not in refused(
        "runs/step-5", "E_NOT_FOUND", shown(str(tmp_path / "runs/step-5")), "check the path"
    )
    assert "Hub" not in refused("nowhere", "E_NOT_FOUND", shown(str(tmp_path / "nowhere")), "check the path")


@pytest.mark.parametrize(
    "arguments",
    [
        ["register", "nowhere.yaml"],
        ["verify", "nowhere.json"],
        ["inspect", "nowhere"],
        ["plan", "base", "tuned", "--probe", "nowhere.yaml"],
    ],
)
def test_a_relative_path_that_is_not_there_is_shown_as_the_place_that_was_looked_at(
    tmp_path, monkeypatch, capsys, arguments
):
    monkeypatch.chdir(tmp_path)
    assert run(arguments) in (Exit.USAGE, Exit.REFUSED)
    given = next(argument for argument in arguments if "nowhere" in argument)
    assert f"; looked for {shown(str(tmp_path / given), 512)}" in capsys.readouterr().err


def test_a_folder_whose_name_looks_like_an_address_is_opened(tmp_path, monkeypatch, model):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(model, tmp_path / "s3:" / "ckpt")
    open_checkpoint(Path("s3://ckpt"))


WRAPPED = {
    "ddp": (lambda name: f"module.{name}", "(module)", "model.module.save_pretrained"),
    "peft": (lambda name: f"base_model.model.{name}", "PEFT", "merge_and_unload"),
    "compile": (lambda name: f"_orig_mod.{name}", "torch.compile", "_orig_mod.save_pretrained"),
    "fsdp": (lambda name: name.replace("layers.1.", "layers.1._fsdp_wrapped_module."), "FSDP", "full_state_dict=True"),
    "checkpointing": (
        lambda name: name.replace("layers.0.", "layers.0._checkpoint_wrapped_module."), "activation checkpointing",
        "get_model_state_dict",
    ),
    "doubled": (lambda name: name.replace("model.", "model.model.", 1), "stands twice", "save it again"),
    "tripled": (
        lambda name: name.replace("model.", "model.language_model.language_model.language_model.", 1), "stands twice",
        "save it again",
    ),
    "base layer": (
        lambda name: name.replace("q_proj.weight", "q_proj.base_layer.weight"), "not merged", "merge_and_unload"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRAPPED)
def test_names_that_a_wrapper_left_are_named_as_its_own(tmp_path, model, refused, name):
    rename, *mentions = WRAPPED[name]
    tensors = pairs.read(model)
    renamed = {rename(key): tensor for key, tensor in tensors.items()}
    given = pairs.write(tmp_path / "given", renamed, model)
    odd = [key for key in renamed if key not in tensors]
    counts = f"{len(odd)} of {len(tensors)} needed tensors are missing and {len(odd)} stored ones are read by nothing"
    line = refused(given, "E_FAMILY", "missing tensor", counts, *mentions, f"{len(odd)} have ")
    first = line.split(f"{shown(str(given), 512)}: ")[1].split(": ")[0]
    assert first in tensors
    assert first not in renamed
    assert f"the closest stored name is {rename(first)}" in line


def test_an_adapter_left_in_a_merged_checkpoint_is_named(tmp_path, model, refused):
    left = {f"model.layers.0.self_attn.q_proj.lora_{side}.weight": torch.zeros(4, 32) for side in "AB"}
    given = pairs.write(tmp_path / "given", pairs.read(model) | left, model)
    refused(
        given,
        "E_FAMILY",
        "lora_A.weight",
        "2 stored ones are read by nothing",
        "2 have PEFT's",
        "merge_and_unload",
    )


@pytest.mark.parametrize("lost", ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"])
def test_a_lost_tensor_alone_is_counted_alone(tmp_path, model, refused, lost):
    tensors = pairs.read(model)
    del tensors[lost]
    given = pairs.write(tmp_path / "given", tensors, model)
    line = refused(
        given, "E_FAMILY", f"{lost}: missing tensor", f"1 of {len(tensors) + 1} needed tensors are missing;"
    )
    assert "read by nothing" not in line
    assert "closest" not in line


def test_a_lost_embedding_of_a_model_inside_another_is_counted_alone(tmp_path, model, refused):
    inside = {name.replace("model.", "model.language_model.", 1): x for name, x in pairs.read(model).items()}
    del inside["model.language_model.embed_tokens.weight"]
    given = pairs.write(tmp_path / "given", inside, model)
    refused(given, "E_FAMILY", f"1 of {len(inside) + 1} needed tensors are missing;")


def test_a_dense_model_alone_is_said_to_be_dense(tmp_path, capsys):
    config = {"model_type": "llama", "hidden_size": 8, "vocab_size": 8, "num_hidden_layers": 1}
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file({"model.embed_tokens.weight": torch.zeros(8, 8)}, tmp_path / "model.safetensors")
    assert run(["inspect", str(tmp_path)]) == Exit.REFUSED
    err = capsys.readouterr().err
    assert "E_FAMILY" in err
    assert "a dense model" in err
    assert "atlas audits mixtures of experts alone" in err
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "grok_9", "num_experts": 8}))
    assert run(["inspect", str(tmp_path)]) == Exit.REFUSED
    assert "routed experts" not in capsys.readouterr().err
