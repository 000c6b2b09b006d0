"""Resume an audit that was killed, from the state that it saved after its last finished layer.

After every layer, the audit replaces a state file beside the receipt. The file holds the states of all windows, the
evidence so far, and the hash progress of each checkpoint. A resumed audit verifies all of it: the file has a digest of
itself, every input and choice that can change a bit must be the same, and all bytes read so far are read and hashed
again. No signal handler is needed: an audit that is killed at any moment leaves the state of a whole layer or none.
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

from moe_atlas.adapters.facts import semantics
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
    """A store that keeps the state of a walk in a file.

    Args:
        path: the file, which `save` replaces after every layer.
        parts: everything on which the state depends, by the name that messages use; JSON values.

    Attributes:
        path: the file.
        token: a unique name of this audit. The receipt holds it, so a resumed audit recognises its own receipt.
    """

    def __init__(self, path: Path, parts: Mapping[str, Any]) -> None:
        self.path = path
        self.token = secrets.token_hex(16)
        self._parts = {name: digest_of(value) for name, value in parts.items()}

    def restore(self, walk: Walk) -> int:
        """Restore the latest state; return the number of finished layers, 0 without a state.

        Raises:
            UsageError: ``E_RESUME`` for the state of another audit, with the parts that differ.
            IntegrityError: ``E_RESUME`` for a damaged file, ``E_CHANGED`` if bytes of a checkpoint that were read
                before have changed.
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
        """Replace the file by the state after `done` layers.

        Raises:
            ResourceExhausted: ``E_DISK`` when the disk is full; the previous file stays.
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
    """Return everything that can change a bit of an audit's state, by the name that messages use."""
    return {
        **{f"the {side.name} checkpoint": _stored(side) for side in walk.sides},
        **settings(walk, probes, options),
    }


def settings(walk: Walk, probes: ProbeSet, options: AuditOptions) -> dict[str, Any]:
    """Return what else than the checkpoints can change a bit of an audit, by the name that messages use."""
    software = (__version__, torch.__version__, np.__version__, platform.machine())
    return {
        "the probe registration": probes.lock.digest,
        "the software": [*software, torch.backends.cpu.get_cpu_capability()],
        "the options": {
            "dtype": [str(side.replay.dtype) for side in walk.sides],
            "replay": [type(side.replay).__name__ for side in walk.sides],
            "device": [side.replay.device.type for side in walk.sides],
            "copies": [side.transform and side.transform.describe() for side in walk.sides],
            "router": options.router,
            "threads": torch.get_num_threads(),
            "batches": [list(batch.tokens_WS.shape) for batch in walk.batches],
            "chart maps": walk.chart_maps,
            "tokens": walk.keeps_tokens,
        },
        "the noise floor": {str(layer): astuple(band) for layer, band in walk.bands.items()},
    }


def _stored(side: Side) -> list[Any]:
    """Return the headers and the configuration of a checkpoint; `restore` verifies its bytes separately."""
    tensors = [astuple(tensor) for tensor in side.checkpoint.tensors.values()]
    return [side.checkpoint.config, side.spec.describe(), tensors, semantics(side.checkpoint)]


def state_paths(receipt: Path) -> tuple[Path, Path, Path]:
    """Return the state files of an audit, its noise floor and its yardstick: hidden files beside the receipt."""
    folder, name = receipt.parent, receipt.name
    return folder / f".{name}.resume", folder / f".{name}.floor-resume", folder / f".{name}.yardstick-resume"


def owns(state: Path, receipt: Path) -> bool:
    """Return whether the audit that left a state also wrote the receipt, before it was killed."""
    facts = state_facts(state)
    try:
        written = parse_receipt(read_bounded(receipt, MAX_RECEIPT_BYTES), shown(str(receipt)))
    except AtlasError:
        return False
    token = (written.get("timing") or {}).get("resume")
    return facts is not None and token is not None and token == facts.get("token")


def _restored(walk: Walk, side: Side, number: int, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return a batch's state of one checkpoint; a state that both checkpoints share was saved once."""
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
    """Return a ledger row from its JSON values; JSON turns the row's pairs into lists."""
    fields: list[Any] = [tuple(value) if isinstance(value, list) else value for value in values]
    return TensorChange(*fields)
