"""Checkpoints as torch.distributed.checkpoint itself writes them, from one or several processes."""

from __future__ import annotations

import multiprocessing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor, init_device_mesh

MESHES = {"rows": None, "columns": None, "replicas": None, "grid": ("a", "b")}
"""How tensors are cut: along the first dimension, the second, not at all, or along both over a 2-D mesh."""


def write(
    model: Path, folder: Path, *, processes: int, cut: str = "rows", hub: bool = False, **options: Any
) -> Path:
    """Write the tensors of a model's folder as a training checkpoint; `hub` as unconsolidated safetensors.

    Options are `wrapped` (the model stands under this key), `optimizer` (whether its state is there, too), `also` (more
    entries of the state) and `files` (how many safetensors files each process writes).
    """
    folder.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("fork")
    arguments = (processes, model / "model.safetensors", folder, cut, hub, options)
    workers = [context.Process(target=_worker, args=(rank, *arguments)) for rank in range(processes)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0] * processes
    return folder


def _worker(
    rank: int, size: int, weights: Path, folder: Path, cut: str, hub: bool, options: Mapping[str, Any]
) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder.parent / f"{folder.name}.store"), size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size)
    shape = (2, size // 2) if cut == "grid" else (size,)
    mesh = init_device_mesh("cpu", shape)
    tensors = {name: _cut(tensor, mesh, cut) for name, tensor in load_file(weights).items()}
    state: dict[str, Any] = {options["wrapped"]: tensors} if "wrapped" in options else dict(tensors)
    if options.get("optimizer"):
        moments = {name: {"exp_avg": tensor, "step": torch.tensor(3.0)} for name, tensor in tensors.items()}
        state["optim"] = {"state": moments, "param_groups": [{"lr": 0.1}]}
    state |= options.get("also", {})
    if hub:
        files = options.get("files")
        index = None if files is None else {n: i % files + 1 for i, n in enumerate(sorted(tensors))}
        writer: Any = dcp.HuggingFaceStorageWriter(
            str(folder), save_distributed=True, fqn_to_index_mapping=index
        )
    else:
        writer = dcp.FileSystemWriter(str(folder))
    dcp.save(state, storage_writer=writer)
    dist.destroy_process_group()


def _cut(tensor: Tensor, mesh: Any, cut: str) -> Tensor | DTensor:
    if not tensor.ndim:
        return tensor
    second = Shard(1) if tensor.ndim > 1 else Shard(0)
    places = {"rows": [Shard(0)], "columns": [second], "replicas": [Replicate()], "grid": [Shard(0), second]}[
        cut
    ]
    return distribute_tensor(tensor, mesh, places)
