"""Make an in-toto Statement v1 about the audit of a tuned checkpoint.

in-toto matches a statement to any artifact that has the digest of one of its subjects. So the base checkpoint must not
be a subject, and one subject per shard would not show swapped or renamed shards. The only subject is the manifest of
the tuned checkpoint's files in the format of ``sha256sum``, which stock tools check. The base is a dependency.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moe_atlas.adapters.joined import Joined, adapter_mismatches, open_stored
from moe_atlas.checkpoint.digest import (
    CheckpointDigest,
    config_sha256,
    digest_checkpoint,
    digest_with_files,
)
from moe_atlas.checkpoint.index import Checkpoint
from moe_atlas.checkpoint.side_files import QUIET
from moe_atlas.checkpoint.source import TensorSource
from moe_atlas.checkpoint.training.source import TrainingSource
from moe_atlas.derivation.differences import mismatches, uncovered
from moe_atlas.errors import InputRefused, IntegrityError, UsageError
from moe_atlas.receipt.canonical import encode_receipt
from moe_atlas.receipt.verify import intact_receipt
from moe_atlas.text import shown
from moe_atlas.views.receipt import Evidence, ReceiptView
from moe_atlas.views.registered import CheckpointFacts, FilesBeside, LockFacts

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "urn:moe-atlas:attestation:audit:v1"
MANIFEST_NAME = "SHA256SUMS"
TENSORS = "moeAtlasTensors"
"""Name of the digest algorithm over tensors instead of a file: sha256 over the sorted lines of all tensors."""

_TESTS = {True: "passedTests", False: "failedTests", None: "undeterminedTests"}


@dataclass(frozen=True)
class Attestation:
    """A statement and the manifest that is its subject.

    Attributes:
        statement: the Statement's canonical bytes: ASCII JSON, one final newline.
        manifest: the SHA256SUMS file's bytes.
        verdict: the receipt's verdict.
        qualified: what restricts the meaning of the verdict, by code.
        uncovered: names of files that a loader might take and the manifest leaves out.
    """

    statement: bytes
    manifest: bytes
    verdict: str
    qualified: list[str]
    uncovered: list[str]


def attest(receipt_path: Path, checkpoint_path: Path, like: Path | None = None) -> Attestation:
    """Verify a receipt and the tuned checkpoint, and make the statement.

    Args:
        receipt_path: the receipt of an audit, with its window data beside it.
        checkpoint_path: the tuned checkpoint; every file is read once.
        like: the base, where the tuned checkpoint is an adapter or a training checkpoint. The manifest covers the tuned
            checkpoint's files; the base's tensors and the files beside them, which an adapter needs, are held against
            the receipt.

    Raises:
        IntegrityError: ``E_RECEIPT`` if the receipt does not re-derive; ``E_DIGEST`` if the checkpoint, its
            configuration or a file beside its weights differs from the audit; ``E_CHANGED`` if a file changes while it
            is read.
        UsageError: ``E_KIND`` for a baseline or a look, which judge nothing.
        InputRefused: every refusal of `open_checkpoint`; ``E_NAME`` for a file name that ``sha256sum`` would escape.
    """
    receipt = ReceiptView(intact_receipt(receipt_path))
    if receipt.kind != "audit":
        raise UsageError(
            "E_KIND",
            shown(str(receipt_path)),
            f"is a {receipt.kind}, which judges nothing",
            "attest an audit",
        )
    checkpoint, digest, files = _digested(checkpoint_path, like)
    audited = receipt.checkpoint("tuned")
    found = (
        ("tensors", audited.digest, digest.sha256),
        ("configuration", audited.config_sha256, config_sha256(checkpoint)),
    )
    for what, expected, value in found:
        if value != expected:
            problem = f"is not the audited checkpoint: expected {what} {expected}, found {value}"
            raise IntegrityError(
                "E_DIGEST", shown(str(checkpoint_path)), problem, "give the tuned checkpoint"
            )
    for key, value, other in adapter_mismatches(audited.facts, checkpoint):
        problem = f"is not the audited checkpoint: {key}: expected {shown(value)}, found {shown(other)}"
        raise IntegrityError("E_DIGEST", shown(str(checkpoint_path)), problem, "give the tuned checkpoint")
    beside = next(mismatches(audited, checkpoint), None)
    if beside is not None:
        where, problem = beside
        raise IntegrityError(
            "E_DIGEST",
            shown(str(checkpoint_path)),
            f"is not the audited checkpoint: {shown(where)}: {shown(problem, 200)}",
            "audit it as it is; `atlas verify --checkpoint` lists every difference",
        )
    named = covered(audited.files)
    if isinstance(checkpoint, Joined):
        own = {entry.file for entry in checkpoint.adapter.beside()}
        named = {file: sha256 for file, sha256 in named.items() if file in own}
    manifest = sha256sums(files | named)
    statement = {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": MANIFEST_NAME, "digest": {"sha256": hashlib.sha256(manifest).hexdigest()}}],
        "predicateType": PREDICATE_TYPE,
        "predicate": predicate(receipt, receipt_path),
    }
    return Attestation(
        encode(statement), manifest, str(receipt.verdict), list(receipt.qualified), _uncovered(audited)
    )


def _digested(path: Path, like: Path | None) -> tuple[TensorSource, CheckpointDigest, dict[str, str]]:
    """Open the tuned checkpoint and read it once; return it, its digest and the sha256 of its own files."""
    opened = open_stored(path, like)
    if isinstance(opened, Checkpoint):
        return opened, *digest_with_files(opened)
    if isinstance(opened, TrainingSource):
        return opened, digest_checkpoint(opened), opened.sha256_of_files()
    assert isinstance(opened, Joined)
    _, files = digest_with_files(opened.adapter)
    return opened, digest_checkpoint(opened), files


def covered(files: FilesBeside) -> dict[str, str]:
    """Return by name the sha256 of every file beside the weights that the audit read and a server may use."""
    named = {row.file for row in uncovered(files)}
    rows = [row for row in files.listed if row.file not in named and row.kind not in QUIET]
    return {row.file: row.sha256 for row in rows if row.sha256 is not None}


def _uncovered(audited: CheckpointFacts) -> list[str]:
    """Return the names of files that a loader might take and the manifest leaves out, because no audit read them."""
    further = audited.files.more.files
    more = [f"{further} more files"] if further else []
    return [row.file for row in uncovered(audited.files)] + more


def sha256sums(files: Mapping[str, str]) -> bytes:
    """Return the manifest that ``sha256sum -c`` reads, sorted by name.

    Raises:
        InputRefused: ``E_NAME`` for a name with a backslash or a character that does not print.
    """
    for name in files:
        if "\\" in name or not name.isprintable():
            raise InputRefused(
                "E_NAME", shown(name), "this file name cannot stand in a manifest", "rename it"
            )
    return "".join(f"{files[name]}  {name}\n" for name in sorted(files)).encode()


def predicate(receipt: ReceiptView, path: Path) -> dict[str, Any]:
    """Return the statement's predicate.

    The field names are those of in-toto's test-result. ``result`` is PASSED for a pass and FAILED for every other
    verdict. An inconclusive audit is never WARNED, because a policy may let WARNED through. ``verdict`` and
    ``undeterminedTests`` tell an inconclusive audit from a failed audit; ``qualified`` tells a pass that judged less.
    """
    tests: dict[str, list[str]] = {key: [] for key in _TESTS.values()}
    for name, found in receipt.predicates.items():
        tests[_TESTS[found.passed]].append(name)
    tuned, evidence = receipt.checkpoint("tuned"), receipt.evidence
    return {
        "result": "PASSED" if receipt.verdict == "pass" else "FAILED",
        "verdict": receipt.verdict,
        "qualified": list(receipt.qualified),
        "configuration": _configuration(receipt.probe.lock),
        **tests,
        "outcomes": {name: found.outcome for name, found in receipt.predicates.items()},
        "stage": receipt.probe.policy.stage,
        "tuned": {"name": "tuned checkpoint", "digest": {TENSORS: tuned.digest}},
        "uncovered": _uncovered(tuned),
        "resolvedDependencies": [
            {"name": "base checkpoint", "digest": {TENSORS: receipt.checkpoint("base").digest}}
        ],
        "evidence": [
            {
                "name": path.name,
                "digest": {"sha256": hashlib.sha256(encode_receipt(receipt.facts)).hexdigest()},
            },
            {"name": evidence.windows, "digest": {"sha256": evidence.sha256}},
            *_token_data(evidence),
        ],
    }


def _token_data(evidence: Evidence) -> list[dict[str, Any]]:
    """Return the entry on the token file, if the audit kept one."""
    named = evidence.tokens
    return [] if named is None else [{"name": named.file, "digest": {"sha256": named.sha256}}]


def _configuration(lock: LockFacts | None) -> list[dict[str, Any]]:
    """Return the entries on the registration: the lock and, if there is one, the central policy."""
    if lock is None:
        return []
    annotations = {"registeredAt": lock.registered_at, "policySha256": lock.policy_sha256}
    found: list[dict[str, Any]] = [
        {"name": "probes.lock.json", "digest": {"sha256": lock.sha256}, "annotations": annotations}
    ]
    central = lock.policy_from
    if central is not None:
        found.append({"name": central.name, "digest": {"sha256": central.sha256}})
    return found


def encode(value: Mapping[str, Any]) -> bytes:
    """Return ASCII JSON with a final newline; equal values give equal bytes."""
    return json.dumps(value, indent=1, ensure_ascii=True, allow_nan=False).encode("ascii") + b"\n"
