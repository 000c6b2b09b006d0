"""The cost of an audit on this machine before it runs, from headers, specs and a few seconds of trials."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from moe_atlas.auditing.cost import flops, memory, throughput
from moe_atlas.auditing.layer.batches import BATCH_TOKENS, layer_passes, partition
from moe_atlas.auditing.layer.requantise import storage
from moe_atlas.auditing.layer.side import compute_dtype
from moe_atlas.auditing.opening.sources import Given
from moe_atlas.auditing.run import (
    measured_windows,
    memory_needs,
    open_checkpoints,
    require_pair_of_tokens,
    token_data,
)
from moe_atlas.checkpoint.source import TensorSource
from moe_atlas.models.expert_refs import expert_refs
from moe_atlas.models.spec import ModelSpec
from moe_atlas.options import AuditOptions
from moe_atlas.probes.registration import ProbeSet, load_registered


def plan(base: Given, tuned: Given, probe: Path | ProbeSet, options: AuditOptions) -> dict[str, Any]:
    """Estimate bytes, operations, memory and seconds of `atlas audit` with these arguments, without writing anything.

    Returns:
        JSON values: `flops` from `cost.flops.flops`; `memory` in bytes; `token_data`, with `options.tokens`, in bytes;
        `rates` from `calibrate` and `seconds` from `estimate`. With the option `yardstick`, the cost of that second
        audit stands apart under `yardstick`.

    Raises:
        AtlasError: for every input that the audit refuses before it reads a tensor.
    """
    probes = probe if isinstance(probe, ProbeSet) else load_registered(probe, options.policy_from)
    checkpoints, specs = open_checkpoints(base, tuned, probes, options)
    if options.tokens:
        require_pair_of_tokens(specs, probes)
    dtype = compute_dtype(options.dtype, specs[0], checkpoints[0])
    config, measured = probes.config, measured_windows(probes)
    everyone = config.evaluation.experts == "all"
    needs = memory_needs(checkpoints, specs, probes, dtype, tokens=options.tokens)
    held, depth = memory.held_tokens(options.memory, needs), memory.read_ahead(options.memory, needs)
    passes = len(list(layer_passes(partition(probes.windows, measured), held)))
    tokens = flops.count_tokens(probes.windows, measured, config.evaluation.token_stride)
    rates = calibrate(checkpoints, specs[0], tokens, dtype, everyone=everyone)
    setting = Setting(tokens, passes, rates, everyone)
    return {
        "dtype": str(dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "tokens": {"all": tokens.total, "measured": tokens.measured, "scored": tokens.scored},
        "passes": passes,
        "memory": {"minimum": needs.minimum, "peak": needs.peak(min(held, tokens.total), depth)},
        **({"token_data": token_data(specs, probes)} if options.tokens else {}),
        "rates": rates,
        **cost(checkpoints, specs, setting),
        **({"yardstick": cost(checkpoints[:1] * 2, specs[:1] * 2, setting)} if options.yardstick else {}),
    }


@dataclass(frozen=True)
class Setting:
    """What the cost of an audit depends on beside its checkpoints.

    Attributes:
        tokens: the counts of tokens.
        passes: number of passes over the experts of a layer.
        rates: the rates from `calibrate`.
        everyone: whether every expert is evaluated at every token.
    """

    tokens: flops.TokenCounts
    passes: int
    rates: Mapping[str, float]
    everyone: bool


def cost(
    checkpoints: Sequence[TensorSource], specs: Sequence[ModelSpec], setting: Setting
) -> dict[str, dict[str, Any]]:
    """Return the bytes, operations and seconds of the audit of one pair."""
    tokens, passes = setting.tokens, setting.passes
    requantised = stored_differently(checkpoints, specs)
    operations = flops.flops(specs, tokens, everyone=setting.everyone, requantised=requantised)
    read = [flops.bytes_read(*pair, passes) for pair in zip(checkpoints, specs, strict=True)]
    experts = passes * sum(flops.expert_bytes(*pair) for pair in zip(checkpoints, specs, strict=True))
    return {
        "bytes": {"base": read[0], "tuned": read[1], "total": sum(read)},
        "flops": {**operations, "total": sum(operations.values())},
        "seconds": estimate(
            operations,
            tokens.measured * len(specs[0].routed_layers),
            tokens.scored * sum(spec.vocab for spec in specs),
            sum(read),
            experts if spare_processors() else 0,
            setting.rates,
        ),
    }


def stored_differently(checkpoints: Sequence[TensorSource], specs: Sequence[ModelSpec]) -> bool:
    """Return whether the checkpoints store the experts of the first routed layer in different formats."""
    moes = [next(layer.moe for layer in spec.layers if layer.moe) for spec in specs]
    base, tuned = (storage(c, expert_refs(moe, 0)) for c, moe in zip(checkpoints, moes, strict=True))
    return base != tuned


def calibrate(
    checkpoints: Sequence[TensorSource],
    spec: ModelSpec,
    tokens: flops.TokenCounts,
    dtype: torch.dtype,
    *,
    everyone: bool,
) -> dict[str, float]:
    """Measure the rates of this machine per second.

    Returns:
        `flops` of plain products, `expert_flops` of expert evaluation, `readings` (measured tokens of a layer),
        `logits`, and `bytes` read, hashed and compared.
    """
    moe = next(layer.moe for layer in spec.layers if layer.moe)
    count, k = moe.router.experts, moe.router.top_k
    rows = max(1, min(tokens.total, BATCH_TOKENS) * k // count)
    slots = count if everyone else min(k + 2, count)
    return {
        "flops": throughput.product_rate(spec.width, moe.expert_width, rows, dtype),
        "expert_flops": throughput.expert_rate(moe, spec.width, rows, dtype),
        "readings": throughput.measurement_rate(spec.width, slots, dtype, pair=True),
        "logits": throughput.softmax_rate(spec.vocab),
        "bytes": throughput.read_rate(checkpoints),
    }


def spare_processors() -> bool:
    """Return whether the threads of products leave a processor for background work."""
    mine = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    return len(mine) > torch.get_num_threads()


def estimate(
    operations: Mapping[str, int],
    measured: int,
    logits: int,
    read: int,
    overlapped: int,
    rates: Mapping[str, float],
) -> dict[str, float]:
    """Estimate the seconds of an audit by kind of work.

    Args:
        operations: operations by part.
        measured: measured tokens over all layers.
        logits: positions times vocabulary over the checkpoints.
        read: bytes read.
        overlapped: bytes that other processors read while experts are multiplied; only the longer of both counts.
        rates: the rates from `calibrate`.
    """
    experts = sum(count for part, count in operations.items() if "experts" in part or part == "competitors")
    multiplying = experts / rates["expert_flops"]
    waiting = max(0.0, overlapped / rates["bytes"] - multiplying)
    spent = {
        "products": multiplying + (sum(operations.values()) - experts) / rates["flops"],
        "readings": measured / rates["readings"] + logits / rates["logits"],
        "reading": (read - overlapped) / rates["bytes"] + waiting,
    }
    return {**spent, "total": sum(spent.values())}
