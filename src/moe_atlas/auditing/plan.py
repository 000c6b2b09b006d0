"""What an audit would cost on this machine, before it is run: from headers, specs and a few seconds of trial."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from moe_atlas.auditing import memory, rates, work
from moe_atlas.auditing.batches import BATCH_TOKENS, partition, rounds
from moe_atlas.auditing.options import AuditOptions
from moe_atlas.auditing.run import measured_windows, needed, opened
from moe_atlas.auditing.side import compute_dtype
from moe_atlas.auditing.storage import storage
from moe_atlas.checkpoint.index import Checkpoint
from moe_atlas.families.spec import ModelSpec
from moe_atlas.probes.registration import load_registered


def plan(base: Path, tuned: Path, probe: Path, options: AuditOptions) -> dict[str, Any]:
    """Bytes, operations, memory and seconds of `atlas audit` with these arguments; nothing is written.

    Returns:
        JSON values: `flops` as `moe_atlas.auditing.work.flops` counts them; `memory` in bytes; `seconds`, in which
        experts are read while others are computed, so that the longer of the two counts.

    Raises:
        AtlasError: as the audit would, for whatever it refuses before it reads a tensor.
    """
    probes = load_registered(probe, options.policy_from)
    checkpoints, specs = opened(base, tuned, probes)
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
        "seconds": estimate(flops, tokens.measured * len(specs[0].routed_layers), sum(read), experts, speed),
    }


def stored_differently(checkpoints: Sequence[Checkpoint], specs: Sequence[ModelSpec]) -> bool:
    """Whether the experts of the first routed layer are stored in different formats."""
    moes = [next(layer.moe for layer in spec.layers if layer.moe) for spec in specs]
    base, tuned = (storage(c, moe.expert_refs(0)) for c, moe in zip(checkpoints, moes, strict=True))
    return base != tuned


def calibrate(
    checkpoints: Sequence[Checkpoint],
    spec: ModelSpec,
    tokens: work.Tokens,
    dtype: torch.dtype,
    *,
    everyone: bool,
) -> dict[str, float]:
    """Operations, measured tokens of a layer, and bytes a second on this machine."""
    moe = next(layer.moe for layer in spec.layers if layer.moe)
    experts, k = moe.router.experts, moe.router.top_k
    rows = max(1, min(tokens.total, BATCH_TOKENS) * k // experts)
    slots = experts if everyone else min(k + 2, experts)
    return {
        "flops": rates.products(spec.width, moe.expert_width, rows, dtype),
        "readings": rates.readings(spec.width, slots, dtype, pair=True),
        "bytes": rates.reading(checkpoints),
    }


def estimate(
    flops: Mapping[str, int], readings: int, read: int, experts: int, speed: Mapping[str, float]
) -> dict[str, float]:
    """Seconds, by what they go into.

    Args:
        flops: operations, by part.
        readings: measured tokens, over all layers.
        read: bytes read.
        experts: bytes of them that are read while other experts are computed.
        speed: what `calibrate` found.
    """
    compute = sum(flops.values()) / speed["flops"]
    beside = sum(count for part, count in flops.items() if "experts" in part or part == "competitors")
    waiting = max(0.0, experts / speed["bytes"] - beside / speed["flops"])
    reading = (read - experts) / speed["bytes"] + waiting
    spent = {"products": compute, "readings": readings / speed["readings"], "reading": reading}
    return {**spent, "total": sum(spent.values())}
