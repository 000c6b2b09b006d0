"""Continuing an audit that was killed, from what its last finished layer left on disk.

After every layer the states of all windows, the evidence so far and what was hashed of each checkpoint replace one
file beside the receipt. Nothing in it is taken on trust when the audit goes on: the file carries a digest of itself,
every input and choice that can move a bit must be the same, and the bytes that were consumed are read and hashed
again. There is no handler to rely on: killed at any moment, the audit leaves the state of a whole layer or none.
"""

from __future__ import annotations

import os
import platform
import secrets
from collections.abc import Mapping
from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np
import torch

from moe_atlas.auditing.layer.side import Side
from moe_atlas.auditing.processes.digests import digest_of
from moe_atlas.auditing.state_file import read_state, state_facts, write_state
from moe_atlas.auditing.walk import Walk
from moe_atlas.errors import AtlasError, UsageError
from moe_atlas.options import AuditOptions
from moe_atlas.probes.registration import ProbeSet
from moe_atlas.receipt.canonical import parse_receipt
from moe_atlas.receipt.files import read_bounded
from moe_atlas.system.limits import MAX_RECEIPT_BYTES
from moe_atlas.text import shown
from moe_atlas.version import __version__
from moe_atlas.weights.comparison import TensorChange


class StateFile:
    """Keeps the state in a file.

    Args:
        path: the file; it is replaced after every layer.
        parts: everything that the state depends on, by what a reader would call it; JSON values.

    Attributes:
        token: a name of this audit that nobody else has; its receipt carries it, so that a resumed audit knows the one
            that it wrote itself.
    """

    def __init__(self, path: Path, parts: Mapping[str, Any]) -> None:
        self.path = path
        self.token = secrets.token_hex(16)
        self._parts = {name: digest_of(value) for name, value in parts.items()}

    def restore(self, walk: Walk) -> int:
        """Bring back the latest state.

        Raises:
            UsageError: ``E_RESUME`` when the state is of another audit, with what differs.
            IntegrityError: ``E_RESUME`` for a damaged file, ``E_CHANGED`` when a checkpoint's bytes are not those
                that were consumed.
        """
        if not os.path.lexists(self.path):
            return 0
        facts, tensors = read_state(self.path)
        differing = sorted(name for name in self._parts if self._parts[name] != facts["parts"].get(name))
        if differing:
            problem = f"was left by another audit: {', '.join(differing)} differ"
            hint = "run that audit again as it was, or remove the file to start anew"
            raise UsageError("E_RESUME", shown(str(self.path)), problem, hint)
        for side, consumed in zip(walk.sides, facts["readers"], strict=True):
            side.reader.restore(consumed["hashed"], consumed["bytes_read"])
            side.states = [_restored(walk, side, n, tensors) for n in range(len(walk.batches))]
        self.token = facts["token"]
        walk.in_step = facts["in_step"]
        _restore_evidence(walk, facts, tensors)
        return int(facts["done"])

    def save(self, walk: Walk, done: int) -> None:
        """Replace the state by that after `done` layers.

        Raises:
            ResourceExhausted: ``E_DISK`` when the disk is full; the state of the layer before stays.
        """
        evidence = walk.evidence
        facts = {
            "parts": self._parts,
            "token": self.token,
            "done": done,
            "in_step": walk.in_step,
            "readers": [
                {"hashed": side.reader.hashed(), "bytes_read": side.reader.bytes_read} for side in walk.sides
            ],
            "layers": evidence.layers,
            "identity": evidence.identity,
            "vocabulary": evidence.vocabulary,
            "rows": [astuple(row) for row in evidence.ledger.rows],
            "as_stored": [astuple(row) for row in evidence.ledger.as_stored],
            "changed_layers": list(evidence.ledger.changed_layers),
        }
        tensors = {
            f"{side.name}.{n}": state
            for side in walk.sides
            for n, state in enumerate(side.states)
            if side is walk.sides[0] or not walk.in_step
        }
        tensors |= {f"array:{name}": torch.from_numpy(array) for name, array in evidence.arrays.items()}
        write_state(self.path, facts, tensors)


def dependencies(walk: Walk, probes: ProbeSet, options: AuditOptions) -> dict[str, Any]:
    """Everything that moves a bit of an audit's state, by what a reader would call it."""
    software = (__version__, torch.__version__, np.__version__, platform.machine())
    return {
        **{f"the {side.name} checkpoint": _stored(side) for side in walk.sides},
        "the probe registration": probes.lock.digest,
        "the software": [*software, torch.backends.cpu.get_cpu_capability()],
        "the options": {
            "dtype": [str(side.replay.dtype) for side in walk.sides],
            "replay": [type(side.replay).__name__ for side in walk.sides],
            "device": [side.replay.device.type for side in walk.sides],
            "router": options.router,
            "threads": torch.get_num_threads(),
            "batches": [list(batch.tokens_WS.shape) for batch in walk.batches],
            "chart maps": walk.chart_maps,
        },
        "the noise floor": {str(layer): astuple(band) for layer, band in walk.bands.items()},
    }


def _stored(side: Side) -> list[Any]:
    """A checkpoint as its headers and its configuration describe it; its bytes are compared when they are read."""
    tensors = [astuple(tensor) for tensor in side.checkpoint.tensors.values()]
    return [side.checkpoint.config, side.spec.describe(), tensors]


def state_paths(receipt: Path) -> tuple[Path, Path]:
    """Where an audit's state is kept, and that of its noise floor: hidden files beside the receipt."""
    folder, name = receipt.parent, receipt.name
    return folder / f".{name}.resume", folder / f".{name}.floor-resume"


def owns(state: Path, receipt: Path) -> bool:
    """Whether the audit that left a state wrote the receipt that stands beside it, killed before it could say so."""
    facts = state_facts(state)
    try:
        written = parse_receipt(read_bounded(receipt, MAX_RECEIPT_BYTES), shown(str(receipt)))
    except AtlasError:
        return False
    token = (written.get("timing") or {}).get("resume")
    return facts is not None and token is not None and token == facts.get("token")


def _restored(walk: Walk, side: Side, number: int, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    """A batch's state of one side; one that both sides shared was kept once and is shared again."""
    kept = tensors.pop(f"{side.name}.{number}", None)
    return walk.sides[0].states[number] if kept is None else kept.to(side.replay.device)


def _restore_evidence(walk: Walk, facts: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> None:
    evidence = walk.evidence
    evidence.layers[:] = facts["layers"]
    evidence.identity[:] = facts["identity"]
    evidence.vocabulary |= facts["vocabulary"]
    evidence.ledger.rows[:] = [_row(row) for row in facts["rows"]]
    evidence.ledger.as_stored[:] = [_row(row) for row in facts["as_stored"]]
    evidence.ledger.changed_layers |= set(facts["changed_layers"])
    for name, tensor in tensors.items():
        evidence.arrays[name.removeprefix("array:")] = tensor.numpy()


def _row(values: list[Any]) -> TensorChange:
    """A ledger row; JSON made lists of its pairs."""
    fields: list[Any] = [tuple(value) if isinstance(value, list) else value for value in values]
    return TensorChange(*fields)
