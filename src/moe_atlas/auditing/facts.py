"""Facts of a receipt beside the window arrays: probe, checkpoints, identity and method."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import numpy as np
import torch

from moe_atlas.adapters.facts import adapter_facts
from moe_atlas.auditing.layer.batches import BATCH_TOKENS
from moe_atlas.auditing.layer.requantise import narrower_classes
from moe_atlas.auditing.layer.side import Side
from moe_atlas.auditing.opening.folder import Folder
from moe_atlas.auditing.opening.pairing import other_differences
from moe_atlas.auditing.unreplayed import nothing_differs
from moe_atlas.auditing.walk import Evidence, Walk
from moe_atlas.checkpoint.digest import CheckpointDigest, config_sha256
from moe_atlas.checkpoint.source import TensorSource
from moe_atlas.configuration.accepting import written
from moe_atlas.models.spec import ModelSpec
from moe_atlas.options import AuditOptions
from moe_atlas.probes.registration import ProbeSet
from moe_atlas.weights.class_digests import resolve_values, value_digests
from moe_atlas.window_arrays import WINDOWS

Arrays = dict[str, np.ndarray]


def probe_facts(probes: ProbeSet, spec: ModelSpec) -> dict[str, Any]:
    """Return the registered probe and policy."""
    described = probes.config.describe()
    protected = probes.config.protected_layers.resolve(spec.routed_layers)
    return {
        "name": described["name"],
        "lock": probes.lock.facts(),
        "tokenizer": probes.lock.body["tokenizer"],
        "policy": described["policy"],
        "domains": described["domains"],
        "windows": described["windows"],
        "evaluation": described["evaluation"],
        "protected_layers": protected,
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
    """Return the facts of each checkpoint, with its digests, by name.

    Args:
        sides: the checkpoints.
        evidence: the evidence; its ledger has the value digests of most tensors.
        alone: for each checkpoint, value digests of the tensors that the ledger lacks.
        digests: for each checkpoint, digests of the stored tensors.
        folders: for each checkpoint, the files beside the weights.
        shares: the share facts of each process.
    """
    facts: dict[str, Any] = {}
    values: dict[str, str] = {}
    for number, side in enumerate(sides):
        found = evidence.ledger.values(number) | dict(alone[number])
        values = resolve_values(found, values, side.spec, side.checkpoint, digests[number])
        facts[side.name] = {
            **stored_facts(side, digests[number]),
            **value_digests(side.spec, side.checkpoint, values),
            **folders[number].facts(),
            "bytes_read": sum(share["bytes_read"][side.name] for share in shares),
        }
    return facts


def stored_facts(side: Side, digest: CheckpointDigest) -> dict[str, Any]:
    """Return the facts about a checkpoint's stored tensors, with their digest."""
    stored = side.checkpoint.tensors.values()
    adapter = adapter_facts(side.checkpoint, digest)
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
        **({} if adapter is None else {"adapter": adapter}),
    }


def quantised_facts(checkpoint: TensorSource) -> list[dict[str, Any]]:
    """Return the quantised formats of a checkpoint with the number of tensors in each."""
    formats = Counter(entry.encoding for entry in checkpoint.encoded.values())
    return [{"tensors": count, **encoding.describe()} for encoding, count in formats.items()]


def identity_facts(evidence: Evidence, specs: list[ModelSpec]) -> dict[str, Any]:
    """Return whether the checkpoints hold the same values (up to a relabelling), and the expert identity by layer."""
    skipped = {tensor.name for spec in specs for tensor in spec.skipped}
    # A tied head and a separately stored head are equivalent if the ledger finds equal values.
    described = [{**spec.describe(), "tied": None} for spec in specs]
    same_model = len(specs) == 2 and described[0] == described[1]
    replayed = same_model and all(row.identical for row in evidence.ledger.rows if row.name not in skipped)
    return {
        "identical_checkpoints": replayed and nothing_differs(evidence.unreplayed),
        "identical_replayed": replayed,
        "breaches": [breach for layer in evidence.identity for breach in layer["breaches"]],
        "layers": evidence.identity,
    }


def method_facts(walk: Walk, specs: list[ModelSpec], options: AuditOptions) -> dict[str, Any]:
    """Return every choice that can change a number."""
    side = walk.sides[0]
    return {
        "model": specs[0].describe(),
        "differences": (
            [*other_differences(*specs), *narrower_classes(walk.sides)] if len(specs) == 2 else []
        ),
        "compute_dtype": str(side.replay.dtype).removeprefix("torch."),
        "router_arithmetic": options.router,
        "device": side.replay.device.type,
        "threads": torch.get_num_threads() if options.threads is None else options.threads,
        "batch_tokens": BATCH_TOKENS,
        "evaluation_seed": walk.scope.seed,
        "intervals": "studentised cluster bootstrap over documents; see the reference page",
    }


def share_facts(walk: Walk) -> dict[str, Any]:
    """Return the bytes that this process read, and its time by phase."""
    read = {side.name: side.reader.bytes_read for side in walk.sides}
    return {"bytes_read": read, "phases": walk.clock.facts()}


def timing_facts(
    walk: Walk, shares: Sequence[Mapping[str, Any]], started: datetime, seconds: float
) -> dict[str, Any]:
    """Return the time of an audit by phase, with the shares of several processes and the token of its state.

    Args:
        walk: the finished walk.
        shares: the share facts of each process.
        started: time at which the audit started.
        seconds: duration of the audit.
    """
    return {
        "started": started.isoformat(timespec="seconds"),
        "seconds": round(seconds, 3),
        "phases": walk.clock.facts(),
        **({"processes": shares} if len(shares) > 1 else {}),
        **({} if walk.resume.token is None else {"resume": walk.resume.token}),
    }


def window_arrays(probes: ProbeSet) -> Arrays:
    """Return the domain, document, length and number of scored positions of every window."""
    windows = probes.windows
    columns = {
        "domain": [window.domain for window in windows],
        "document": [window.document for window in windows],
        "tokens": [len(window.tokens) for window in windows],
        "scored": [int(window.scored.sum()) for window in windows],
    }
    return {array.name: np.array(columns[array.key], dtype=array.dtype) for array in WINDOWS}
