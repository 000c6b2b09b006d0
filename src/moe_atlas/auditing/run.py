"""One whole audit or baseline: open, compare from headers, replay, and hand over a finished receipt body.

Nothing is written here; `moe_atlas.receipt` derives, writes and re-reads.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from moe_atlas.auditing import memory
from moe_atlas.auditing.batches import BATCH_TOKENS, partition, rounds
from moe_atlas.auditing.digests import finish
from moe_atlas.auditing.folder import Folder
from moe_atlas.auditing.group import Group
from moe_atlas.auditing.loop import Evidence, Walk, walk
from moe_atlas.auditing.machine import (
    environment_facts,
    exhaustion_named,
    full_precision,
    pick_device,
    threads,
)
from moe_atlas.auditing.noise import ReorderedReplay, bands, floor_facts
from moe_atlas.auditing.options import AuditOptions, Execution
from moe_atlas.auditing.pairing import other_differences, require_comparable
from moe_atlas.auditing.resume import StateFile, dependencies
from moe_atlas.auditing.side import Side, SideName, compute_dtype
from moe_atlas.auditing.unreplayed import compare_unreplayed, nothing_differs, values_alone
from moe_atlas.auditing.view import Scope
from moe_atlas.checkpoint.digest import CheckpointDigest, config_sha256
from moe_atlas.checkpoint.header import DTYPE_BITS
from moe_atlas.checkpoint.index import Checkpoint, open_checkpoint
from moe_atlas.checkpoint.reader import Reader
from moe_atlas.errors import InputRefused, UsageError
from moe_atlas.families.accepting import OPTION, written
from moe_atlas.families.registry import resolve
from moe_atlas.families.spec import ModelSpec
from moe_atlas.limits import require_room
from moe_atlas.probes.registration import ProbeSet, load_registered
from moe_atlas.receipt.reference import attempt_facts, reference_facts, stored_floor
from moe_atlas.receipt.warnings import within_floor
from moe_atlas.replay.model import Replay
from moe_atlas.weights.class_digests import resolved, value_digests

Receipt = dict[str, Any]
Arrays = dict[str, np.ndarray]


def measure(
    base: Path, tuned: Path | None, probe: Path, options: AuditOptions, group: Group | None = None
) -> tuple[Receipt, Arrays]:
    """Measure a pair (or, with no tuned checkpoint, a baseline) on a registered probe set.

    Args:
        base: the base checkpoint.
        tuned: the tuned one.
        probe: the registered probe file.
        options: how to run.
        group: the processes that share the work; all of them call this alike.

    Returns:
        The facts of the receipt, from which every interval and the verdict can be derived, and the window arrays;
        both empty but in the process that leads.

    Raises:
        AtlasError: for everything a user can cause; nothing has been written then.
    """
    started = datetime.now(UTC)
    clock = time.monotonic()
    group, kept = group or Group(), None
    probes = load_registered(probe, options.policy_from)
    lent = {
        "reference": reference_facts(options.baseline),
        "attempts": [attempt_facts(path) for path in options.attempts],
    }
    checkpoints, specs = opened(base, tuned, probes, options.accepted)
    folders = [Folder.of(probes, checkpoint, tuned=place > 0) for place, checkpoint in enumerate(checkpoints)]
    options = replace(options, noise_floor=wanted_floor(probes, specs[0], options))
    with exhaustion_named(), threads(options.threads), full_precision():
        audit = prepare(checkpoints, specs, probes, options, group)
        require_alike(audit, probes, options)
        floor = (
            measure_floor(checkpoints[0], specs[0], probes, options, group) if options.noise_floor else None
        )
        audit.bands = bands(floor) if floor else {}
        if options.resume is not None:
            kept = audit.resume = StateFile(options.resume[0], dependencies(audit, probes, options))
        evidence = walk(audit, probes.windows)
        evidence.unreplayed = compare_unreplayed(audit.sides, evidence.ledger, group)
        alone = [values_alone(side, evidence.ledger.values(0), group) for side in audit.sides]
        digests = [finish(side.reader, group) for side in audit.sides]
        for folder in folders:
            folder.require_unchanged()
    shares = group.bring(share_facts(audit))
    if not group.leads:
        return {}, {}
    read = checkpoint_facts(audit.sides, evidence, alone, digests, folders, shares)
    receipt = body(audit, evidence, probes, options, read) | {
        **lent,
        "noise_floor": floor,
        "timing": {
            "started": started.isoformat(timespec="seconds"),
            "seconds": round(time.monotonic() - clock, 3),
            "phases": audit.clock.facts(),
            **({"processes": shares} if len(shares) > 1 else {}),
            **({"resume": kept.token} if kept is not None else {}),
        },
    }
    return receipt, window_arrays(probes) | evidence.arrays


def body(
    audit: Walk,
    evidence: Evidence,
    probes: ProbeSet,
    options: AuditOptions,
    read: dict[str, Any],
) -> Receipt:
    """The facts of the receipt that depend on neither the clock, nor a noise-floor run, nor another receipt.

    Args:
        audit: the walk that was done.
        evidence: what it found.
        probes: what was asked.
        options: how it ran.
        read: the facts of each checkpoint.
    """
    specs = [side.spec for side in audit.sides]
    pair = len(specs) == 2
    return {
        "schema": "atlas/receipt/v1",
        "kind": "audit" if pair else "baseline",
        "probe": probe_facts(probes, specs[0]),
        "checkpoints": read,
        "layers": evidence.layers,
        "weights": evidence.ledger.facts() | {"unreplayed": evidence.unreplayed},
        "identity": identity_facts(evidence, specs),
        "vocabulary": {end: evidence.vocabulary.get(end) for end in ("embedding", "head")},
        "controls": {"parameter_distance": evidence.ledger.parameter_distance() if pair else None},
        "method": method_facts(audit, specs, options),
        "environment": environment_facts(),
        "parent": None,
    }


def opened(
    base: Path, tuned: Path | None, probes: ProbeSet, accepted: Mapping[str, Any]
) -> tuple[list[Checkpoint], list[ModelSpec]]:
    """The checkpoints under audit and what they are, from their headers, if they can be compared and measured."""
    checkpoints = [open_checkpoint(path) for path in (base, tuned) if path is not None]
    specs = [resolve(checkpoint, accepted) for checkpoint in checkpoints]
    for checkpoint, spec in zip(checkpoints, specs, strict=True):
        require_allowed(probes, spec, checkpoint.label)
    if len(specs) == 2:
        require_comparable(specs[0], specs[1], checkpoints[0].label, checkpoints[1].label)
    require_measurable(probes, specs[0])
    require_room(
        [layer.moe.router.experts for layer in specs[0].layers if layer.moe],
        (measured_windows(probes), len(probes.windows)),
        len(probes.config.domains),
        [[skipped[0] for skipped in spec.skipped] for spec in specs],
        str(probes.config.path),
    )
    return checkpoints, specs


def prepare(
    checkpoints: list[Checkpoint],
    specs: list[ModelSpec],
    probes: ProbeSet,
    options: AuditOptions,
    group: Group,
) -> Walk:
    """Everything a walk needs, with the memory limit checked before a tensor is read."""
    device = pick_device(options.device, options.place)
    dtype = compute_dtype(options.dtype, specs[0], checkpoints[0])
    config = probes.config
    room = needed(checkpoints, specs, probes, dtype)
    names: tuple[SideName, ...] = ("base", "tuned")
    sides = [
        Side(name, checkpoint, spec, Replay(spec, dtype=dtype, device=device, router_arithmetic=options.router),
             Reader(checkpoint))
        for name, checkpoint, spec in zip(names, checkpoints, specs, strict=False)
    ]  # fmt: skip
    if len(sides) == 2:
        sides[0].reader.shared = shared_files(*checkpoints)
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
        held_tokens=memory.held_tokens(options.memory, room),
        depth=memory.read_ahead(options.memory, room),
        skips=options.skips,
        chart_maps=options.chart_maps,
        group=group,
    )


def shared_files(checkpoint: Checkpoint, other: Checkpoint) -> frozenset[str]:
    """Files of a checkpoint that are files of another one as well, whatever their names there."""
    theirs = set(other.files.values())
    return frozenset(file for file, found in checkpoint.files.items() if found in theirs)


def needed(
    checkpoints: list[Checkpoint], specs: list[ModelSpec], probes: ProbeSet, dtype: torch.dtype
) -> memory.Needs:
    """The memory that an audit needs with this compute dtype."""
    tokens = sum(len(window.tokens) for window in probes.windows)
    everyone = probes.config.evaluation.experts == "all"
    stored = max(
        DTYPE_BITS[tensor.dtype] // 8 for checkpoint in checkpoints for tensor in checkpoint.tensors.values()
    )
    decoded = [bool(checkpoint.encoded) for checkpoint in checkpoints]
    return memory.needs(specs, tokens, dtype.itemsize, stored, everyone=everyone, decoded=decoded)


def measured_windows(probes: ProbeSet) -> int:
    """How many windows are base-role; they come first, and the routed object is read on them."""
    return sum(probes.config.domains[window.domain].role == "base" for window in probes.windows)


def wanted_floor(probes: ProbeSet, spec: ModelSpec, options: AuditOptions) -> Execution | None:
    """How to measure the noise floor: as asked, or as the baseline did where a budget is within ten times of it."""
    if options.noise_floor is not None:
        return options.noise_floor
    stored = stored_floor(options.baseline)
    protected = probes.config.protected_layers.resolve(spec.routed_layers)
    near = within_floor(stored, probes.config.policy.rewrite.budgets(), protected)
    return stored["execution"] if stored and near else None


def measure_floor(
    checkpoint: Checkpoint, spec: ModelSpec, probes: ProbeSet, options: AuditOptions, group: Group
) -> dict[str, Any]:
    """Audit the base against itself: in reverse order and other pieces, or in another compute dtype."""
    assert options.noise_floor is not None
    walked = prepare([checkpoint, checkpoint], [spec, spec], probes, replace(options, chart_maps=0), group)
    first, second = walked.sides
    other = first.replay.dtype if options.noise_floor == "order" else getattr(torch, options.noise_floor)
    kind = ReorderedReplay if options.noise_floor == "order" else Replay
    second.replay = kind(spec, dtype=other, device=first.replay.device, router_arithmetic=options.router)
    walked.measures_noise = True
    if options.resume is not None:
        walked.resume = StateFile(options.resume[1], dependencies(walked, probes, options))
    evidence = walk(walked, probes.windows)
    if not group.leads:
        return group.told(None)
    return group.told(floor_facts(options.noise_floor, evidence.layers, evidence.arrays))


def require_alike(audit: Walk, probes: ProbeSet, options: AuditOptions) -> None:
    """Refuse processes that share an audit and do not see and compute the same, or that outnumber the experts.

    Raises:
        UsageError: E_RANK.
    """
    passes = [list(part) for part in rounds(audit.batches, audit.held_tokens)]
    audit.group.agree(dependencies(audit, probes, options) | {"the memory": passes, "skipping": audit.skips})
    fewest = min(layer.moe.router.experts for layer in audit.sides[0].spec.layers if layer.moe)
    if audit.group.size > fewest:
        raise UsageError(
            "E_RANK",
            f"{audit.group.size} processes",
            f"a layer has {fewest} experts to share",
            "start as many processes at most",
        )


def require_allowed(probes: ProbeSet, spec: ModelSpec, label: str) -> None:
    """Refuse configuration keys that were accepted by hand where a central policy rules and does not allow it."""
    central = probes.config.central
    if spec.accepted and central is not None and "config_keys" not in probes.config.policy.allow:
        raise InputRefused(
            "E_POLICY",
            f"{label}: config.json: {next(iter(spec.accepted))}",
            f"accepted with {OPTION}, which the central policy {central.name} does not allow",
            "whoever owns the policy may write allow: [config_keys] into it",
        )


def require_measurable(probes: ProbeSet, spec: ModelSpec) -> None:
    """Refuse a model without routed layers, and token ids it has no embedding for."""
    if not spec.routed_layers:
        raise InputRefused(
            "E_FAMILY", spec.family, "no layer of this model routes: there is nothing to audit"
        )
    length = max(len(window.tokens) for window in probes.windows)
    for layer in spec.layers:
        limit = getattr(layer.mixer, "longest", None)
        if limit is not None and length > limit:
            raise InputRefused(
                "E_PROBE_TOKENS",
                str(probes.config.path),
                f"a window of {length} tokens, and layer {layer.index} of this {spec.family} model is replayed for "
                f"at most {limit}: beyond, it sees the keys that an earlier layer's indexer chose",
                "register shorter windows",
            )
    highest = max(int(window.tokens.max()) for window in probes.windows)
    if highest >= spec.vocab:
        raise InputRefused(
            "E_PROBE_TOKENS",
            str(probes.config.path),
            f"token id {highest} is beyond the model's vocabulary of {spec.vocab}",
            "register the probe with the tokenizer of this model",
        )


def probe_facts(probes: ProbeSet, spec: ModelSpec) -> dict[str, Any]:
    """What was asked, as registered."""
    described = probes.config.describe()
    resolved = probes.config.protected_layers.resolve(spec.routed_layers)
    return {
        "name": described["name"],
        "lock": probes.lock.facts(),
        "tokenizer": probes.lock.body["tokenizer"],
        "policy": described["policy"],
        "domains": described["domains"],
        "windows": described["windows"],
        "evaluation": described["evaluation"],
        "protected_layers": resolved,
        "overlaps": probes.lock.overlaps(),
        "special_tokens": probes.config.special_tokens,
        "chat_template": probes.lock.body.get("chat_template"),
        "left_out": probes.lock.left_out(),
    }


def checkpoint_facts(
    sides: Sequence[Side],
    evidence: Evidence,
    alone: Sequence[Mapping[str, str | None]],
    digests: Sequence[CheckpointDigest],
    folders: Sequence[Folder],
    shares: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """What was read of each checkpoint, with its digests, by side.

    Args:
        sides: the checkpoints.
        evidence: whose ledger knows the values of their tensors.
        alone: of each, those that the ledger does not know.
        digests: of their stored tensors.
        folders: what stands beside the weights of each.
        shares: what each process read.
    """
    facts: dict[str, Any] = {}
    values: dict[str, str] = {}
    for number, side in enumerate(sides):
        found = evidence.ledger.values(number) | dict(alone[number])
        values = resolved(found, values, side.spec, side.checkpoint, digests[number])
        facts[side.name] = {
            **stored_facts(side, digests[number]),
            **value_digests(side.spec, side.checkpoint, values),
            **folders[number].facts(),
            "bytes_read": sum(share["bytes_read"][side.name] for share in shares),
        }
    return facts


def stored_facts(side: Side, digest: CheckpointDigest) -> dict[str, Any]:
    """What is stored, and its digest."""
    stored = side.checkpoint.tensors.values()
    return {
        "path": side.checkpoint.label,
        "family": side.spec.family,
        "vocabulary": side.spec.vocab,
        "digest": digest.sha256,
        "config_sha256": config_sha256(side.checkpoint),
        "tensors": len(side.checkpoint.tensors),
        "bytes": sum(tensor.nbytes for tensor in stored),
        "dtype": sorted({tensor.dtype for tensor in stored}),
        "quantised": quantised_facts(side.checkpoint),
        "skipped": [
            {"tensor": skipped.name, "reason": skipped.reason, "part": skipped.part}
            for skipped in side.spec.skipped
        ],
        "accepted_config_keys": written(side.spec.accepted),
    }


def quantised_facts(checkpoint: Checkpoint) -> list[dict[str, Any]]:
    """The formats that tensors were decoded from, and how many tensors of each."""
    formats = Counter(entry.encoding for entry in checkpoint.encoded.values())
    return [{"tensors": count, **encoding.describe()} for encoding, count in formats.items()]


def identity_facts(evidence: Evidence, specs: list[ModelSpec]) -> dict[str, Any]:
    """Whether the checkpoints hold the same values (up to a relabelling), and whether expert i is still expert i."""
    aside = {skipped.name for spec in specs for skipped in spec.skipped}
    # Whether the head is stored apart or tied changes nothing where the ledger finds the same bytes.
    described = [{**spec.describe(), "tied": None} for spec in specs]
    same_model = len(specs) == 2 and described[0] == described[1]
    replayed = same_model and all(row.identical for row in evidence.ledger.rows if row.name not in aside)
    return {
        "identical_checkpoints": replayed and nothing_differs(evidence.unreplayed),
        "identical_replayed": replayed,
        "breaches": [breach for layer in evidence.identity for breach in layer["breaches"]],
        "layers": evidence.identity,
    }


def method_facts(audit: Walk, specs: list[ModelSpec], options: AuditOptions) -> dict[str, Any]:
    """Every choice that can move a number."""
    side = audit.sides[0]
    return {
        "model": specs[0].describe(),
        "differences": other_differences(specs[0], specs[1]) if len(specs) == 2 else [],
        "compute_dtype": str(side.replay.dtype).removeprefix("torch."),
        "router_arithmetic": options.router,
        "device": side.replay.device.type,
        "threads": torch.get_num_threads() if options.threads is None else options.threads,
        "batch_tokens": BATCH_TOKENS,
        "evaluation_seed": audit.scope.seed,
        "intervals": "studentised cluster bootstrap over documents; see the reference page",
    }


def share_facts(audit: Walk) -> dict[str, Any]:
    """What this process read, and where its time went."""
    read = {side.name: side.reader.bytes_read for side in audit.sides}
    return {"bytes_read": read, "phases": audit.clock.facts()}


def window_arrays(probes: ProbeSet) -> Arrays:
    """Which window belongs to which domain and document, and how many positions it scores."""
    windows = probes.windows
    columns = {
        "domain": [window.domain for window in windows],
        "document": [window.document for window in windows],
        "tokens": [len(window.tokens) for window in windows],
        "scored": [int(window.scored.sum()) for window in windows],
    }
    return {f"windows.{key}": np.array(column, dtype=np.int32) for key, column in columns.items()}
