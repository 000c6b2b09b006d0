"""What a receipt says of an audit beside its window arrays: the probe, the checkpoints, their identity, the method."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

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
from moe_atlas.weights.class_digests import resolved, value_digests
from moe_atlas.window_arrays import WINDOWS

Arrays = dict[str, np.ndarray]


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


def quantised_facts(checkpoint: TensorSource) -> list[dict[str, Any]]:
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


def method_facts(walk: Walk, specs: list[ModelSpec], options: AuditOptions) -> dict[str, Any]:
    """Every choice that can move a number."""
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
    """What this process read, and where its time went."""
    read = {side.name: side.reader.bytes_read for side in walk.sides}
    return {"bytes_read": read, "phases": walk.clock.facts()}


def window_arrays(probes: ProbeSet) -> Arrays:
    """Which window belongs to which domain and document, and how many positions it scores."""
    windows = probes.windows
    columns = {
        "domain": [window.domain for window in windows],
        "document": [window.document for window in windows],
        "tokens": [len(window.tokens) for window in windows],
        "scored": [int(window.scored.sum()) for window in windows],
    }
    return {array.name: np.array(columns[array.key], dtype=array.dtype) for array in WINDOWS}
