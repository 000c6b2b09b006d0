"""One whole audit or baseline: open the checkpoints, compare headers, replay, and return the facts of the receipt.

This module writes no receipt; `moe_atlas.receipt` derives, writes and reads it back.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from moe_atlas import token_arrays
from moe_atlas.adapters.source import AdaptedSource
from moe_atlas.auditing.checks import require_agreement, require_allowed, require_measurable
from moe_atlas.auditing.copies import cache
from moe_atlas.auditing.copies.four_bit import FourBitCopy
from moe_atlas.auditing.cost import memory
from moe_atlas.auditing.cost.machine import (
    environment_facts,
    full_precision,
    memory_errors_named,
    pick_device,
    threads,
)
from moe_atlas.auditing.facts import (
    checkpoint_facts,
    identity_facts,
    method_facts,
    probe_facts,
    share_facts,
    timing_facts,
    window_arrays,
)
from moe_atlas.auditing.layer.batches import partition
from moe_atlas.auditing.layer.noise_floor import ReorderedReplay, bands, floor_facts
from moe_atlas.auditing.layer.side import Side, SideName, compute_dtype
from moe_atlas.auditing.layer.view import Scope
from moe_atlas.auditing.loop import replay_layers
from moe_atlas.auditing.opening.folder import Folder
from moe_atlas.auditing.opening.pairing import require_comparable
from moe_atlas.auditing.opening.sources import Given, open_pair
from moe_atlas.auditing.processes.digests import digest_of, finish
from moe_atlas.auditing.processes.group import Group
from moe_atlas.auditing.resume import StateFile, dependencies, settings
from moe_atlas.auditing.unreplayed import compare_unreplayed, values_alone
from moe_atlas.auditing.walk import Evidence, Walk
from moe_atlas.checkpoint.digest import CheckpointDigest, config_sha256
from moe_atlas.checkpoint.headers.header import DTYPE_BITS
from moe_atlas.checkpoint.quantised.encoding import Encoded
from moe_atlas.checkpoint.reader import Reader
from moe_atlas.checkpoint.source import TensorSource
from moe_atlas.derivation.derive import DERIVATION
from moe_atlas.derivation.warnings import within_floor
from moe_atlas.derivation.yardstick import derive_yardstick
from moe_atlas.errors import UsageError
from moe_atlas.loading.load import Transform
from moe_atlas.models.spec import ModelSpec
from moe_atlas.options import AuditOptions, Execution
from moe_atlas.probes.registration import ProbeSet, load_registered
from moe_atlas.receipt.reference import attempt_facts, reference_facts, stored_floor
from moe_atlas.receipt.write import as_arrays
from moe_atlas.replay.model import Replay
from moe_atlas.system.limits import require_room, require_token_room

Facts = dict[str, Any]
Arrays = dict[str, np.ndarray]
WRITTEN = 3  # copies of the token arrays while they are written: the arrays, their bytes, and the whole file


def measure(
    base: Given,
    tuned: Given | None,
    probe: Path | ProbeSet,
    options: AuditOptions,
    group: Group | None = None,
) -> tuple[Facts, Arrays]:
    """Measure a pair (or, without a tuned checkpoint, a baseline) on a registered probe set.

    Args:
        base: the base checkpoint: its path, or the source of its tensors.
        tuned: the tuned checkpoint; None for a baseline.
        probe: the registered probe file, or a probe set that nobody registered.
        options: options of how the audit runs.
        group: the processes that share the audit; each process calls this function with the same arguments.

    Returns:
        The facts of the receipt, from which every interval and the verdict follow; and the window arrays, with the
        token arrays if `options.tokens` asks for them. Both are empty except in the leading process.

    Raises:
        AtlasError: for every error that a user can cause; nothing is written.
    """
    started, clock = datetime.now(UTC), time.monotonic()
    group = group or Group()
    probes = probe if isinstance(probe, ProbeSet) else load_registered(probe, options.policy_from)
    other_receipts = {
        "reference": reference_facts(options.baseline),
        "attempts": [attempt_facts(path) for path in options.attempts],
    }
    checkpoints, specs = open_checkpoints(base, tuned, probes, options)
    if options.tokens:
        require_pair_of_tokens(specs, probes)
    folders = [Folder.of(probes, checkpoint, tuned=n > 0) for n, checkpoint in enumerate(checkpoints)]
    options = replace(options, noise_floor=noise_floor_execution(probes, specs[0], options))
    with memory_errors_named(), threads(options.threads), full_precision():
        walk = prepare(checkpoints, specs, probes, options, group)
        require_agreement(walk, probes, options)
        floor = measure_noise_floor(checkpoints[0], specs[0], probes, options, group)
        walk.bands = bands(floor) if floor else {}
        if options.resume is not None:
            walk.resume = StateFile(options.resume[0], dependencies(walk, probes, options))
        evidence = replay_layers(walk, probes.windows)
        evidence.unreplayed = compare_unreplayed(walk.sides, evidence.ledger, group)
        alone = [values_alone(side, evidence.ledger.values(0), group) for side in walk.sides]
        digests = [finish(side.reader, group) for side in walk.sides]
        yardstick = measure_yardstick(checkpoints[0], specs[0], probes, options, group, digests[0])
        for folder in folders:
            folder.require_unchanged()
    shares = group.gather_to_leader(share_facts(walk))
    if not group.leads:
        return {}, {}
    of_checkpoints = checkpoint_facts(walk.sides, evidence, alone, digests, folders, shares)
    timing = timing_facts(walk, shares, started, time.monotonic() - clock)
    facts = receipt_facts(walk, evidence, probes, options, of_checkpoints)
    facts |= {**other_receipts, "noise_floor": floor, "yardstick": yardstick, "timing": timing}
    return facts, window_arrays(probes) | evidence.arrays


def receipt_facts(
    walk: Walk,
    evidence: Evidence,
    probes: ProbeSet,
    options: AuditOptions,
    checkpoints: Facts,
) -> Facts:
    """Return the facts of the receipt, except timing, noise floor and the facts of other receipts.

    Args:
        walk: the finished walk.
        evidence: its evidence.
        probes: the registered probe set.
        options: options of how the audit ran.
        checkpoints: the facts of each checkpoint.
    """
    specs = [side.spec for side in walk.sides]
    pair = len(specs) == 2
    return {
        "schema": "atlas/receipt/v1",
        "kind": "audit" if pair else "baseline",
        "probe": probe_facts(probes, specs[0]),
        "checkpoints": checkpoints,
        "layers": evidence.layers,
        "weights": evidence.ledger.facts() | {"unreplayed": evidence.unreplayed},
        "identity": identity_facts(evidence, specs),
        "vocabulary": {end: evidence.vocabulary.get(end) for end in ("embedding", "head")},
        "controls": {"parameter_distance": evidence.ledger.parameter_distance() if pair else None},
        "method": method_facts(walk, specs, options),
        "environment": environment_facts(),
        "parent": None,
    }


def open_checkpoints(
    base: Given, tuned: Given | None, probes: ProbeSet, options: AuditOptions
) -> tuple[list[TensorSource], list[ModelSpec]]:
    """Open the checkpoints under audit from their headers; refuse a pair that cannot be compared or measured."""
    checkpoints, specs = open_pair(base, tuned, options)
    for checkpoint, spec in zip(checkpoints, specs, strict=True):
        require_allowed(probes, spec, checkpoint.label)
    if len(specs) == 2:
        require_comparable(specs[0], specs[1], checkpoints[0].label, checkpoints[1].label)
    require_measurable(probes, checkpoints, specs)
    require_room(
        [layer.moe.router.experts for layer in specs[0].layers if layer.moe],
        (measured_windows(probes), len(probes.windows)),
        len(probes.config.domains),
        [[skipped.name for skipped in spec.skipped] for spec in specs],
        str(probes.config.path),
    )
    return checkpoints, specs


def require_pair_of_tokens(specs: Sequence[ModelSpec], probes: ProbeSet) -> None:
    """Refuse evidence of single tokens for a baseline, or in a file longer than a verifier reads.

    Raises:
        UsageError: E_TOKENS for a baseline, in which nothing changes.
        InputRefused: E_PROBE_SIZE.
    """
    if len(specs) == 1:
        problem = "a baseline has one checkpoint, so no token changes"
        raise UsageError("E_TOKENS", "tokens", problem, "leave it out, or audit a pair")
    require_token_room(token_data(specs, probes)["least"], str(probes.config.path))


def prepare(
    checkpoints: list[TensorSource],
    specs: list[ModelSpec],
    probes: ProbeSet,
    options: AuditOptions,
    group: Group,
) -> Walk:
    """Return a walk that is ready to start; refuse a memory limit below the minimum before any tensor is read."""
    device = pick_device(options.device, options.place)
    dtype = compute_dtype(options.dtype, specs[0], checkpoints[0])
    config = probes.config
    needs = memory_needs(checkpoints, specs, probes, dtype, tokens=options.tokens)
    names: tuple[SideName, ...] = ("base", "tuned")
    sides = [
        Side(name, checkpoint, spec, Replay(spec, dtype=dtype, device=device, router_arithmetic=options.router),
             Reader(checkpoint))
        for name, checkpoint, spec in zip(names, checkpoints, specs, strict=False)
    ]  # fmt: skip
    if len(sides) == 2:
        sides[0].reader.shared = shared_files(*checkpoints)
        sides[1].reader.share_hashes(sides[0].reader)
    smooth = config.policy.rewrite.smooth
    return Walk(
        sides=sides,
        batches=partition(probes.windows, measured_windows(probes)),
        scope=Scope(
            seed=config.windows.seed,
            everyone=config.evaluation.experts == "all",
            stride=config.evaluation.token_stride,
            quantile=config.evaluation.quantile,
            adjacency=smooth.adjacency if smooth else None,
        ),
        protected=frozenset(config.protected_layers.resolve(specs[0].routed_layers)),
        progress=options.progress,
        held_tokens=memory.held_tokens(options.memory, needs),
        read_ahead=memory.read_ahead(options.memory, needs),
        skips=options.skips,
        chart_maps=options.chart_maps,
        keeps_tokens=options.tokens,
        group=group,
    )


def shared_files(checkpoint: TensorSource, other: TensorSource) -> frozenset[str]:
    """Return the files of `checkpoint` that are also files of `other`, matched by identity rather than by name."""
    theirs = set(other.identities.values())
    return frozenset(file for file, found in checkpoint.identities.items() if found in theirs)


def memory_needs(
    checkpoints: list[TensorSource],
    specs: list[ModelSpec],
    probes: ProbeSet,
    dtype: torch.dtype,
    *,
    tokens: bool = False,
) -> memory.Needs:
    """Return the memory that an audit needs with this compute dtype, and with `tokens` for evidence of every token."""
    count = sum(len(window.tokens) for window in probes.windows)
    everyone = probes.config.evaluation.experts == "all"
    stored = max(_widest(checkpoint) for checkpoint in checkpoints)
    decoded = [bool(checkpoint.encoded or checkpoint.derived) for checkpoint in checkpoints]
    held = sum(one.held_bytes for one in checkpoints if isinstance(one, AdaptedSource))
    kept = WRITTEN * token_data(specs, probes)["most"] if tokens else 0
    return memory.needs(
        specs, count, dtype.itemsize, stored, everyone=everyone, decoded=decoded, kept=kept, held=held
    )


def _widest(checkpoint: TensorSource) -> int:
    """Return the bytes of an element of the widest dtype in which a tensor, or a part of one, is read."""
    plain = {entry.dtype for entry in checkpoint.logical.values() if not isinstance(entry, Encoded)}
    parts = {part for entry in checkpoint.encoded.values() for part in entry.parts.values()}
    return max(DTYPE_BITS[dtype] // 8 for dtype in plain | {checkpoint.tensors[part].dtype for part in parts})


def token_data(specs: Sequence[ModelSpec], probes: ProbeSet) -> dict[str, int]:
    """Return the bytes of the token file: `least`, if no routed set changes, and `most`, if all are replaced."""
    count = sum(len(window.tokens) for window in probes.windows)
    scored = sum(int(window.scored.sum()) for window in probes.windows)
    routers = [layer.moe.router for layer in specs[0].layers if layer.moe]
    return {
        "least": token_arrays.least_bytes(count, scored, [router.experts for router in routers]),
        "most": token_arrays.most_bytes(count, scored, [(r.experts, r.top_k) for r in routers]),
    }


def measured_windows(probes: ProbeSet) -> int:
    """Return the number of windows of role base, which come first and on which the routed object is measured."""
    return sum(probes.config.domains[window.domain].role == "base" for window in probes.windows)


def noise_floor_execution(probes: ProbeSet, spec: ModelSpec, options: AuditOptions) -> Execution | None:
    """Return the execution for measuring the noise floor; None: do not measure it.

    Without a request, the execution is that of the baseline, if a budget is within ten times the baseline's floor.
    """
    if options.noise_floor is not None:
        return options.noise_floor
    stored = stored_floor(options.baseline)
    protected = probes.config.protected_layers.resolve(spec.routed_layers)
    near = within_floor(stored, probes.config.policy.rewrite.budgets(), protected)
    return cast(Execution, stored.execution) if stored and near else None


def measure_noise_floor(
    checkpoint: TensorSource, spec: ModelSpec, probes: ProbeSet, options: AuditOptions, group: Group
) -> Facts | None:
    """Audit the base against itself in another execution order or compute dtype; None without `noise_floor`."""
    if options.noise_floor is None:
        return None
    walk = prepare(
        [checkpoint, checkpoint], [spec, spec], probes, replace(options, chart_maps=0, tokens=False), group
    )
    first, second = walk.sides
    other = first.replay.dtype if options.noise_floor == "order" else getattr(torch, options.noise_floor)
    kind = ReorderedReplay if options.noise_floor == "order" else Replay
    second.replay = kind(spec, dtype=other, device=first.replay.device, router_arithmetic=options.router)
    walk.measures_noise = True
    if options.resume is not None:
        walk.resume = StateFile(options.resume[1], dependencies(walk, probes, options))
    evidence = replay_layers(walk, probes.windows)
    if not group.leads:
        return group.broadcast_object(None)
    return group.broadcast_object(floor_facts(options.noise_floor, evidence.layers, evidence.arrays))


def measure_yardstick(
    checkpoint: TensorSource,
    spec: ModelSpec,
    probes: ProbeSet,
    options: AuditOptions,
    group: Group,
    digest: CheckpointDigest,
) -> Facts | None:
    """Return the receipt's `yardstick` block: an audit of the base against its 4-bit copy; None if nobody asked for it.

    The digest of the base is known only after a walk has read its bytes, so this is the last step of an audit. An entry
    of the cache then stands for exactly these bytes.

    Args:
        checkpoint: the base.
        spec: its spec.
        probes: the registered probe set.
        options: options of how the audit runs.
        group: the processes that share the audit.
        digest: the digest of the base's tensors.

    Raises:
        IntegrityError: E_CHANGED if the base changed after it was opened.
    """
    if not options.yardstick:
        return None
    copy = FourBitCopy()
    walk = prepare_copy(checkpoint, spec, probes, options, group, copy)
    base = [digest.sha256, config_sha256(checkpoint), spec.describe()]
    key = digest_of({"base": base, "derivation": DERIVATION, **settings(walk, probes, options)})
    kept = group.broadcast_object([cache.recall(key) if group.leads else None])[0]
    if kept is not None:
        return {"taken_from": "cache", **kept}
    if options.resume is not None:
        walk.resume = StateFile(options.resume[2], dependencies(walk, probes, options))
    measured = measure_copy(walk, probes)
    if measured is None:
        return None
    block = {"copy": copy.describe(), "key": key, **measured}
    cache.keep(key, block)
    return {"taken_from": "measurement", **block}


def prepare_copy(
    checkpoint: TensorSource,
    spec: ModelSpec,
    probes: ProbeSet,
    options: AuditOptions,
    group: Group,
    copy: Transform,
) -> Walk:
    """Return a walk over a checkpoint and a copy of it that is never written."""
    plain = replace(options, chart_maps=0, tokens=False)
    walk = prepare([checkpoint, checkpoint], [spec, spec], probes, plain, group)
    walk.sides[1].transform = copy
    return walk


def measure_copy(walk: Walk, probes: ProbeSet) -> Facts | None:
    """Return what a copy does to every gated channel and to the loss; None except in the leading process.

    Raises:
        IntegrityError: E_CHANGED if the checkpoint changed after it was opened.
    """
    evidence = replay_layers(walk, probes.windows)
    walk.sides[0].reader.unchanged()
    if not walk.group.leads:
        return None
    specs = [side.spec for side in walk.sides]
    facts = {
        "kind": "audit",
        "probe": probe_facts(probes, specs[0]),
        "layers": evidence.layers,
        "identity": identity_facts(evidence, specs),
    }
    return derive_yardstick(facts, as_arrays(window_arrays(probes) | evidence.arrays))
