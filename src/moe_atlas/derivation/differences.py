"""Differences between two checkpoints that no measurement shows: keys of config.json, files beside the weights.

The receipt records these facts of each checkpoint under ``checkpoints``. This module compares the facts of two
checkpoints, and compares a checkpoint on disk with recorded facts. Torch-free.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from moe_atlas.checkpoint.config_keys import difference, flat
from moe_atlas.checkpoint.side_files import QUIET, WEIGHTS, file_facts
from moe_atlas.checkpoint.source import TensorSource
from moe_atlas.views.receipt import ReceiptView
from moe_atlas.views.registered import CheckpointFacts, FilesBeside, ListedFile

Facts = Mapping[str, Any]


def derive_differences(receipt: ReceiptView) -> dict[str, Any]:
    """Return the differing keys and files of a pair, those that a server acts on first; none for a baseline."""
    if receipt.is_baseline:
        return {"config": [], "files": []}
    base, tuned = receipt.checkpoint("base"), receipt.checkpoint("tuned")
    return {
        "config": difference(base.config, tuned.config),
        "files": list(_files(base.files, tuned.files)),
    }


def _files(base: FilesBeside, tuned: FilesBeside) -> Iterator[dict[str, Any]]:
    """Yield the files that one checkpoint lacks, that differ, or whose bytes were not read in both checkpoints."""
    one, other = ({row.file: row for row in side.listed} for side in (base, tuned))
    order = [*other, *(name for name in one if name not in other)]
    for name in order:
        change = _change(one.get(name), other.get(name))
        if change is not None:
            yield {"file": name, "kind": (other.get(name) or one[name]).kind, "change": change}
    if base.more.facts != tuned.more.facts:
        yield {"file": "further files, which are not listed one by one", "kind": "other", "change": "changed"}


def _change(base: ListedFile | None, tuned: ListedFile | None) -> str | None:
    if base is None or tuned is None:
        return "added" if base is None else "removed"
    if base.bytes is None or tuned.bytes is None:
        return None if base.kind in QUIET else "not compared"
    if base.sha256 is None or tuned.sha256 is None:
        return "changed" if base.bytes != tuned.bytes else "not compared"
    if base.sha256 == tuned.sha256:
        return None
    return None if base.content is not None and base.content == tuned.content else "changed"


def uncovered(files: FilesBeside) -> list[ListedFile]:
    """Return the listed files from which a loader might take weights, and the unread files that a server may act on."""
    return [
        row for row in files.listed if row.kind == WEIGHTS or (row.sha256 is None and row.kind not in QUIET)
    ]


def mismatches(recorded: CheckpointFacts, checkpoint: TensorSource) -> Iterator[tuple[str, str]]:
    """Yield every key of config.json and every side file in which a checkpoint differs from the recorded checkpoint.

    Documentation, records of the trainer and folders do not count, because they do not change how a server serves.
    """
    config, files = flat(checkpoint.config), FilesBeside(file_facts(checkpoint.beside()))
    for key in sorted(recorded.config.keys() | config.keys()):
        expected, found = recorded.config.get(key), config.get(key)
        if expected != found:
            yield f"config.{key}", f"expected {_value(expected)}, the checkpoint has {_value(found)}"
    one, other = ({row.file: row.facts for row in side.listed} for side in (recorded.files, files))
    for name in sorted(one.keys() | other.keys()):
        problem = _mismatch(one.get(name), other.get(name))
        if problem is not None:
            yield f"files.{name}", problem
    if recorded.files.more.facts != files.more.facts:
        yield "files.more", "the files that are not listed one by one are not the recorded ones"


def _mismatch(recorded: Facts | None, found: Facts | None) -> str | None:
    kind = (found or recorded or {})["kind"]
    if kind in QUIET or recorded == found:
        return None
    if recorded is None:
        return f"a file ({kind}) that was not there when it was audited"
    if found is None:
        return f"a file ({kind}) that was there when it was audited is gone"
    keys = ("sha256", "bytes", "unread")
    key = next((key for key in keys if recorded[key] != found[key]), "kind")
    return f"expected {key} {_value(recorded[key])}, the checkpoint has {_value(found[key])}"


def _value(value: Any) -> str:
    return "none" if value is None else str(value)
