"""Pairs of tiny checkpoints and registered probe sets, for tests that run a whole audit."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor

from moe_atlas.api import audit
from moe_atlas.auditing.run import measure
from moe_atlas.options import AuditOptions
from moe_atlas.probes.registration import register
from moe_atlas.results import Receipt

Tensors = dict[str, Tensor]

POLICY: dict[str, Any] = {
    "stage": "chart-preserving",
    "task": "none",
    "resamples": 300,
    "rewrite": {
        "coordinate": 0.02, "boundary": 0.08, "transition": 0.01, "content": 0.10, "overlap_drop": 0.02,
        "dead_share_rise": 0.02, "entropy_drop": 0.10, "load_cv_rise": 0.25,
        "refinement": {"mu": [1, 1, 0.5], "tau": 0.25}, "handoff": {"lambda": [1, 0.5]},
        "smooth": {"adjacency": 10, "occupancy": 30000, "handoff": 50, "refinement": 50},
    },
    "damage": {"nll": 0.02, "document_nll": 0.5, "document_share": 0.12},
}  # fmt: skip
SAME = POLICY | {"allow": ["identical"]}
"""A policy under which a checkpoint may pass against itself."""


def read(folder: Path) -> Tensors:
    """All tensors of a checkpoint folder."""
    tensors: Tensors = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(file)
    return tensors


def write(folder: Path, tensors: Tensors, config_from: Path, shards: int = 1) -> Path:
    """A checkpoint folder with these tensors in so many shards."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    shutil.copy(config_from / "config.json", folder / "config.json")
    if shards == 1:
        save_file(tensors, folder / "model.safetensors")
        return folder
    names = list(tensors)
    weight_map = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        part = {name: tensors[name] for name in names[shard::shards]}
        save_file(part, folder / file)
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def variant(base: Path, folder: Path, change: Callable[[Tensors], Tensors | None], shards: int = 1) -> Path:
    """A copy of a checkpoint with its tensors changed (in place, or by returning others)."""
    tensors = read(base)
    changed = change(tensors)
    return write(folder, tensors if changed is None else changed, base, shards)


def jitter(scale: float, chosen: Callable[[str], bool], seed: int = 1) -> Callable[[Tensors], None]:
    """Add noise, relative to each chosen tensor's mean size."""

    def change(tensors: Tensors) -> None:
        generator = torch.Generator().manual_seed(seed)
        for name in sorted(tensors):
            noise = torch.randn(tensors[name].shape, generator=generator)
            if chosen(name):
                size = tensors[name].float().abs().mean()
                tensors[name] = (tensors[name].float() + scale * size * noise).to(tensors[name].dtype)

    return change


def probe(folder: Path, *, documents: int = 40, length: int = 16, vocab: int = 48, **changes: Any) -> Path:
    """A registered probe set of two base domains of random tokens; `changes` replace top-level keys."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    for domain in ("prose", "code"):
        rows = [
            {"id": f"{domain}-{n}", "tokens": generator.integers(0, vocab, length).tolist()}
            for n in range(documents)
        ]
        (folder / f"{domain}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config: dict[str, Any] = {
        "schema": "atlas/probes/v1",
        "name": "tiny",
        "windows": {"tokens": length, "per_document": 1, "seed": 7},
        "evaluation": {"experts": "active", "token_stride": 1, "quantile": 0.9},
        "protected_layers": "all",
        "domains": [
            {"name": name, "role": "base", "source": f"{name}.jsonl", "documents": documents}
            for name in ("prose", "code")
        ],
        "policy": POLICY,
    }
    path = folder / "probes.yaml"
    path.write_text(yaml.safe_dump(config | changes, sort_keys=False))
    register(path, force=True)
    return path


def audited(
    base: Path, tuned: Path | None, probes: Path, **options: Any
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Facts and window arrays of an audit."""
    return measure(base, tuned, probes, AuditOptions(**options))


def judge(base: Path, change: Callable[[Tensors], Tensors | None], probes: Path, folder: Path) -> Receipt:
    """The receipt, in `folder`, of a checkpoint against its changed copy, in float32."""
    tuned = variant(base, folder / "tuned", change)
    options = AuditOptions(dtype="float32")
    return audit(base, tuned, probes, receipt=folder / "receipt.json", force=True, options=options)


def byte_tokenizer(folder: Path) -> Path:
    """A tokenizer.json whose 256 tokens are the byte symbols of byte-level BPE, without a merge."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={symbol: n for n, symbol in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"


def letter_tokenizer(folder: Path, ids: int = 48) -> Path:
    """A tokenizer.json of so few ids that most characters are unknown to it."""
    letters = " etaoinshrdlucmfwypvbgkjqxz\n.,_()=:\"'#-[]0123456789"[: ids - 1]
    vocab = {"[UNK]": 0} | {letter: n for n, letter in enumerate(letters, start=1)}
    Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="[UNK]")).save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"


def copied_experts(tensors: Tensors) -> Tensors:
    """Half of the experts of every layer over the other half, whether stored one by one or stacked."""
    out = {}
    for name, tensor in tensors.items():
        found = re.search(r"\.experts\.(\d+)\.", name)
        half = tensor.shape[0] // 2
        if found is None:
            stacked = ".experts." in name
            out[name] = torch.cat([tensor[:half], tensor[:half]]) if stacked else tensor.clone()
            continue
        experts = 1 + max(int(n) for n in re.findall(r"\.experts\.(\d+)\.", " ".join(tensors)))
        source = int(found[1]) % (experts // 2)
        out[name] = tensors[name.replace(found[0], f".experts.{source}.")].clone()
    return out
