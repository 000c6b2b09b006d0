"""What an audit would cost on this machine, before it is run: from headers, specs and a few seconds of trial."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from moe_atlas.auditing.cost import flops as work
from moe_atlas.auditing.cost import memory, throughput
from moe_atlas.auditing.layer.batches import BATCH_TOKENS, partition, rounds
from moe_atlas.auditing.layer.requantise import storage
from moe_atlas.auditing.layer.side import compute_dtype
from moe_atlas.auditing.run import measured_windows, needed, opened
from moe_atlas.checkpoint.source import TensorSource
from moe_atlas.models.expert_refs import expert_refs
from moe_atlas.models.spec import ModelSpec
from moe_atlas.options import AuditOptions
from moe_atlas.probes.registration import load_registered


def plan(base: Path, tuned: Path, probe: Path, options: AuditOptions) -> dict[str, Any]:
    """Bytes, operations, memory and seconds of `atlas audit` with these arguments; nothing is written.

    Returns:
        JSON values: `flops` as `cost.flops.flops` counts them; `memory` in bytes; `rates` and `seconds` as `calibrate`
        and `estimate` give them.

    Raises:
        AtlasError: as the audit would, for whatever it refuses before it reads a tensor.
    """
    probes = load_registered(probe, options.policy_from)
    checkpoints, specs = opened(base, tuned, probes, options.accepted)
    dtype = compute_dtype(options.dtype, specs[0], checkpoints[0])
    config, measured = probes.config, measured_windows(probes)
    everyone = config.evaluation.experts == "all"
    room = needed(checkpoints, specs, probes, dtype)
    held, depth = memory.held_tokens(options.memory, room), memory.read_ahead(options.memory, room)
    passes = len(list(rounds(partition(probes.windows, measured), held)))
    tokens = work.tokens_of(probes.windows, measured, config.evaluation.token_stride)
    flops = work.flops(specs, tokens, everyone=everyone, requantised=stored_differently(checkpoints, specs))
    read = [work.bytes_read(*side, passes) for side in zip(checkpoints, specs, strict=True)]
    experts = passes * sum(work.expert_bytes(*side) for side in zip(checkpoints, specs, strict=True))
    speed = calibrate(checkpoints, specs[0], tokens, dtype, everyone=everyone)
    return {
        "dtype": str(dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "tokens": {"all": tokens.total, "measured": tokens.measured, "scored": tokens.scored},
        "passes": passes,
        "bytes": {"base": read[0], "tuned": read[1], "total": sum(read)},
        "flops": {**flops, "total": sum(flops.values())},
        "memory": {"minimum": room.minimum, "peak": room.peak(min(held, tokens.total), depth)},
        "rates": speed,
        "seconds": estimate(
            flops,
            tokens.measured * len(specs[0].routed_layers),
            tokens.scored * sum(spec.vocab for spec in specs),
            sum(read),
            experts if spare_processors() else 0,
            speed,
        ),
    }


def stored_differently(checkpoints: Sequence[TensorSource], specs: Sequence[ModelSpec]) -> bool:
    """Whether the experts of the first routed layer are stored in different formats."""
    moes = [next(layer.moe for layer in spec.layers if layer.moe) for spec in specs]
    base, tuned = (storage(c, expert_refs(moe, 0)) for c, moe in zip(checkpoints, moes, strict=True))
    return base != tuned


def calibrate(
    checkpoints: Sequence[TensorSource],
    spec: ModelSpec,
    tokens: work.Tokens,
    dtype: torch.dtype,
    *,
    everyone: bool,
) -> dict[str, float]:
    """What this machine does in a second.

    Returns:
        `flops` of plain products, `expert_flops` of experts as they are evaluated, `readings` (measured tokens of a
        layer), `logits`, and `bytes` read, hashed and compared.
    """
    moe = next(layer.moe for layer in spec.layers if layer.moe)
    count, k = moe.router.experts, moe.router.top_k
    rows = max(1, min(tokens.total, BATCH_TOKENS) * k // count)
    slots = count if everyone else min(k + 2, count)
    return {
        "flops": throughput.products(spec.width, moe.expert_width, rows, dtype),
        "expert_flops": throughput.experts(moe, spec.width, rows, dtype),
        "readings": throughput.readings(spec.width, slots, dtype, pair=True),
        "logits": throughput.softmax(spec.vocab),
        "bytes": throughput.reading(checkpoints),
    }


def spare_processors() -> bool:
    """Whether products leave a processor to what is done in the background."""
    mine = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    return len(mine) > torch.get_num_threads()


def estimate(
    flops: Mapping[str, int], readings: int, logits: int, read: int, hidden: int, speed: Mapping[str, float]
) -> dict[str, float]:
    """Seconds, by what they go into.

    Args:
        flops: operations, by part.
        readings: measured tokens, over all layers.
        logits: positions times vocabulary, over the checkpoints.
        read: bytes read.
        hidden: bytes of them that are read, on processors of their own, while experts are multiplied: of the two, the
            longer counts.
        speed: what `calibrate` found.
    """
    experts = sum(count for part, count in flops.items() if "experts" in part or part == "competitors")
    beside = experts / speed["expert_flops"]
    waiting = max(0.0, hidden / speed["bytes"] - beside)
    spent = {
        "products": beside + (sum(flops.values()) - experts) / speed["flops"],
        "readings": readings / speed["readings"] + logits / speed["logits"],
        "reading": (read - hidden) / speed["bytes"] + waiting,
    }
    return {**spent, "total": sum(spent.values())}
