"""Recognise paths that are no checkpoint, and say how to make a checkpoint of them. Only names are read.

A training run leaves many folders that are no checkpoint: shards in its own format, adapters, the folder around the
checkpoints. `FOREIGN` lists the file names that identify each kind of folder; the first row that matches counts.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

from moe_atlas.checkpoint.headers.refuse import refusal, shown
from moe_atlas.errors import InputRefused
from moe_atlas.text import not_there

INDEX = "model.safetensors.index.json"
MODEL = "model.safetensors"
SUFFIX = ".safetensors"
ONLY = "; only safetensors is read, by design"


class Foreign(NamedTuple):
    """A kind of folder that is no checkpoint of transformers.

    Attributes:
        marks: patterns of names, with a final ``/`` for folders; one match is enough.
        what: what messages call such a folder.
        step: how to make a checkpoint of it.
    """

    marks: tuple[str, ...]
    what: str
    step: str

    def matches(self, name: str) -> bool:
        """Return whether a name is one of its marks."""
        return any(fnmatchcase(name, mark) for mark in self.marks)


_MEGATRON = (
    "export it with Megatron-Bridge: AutoBridge.from_hf_pretrained(…).export_ckpt(…), and give what it writes"
)
_NEMO = (
    "export it to Hugging Face's format with NeMo's export_ckpt(target='hf'), and give the folder it writes"
)
DCP = "a checkpoint of torch.distributed.checkpoint (DCP), without a config.json"
_TRAINING = (
    "give the checkpoint whose config.json describes it: `atlas audit BASE FOLDER`, or --like BASE where a command "
    "takes one checkpoint"
)
_DEEPSPEED = (
    "run its zero_to_fp32.py (python zero_to_fp32.py FOLDER OUT --safe_serialization), copy config.json into OUT, and "
    "give OUT"
)
_SAVE = (
    "save it as safetensors: AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(OUT), and give OUT"
)
_ADAPTER = (
    "give its base with it: `atlas audit BASE ADAPTER`, or --like BASE where a command takes one checkpoint"
)
_VERL = (
    "merge it: python -m verl.model_merger merge --backend fsdp --local_dir FOLDER --target_dir OUT, and give OUT "
    "(FOLDER is the one that holds the model_world_size files; for Megatron's shards --backend megatron)"
)

FOREIGN = (
    Foreign(
        ("shard-?????-model-?????-of-?????.safetensors",),
        "a shard that HuggingFaceStorageWriter wrote and did not consolidate, without a config.json",
        _TRAINING,
    ),
    Foreign(("adapter_config.json", "adapter_model.*"), "an adapter, not a checkpoint", _ADAPTER),
    Foreign(("model_world_size_*_rank_*.pt", "global_step_*/"), "a checkpoint of verl", _VERL),
    Foreign(
        ("latest_checkpointed_iteration.txt", "iter_???????/", "mp_rank_*/", "common.pt"),
        "a checkpoint of Megatron",
        _MEGATRON,
    ),
    Foreign(
        ("zero_to_fp32.py", "global_step*/", "*_optim_states.pt", "mp_rank_*_model_states.pt"),
        "a checkpoint of DeepSpeed",
        _DEEPSPEED,
    ),
    Foreign(
        ("pytorch_model_fsdp_*/",),
        "a sharded checkpoint of Accelerate's FSDP, without a config.json",
        _TRAINING,
    ),
    Foreign((".metadata", "*.distcp"), DCP, _TRAINING),
    Foreign(
        ("orbax.checkpoint", "_CHECKPOINT_METADATA", "manifest.ocdbt", "ocdbt.process_*/"),
        "a checkpoint of Orbax (JAX)",
        "export it to Hugging Face's format with its trainer's converter (MaxText has "
        "checkpoint_conversion/to_huggingface.py), and give the folder it writes",
    ),
    Foreign(("*.nemo",), "an archive of NeMo" + ONLY, _NEMO),
    Foreign(("model_weights/", "model_weights.ckpt"), "an unpacked archive of NeMo", _NEMO),
    Foreign(
        ("*.gguf", "*.GGUF"),
        "a GGUF file" + ONLY,
        "audit the checkpoint that it was converted from, or that was trained",
    ),
    Foreign(("pytorch_model*.bin", "pytorch_model*.bin.index.json"), "a PyTorch pickle" + ONLY, _SAVE),
    Foreign(
        ("consolidated*.safetensors", "params.json"),
        "weights in Mistral's own format",
        "give the checkpoint in transformers' format, which the model's page on the hub offers beside it",
    ),
    Foreign(("*.zip", "*.tar", "*.tar.*", "*.tgz"), "an archive", "unpack it, and give the folder inside"),
)

_BESIDE = re.compile(
    r"(consolidated.*|adapter_model|.*optimi[sz]er.*|.*optim_states.*|scheduler|shard-\d+-model-\d+-of-\d+)\.safetensors"
)
_STEP = re.compile(r"(?:checkpoint|step|global_step)[-_]?(\d+)")
_ADDRESS = re.compile(r"([a-z][a-z0-9+.-]+):/+(.+)")  # a path has lost the second slash
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def own_weights(names: Iterable[str]) -> list[str]:
    """Return the safetensors files of a folder without an index that may be its model, by their names.

    Copies in other formats, adapters, states of optimisers and unconsolidated shards do not belong to the model.
    """
    return sorted(name for name in names if name.endswith(SUFFIX) and not _BESIDE.fullmatch(name))


def foreign_folder(folder: Path, names: Iterable[str]) -> InputRefused | None:
    """Return the refusal of a folder without weights; None if nothing in it is recognised.

    The refusal names a whole checkpoint one level below, if there is one, before anything else.
    """
    marked = {f"{name}/" if os.path.isdir(folder / name) else name for name in names}  # noqa: PTH112
    inside = _checkpoint_inside(folder, marked)
    if inside is not None:
        problem = f"holds no model of its own, but a checkpoint in {shown(inside.name)}/"
        return refusal("E_NOT_FOUND", str(folder), problem, f"give {shown(str(inside), 256)}")
    kind = foreign_kind(marked)
    if kind is not None:
        named = sorted(name for name in marked if kind.matches(name))
        return refusal("E_FORMAT", str(folder), f"holds {shown(named[0])}: {kind.what}", kind.step)
    return None


def foreign_kind(marked: Iterable[str]) -> Foreign | None:
    """Return the first kind that a folder's names show; None if there is none."""
    marked = list(marked)
    return next((kind for kind in FOREIGN if any(kind.matches(name) for name in marked)), None)


def step_for(file: str) -> str:
    """Return how to make a checkpoint of a file of a foreign format, by its name."""
    name = os.path.basename(file)
    steps = (kind.step for kind in FOREIGN if kind.matches(name))
    return next(steps, _SAVE)


def absent(path: Path) -> InputRefused:
    """Return the refusal of a path that does not exist: an address, a name on the hub, or a typing error."""
    given = str(path)
    address = _ADDRESS.fullmatch(given)
    if address is not None:
        return _address(address[1], address[2])
    step = "check the path"
    if _HUB_ID.fullmatch(given) and not path.parent.exists():
        step += f"; if it names a model on the Hugging Face Hub, fetch it: {_download(given)}, and give {path.name}"
    return refusal("E_NOT_FOUND", given, not_there(given), step)


def _address(scheme: str, rest: str) -> InputRefused:
    commands = {"s3": "aws s3 cp --recursive {} FOLDER", "gs": "gcloud storage cp -r {} FOLDER"}
    address = f"{scheme}://{rest}"
    on_hub = scheme == "hf" or rest.startswith("huggingface.co/")
    hub_id = "/".join(rest.removeprefix("huggingface.co/").split("/")[:2])
    fetch = (
        _download(hub_id)
        if on_hub
        else commands.get(scheme, "download {} into FOLDER").format(shown(address, 256))
    )
    problem = "is an address, and a checkpoint is read from a folder of this machine"
    return refusal("E_NOT_FOUND", address, problem, f"fetch it first: {fetch}")


def _download(hub_id: str) -> str:
    return f"hf download {shown(hub_id)} --local-dir {shown(hub_id.rpartition('/')[2])}"


def _checkpoint_inside(folder: Path, marked: Iterable[str]) -> Path | None:
    """Return the checkpoint one level below a folder: that with the highest number, else the first by name."""
    inner = [folder / name[:-1] for name in sorted(marked) if name.endswith("/")]
    if "snapshots/" in marked:  # of one model in the cache of the hub
        inner = [folder / "snapshots" / name for name in sorted(_names(folder / "snapshots"))]
    whole = [path for path in inner if _is_checkpoint(path)]
    numbered = [path for path in inner if re.fullmatch(r"checkpoint-\d+", path.name)]
    return max(whole or numbered, key=_number, default=None)


def _number(folder: Path) -> int:
    step = _STEP.fullmatch(folder.name)
    return int(step[1]) if step else -1


def _is_checkpoint(folder: Path) -> bool:
    """Return whether a folder has a configuration and weights."""
    names = _names(folder)
    return "config.json" in names and (INDEX in names or len(own_weights(names)) == 1)


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []
