"""Verify a receipt against its evidence, and list every mismatch.

Verification trusts nothing in a receipt. From the facts and the window arrays it computes both digests, every derived
number, every predicate, claim and the verdict again, and it checks the form. Torch-free.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moe_atlas.adapters.joined import adapter_mismatches, open_stored
from moe_atlas.checkpoint.digest import config_sha256, digest_checkpoint
from moe_atlas.derivation.derive import DERIVATION, SCHEMA, derive
from moe_atlas.derivation.differences import mismatches
from moe_atlas.errors import AtlasError, InputRefused, IntegrityError
from moe_atlas.probes.load import load_probes
from moe_atlas.probes.lock import counted, lock_path, read_lock
from moe_atlas.receipt.array_file import Arrays
from moe_atlas.receipt.canonical import encode_receipt, parse_receipt, receipt_digest
from moe_atlas.receipt.files import read_bounded
from moe_atlas.receipt.schema import schema_problems, window_problems
from moe_atlas.receipt.token_file import recorded_tokens, token_problems
from moe_atlas.receipt.window_file import decode_windows
from moe_atlas.system.limits import MAX_RECEIPT_BYTES, MAX_WINDOW_BYTES
from moe_atlas.text import shown
from moe_atlas.views.registered import CheckpointFacts
from moe_atlas.views.view import StrangeReceipt

RELATIVE = 1e-9  # another machine may add in another order
ABSOLUTE = 1e-12
# Errors of arithmetic on a receipt that has the right form but absurd contents.
_ABSURD = (ValueError, IndexError, ArithmeticError, RecursionError)


@dataclass(frozen=True)
class Mismatch:
    """A disagreement between a receipt and its evidence.

    Attributes:
        path: dotted place in the receipt, or name of the file.
        problem: what was expected and found.
    """

    path: str
    problem: str


@dataclass
class VerifyReport:
    """What verification found.

    Attributes:
        mismatches: everything that does not agree; empty for an intact receipt.
        kind: ``audit`` or ``baseline``; None when unreadable.
        verdict: the receipt's own verdict, to be trusted only without mismatches; None for a baseline.
        receipt: the parsed receipt; None when it cannot be parsed.
        checked: what was compared, in words.
        absent: optional files that the receipt names and that are not beside it, in words.
    """

    mismatches: list[Mismatch] = field(default_factory=list)
    kind: str | None = None
    verdict: str | None = None
    receipt: dict[str, Any] | None = None
    checked: list[str] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)

    def add(self, path: str, problem: str) -> None:
        """Record a mismatch."""
        self.mismatches.append(Mismatch(path, problem))


def verify(
    receipt_path: Path,
    probe: Path | None = None,
    checkpoint: Path | None = None,
    policy_from: Path | None = None,
    like: Path | None = None,
) -> VerifyReport:
    """Check a receipt against its window data and, where given, its probe file and tuned checkpoint.

    Args:
        receipt_path: the receipt; its window data and token data are looked for beside it under the recorded names.
            Token data may be absent: nothing in the receipt follows from them.
        probe: a probe file, whose lock, policy and domains must be those of the receipt.
        checkpoint: the tuned checkpoint (of a baseline: the checkpoint), whose weights are hashed again.
        policy_from: the central policy file under which the probe file was registered.
        like: the base, where `checkpoint` is an adapter or a training checkpoint.

    Raises:
        UsageError: the receipt, or a file named beside it, does not exist.
        InputRefused: it is no regular file or beyond the size limit; ``E_DERIVATION`` when it is whole, but its
            verdict was derived by other rules than these. Anything else that is wrong with it is a mismatch.
    """
    report = VerifyReport()
    raw = read_bounded(receipt_path, MAX_RECEIPT_BYTES)
    receipt = _parsed(raw, receipt_path, report)
    if receipt is None:
        return report
    windows = _windows(receipt_path, receipt, report)
    if windows is not None:
        _rederive(receipt, windows, report)
        _check_tokens(receipt_path, receipt, windows, report)
    if probe is not None:
        _check_probe(receipt, probe, policy_from, report)
    if checkpoint is not None:
        _check_checkpoint(receipt, checkpoint, like, report)
    return report


def intact_receipt(path: Path) -> dict[str, Any]:
    """Return a receipt that verifies against its window data.

    Raises:
        AtlasError: as `verify`; ``E_RECEIPT`` (IntegrityError) when anything does not agree.
    """
    report = verify(path)
    if report.mismatches or report.receipt is None:
        first = report.mismatches[0]
        problem = (
            f"does not verify ({len(report.mismatches)} mismatches), first {first.path}: {first.problem}"
        )
        raise IntegrityError("E_RECEIPT", shown(str(path)), problem, "see `atlas verify`")
    return report.receipt


def _parsed(raw: bytes, path: Path, report: VerifyReport) -> dict[str, Any] | None:
    """Check the form of the receipt: strict JSON, the documented schema, canonical bytes, its own digest."""
    try:
        receipt = parse_receipt(raw, path.name)
    except AtlasError as error:
        report.add("receipt", str(error))
        return None
    _require_derivation(raw, receipt, path)
    problems = schema_problems(receipt)
    for where, problem in problems:
        report.add(where, problem)
    if problems:
        return None
    report.receipt, report.kind, report.verdict = receipt, receipt["kind"], receipt["verdict"]
    report.checked.append("form")
    if encode_receipt(receipt) != raw:
        report.add("receipt", "not in canonical form: its bytes are not those that were written")
    if receipt_digest(receipt) != receipt["evidence"]["receipt_sha256"]:
        report.add("evidence.receipt_sha256", "the receipt was changed after it was written")
    report.checked.append("receipt digest")
    return receipt


def _require_derivation(raw: bytes, receipt: Mapping[str, Any], path: Path) -> None:
    """Refuse an undamaged receipt of other rules; verification goes on to list the damage of a damaged receipt.

    Raises:
        InputRefused: ``E_DERIVATION``.
    """
    found = receipt.get("derivation")
    if found == DERIVATION or receipt.get("schema") != SCHEMA or not _is_sealed(raw, receipt):
        return
    version = (
        "before derivations had a version" if found is None else f"by derivation {shown(repr(found), 40)}"
    )
    environment = receipt.get("environment")
    wrote = environment.get("moe_atlas") if isinstance(environment, Mapping) else None
    writer = f"moe-atlas {shown(str(wrote), 40)}" if wrote else "the version that wrote it"
    problem = f"its verdict was derived {version}, this atlas derives by {DERIVATION}"
    raise InputRefused(
        "E_DERIVATION", shown(str(path)), problem, f"verify it with {writer}, or audit the pair again"
    )


def _is_sealed(raw: bytes, receipt: Mapping[str, Any]) -> bool:
    """Return whether the bytes are those that were written, according to the digest of the receipt in them."""
    evidence = receipt.get("evidence")
    if not isinstance(evidence, Mapping) or encode_receipt(receipt) != raw:
        return False
    return bool(evidence.get("receipt_sha256") == receipt_digest(receipt))


def _windows(path: Path, receipt: Mapping[str, Any], report: VerifyReport) -> Arrays | None:
    """Check the window data: they exist, and have the recorded digest, the canonical form and matching shapes."""
    name = receipt["evidence"]["windows"]
    beside = path.with_name(name)
    try:
        raw = read_bounded(beside, MAX_WINDOW_BYTES)
    except AtlasError as error:
        report.add("evidence.windows", str(error))
        return None
    if hashlib.sha256(raw).hexdigest() != receipt["evidence"]["sha256"]:
        report.add("evidence.sha256", "the window data are not those that were recorded")
    try:
        windows = decode_windows(raw, name)
    except AtlasError as error:
        report.add("evidence.windows", str(error))
        return None
    problems = window_problems(receipt, windows)
    for where, problem in problems:
        report.add(where, problem)
    report.checked.append("window data")
    return None if problems else windows


def _check_tokens(path: Path, receipt: Mapping[str, Any], windows: Arrays, report: VerifyReport) -> None:
    """The token data: absent, or with the recorded digest, of the expected form and from the same tokens."""
    named = receipt["evidence"].get("tokens")
    if named is None:
        return
    if not os.path.lexists(path.with_name(named["file"])):
        report.absent.append(f"token data {shown(named['file'])}: no number or verdict follows from them")
        return
    try:
        tokens = recorded_tokens(path, receipt)
    except AtlasError as error:
        report.add("evidence.tokens", str(error))
        return
    for where, problem in token_problems(receipt, windows, tokens or {}):
        report.add(where, problem)
    report.checked.append("token data")


def _rederive(receipt: Mapping[str, Any], windows: Arrays, report: VerifyReport) -> None:
    try:
        fresh = derive(receipt, windows)
    except AtlasError as error:
        report.add("receipt", f"cannot be derived again: {error}")
        return
    except StrangeReceipt as error:
        report.add(error.path, f"cannot be derived again: {error.problem}")
        return
    except _ABSURD as error:
        report.add("receipt", f"cannot be derived again: {type(error).__name__}: {shown(str(error))}")
        return
    for where, problem in differences(fresh, receipt, ""):
        report.add(where, problem)
    report.checked.append("every derived number, the predicates and the verdict")


def differences(fresh: Any, stored: Any, path: str) -> Iterator[tuple[str, str]]:
    """Yield every place where a stored value differs from the derived value; floats may differ by 1e-9, relative."""
    if isinstance(fresh, Mapping) and isinstance(stored, Mapping):
        for key in sorted({*fresh, *stored}, key=str):
            where = f"{path}.{key}" if path else str(key)
            if key not in stored:
                yield where, "missing"
            elif key not in fresh:
                yield where, "not derived from anything"
            else:
                yield from differences(fresh[key], stored[key], where)
    elif isinstance(fresh, list) and isinstance(stored, list):
        if len(fresh) != len(stored):
            yield path, f"expected {len(fresh)} entries, found {len(stored)}"
        for index, (one, other) in enumerate(zip(fresh, stored, strict=False)):
            yield from differences(one, other, f"{path}[{index}]")
    elif not _same(fresh, stored):
        yield path, f"expected {shown(repr(fresh))}, found {shown(repr(stored))}"


def _same(fresh: Any, stored: Any) -> bool:
    numbers = all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in (fresh, stored))
    if not numbers or isinstance(fresh, int):  # counts of any size are exact
        return type(fresh) is type(stored) and bool(fresh == stored)
    try:
        return math.isclose(fresh, stored, rel_tol=RELATIVE, abs_tol=ABSOLUTE)
    except OverflowError:  # an integer that no float can hold
        return False


def _check_probe(
    receipt: Mapping[str, Any], probe: Path, policy_from: Path | None, report: VerifyReport
) -> None:
    """Compare the probe file and its lock with the receipt, without the sources of the probe set.

    Raises:
        UsageError: if the probe file does not exist.
    """
    try:
        config = load_probes(probe, policy_from)
        lock = read_lock(lock_path(probe))
        routed = [layer["layer"] for layer in receipt["layers"]]
        described = config.describe() | {"protected_layers": config.protected_layers.resolve(routed)}
    except InputRefused as error:
        report.add("probe", str(error))
        return
    recorded = receipt["probe"]
    central = None if config.central is None else config.central.describe()
    for where, problem in differences(lock.facts(), recorded["lock"], "probe.lock"):
        report.add(where, problem)
    for where, problem in differences(lock.body["tokenizer"], recorded["tokenizer"], "probe.tokenizer"):
        report.add(where, problem)
    for where, problem in differences(lock.overlaps(), recorded["overlaps"], "probe.overlaps"):
        report.add(where, f"not as registered: {problem}")
    for where, problem in differences(central, lock.policy_from, "probe.lock.policy_from"):
        report.add(where, f"not registered under this central policy: {problem}")
    if config.central is not None and "config_keys" not in config.policy.allow:
        for side, facts in receipt["checkpoints"].items():
            for one in facts.get("accepted_config_keys") or ():
                where = f"checkpoints.{side}.accepted_config_keys"
                report.add(where, f"the central policy allows none, found {shown(one['key'])}")
    rendered = lock.body.get("chat_template")
    chosen: tuple[tuple[str, object, object], ...] = (
        ("special_tokens", config.special_tokens, "none"),
        ("chat_template", rendered, None),
        ("left_out", lock.left_out(), []),
    )
    for key, registered_value, otherwise in chosen:
        for where, problem in differences(registered_value, recorded.get(key, otherwise), f"probe.{key}"):
            report.add(where, f"not as registered: {problem}")
    for key in ("name", "policy", "domains", "windows", "evaluation", "protected_layers"):
        for where, problem in differences(described[key], recorded.get(key), f"probe.{key}"):
            report.add(where, f"not as in the probe file: {problem}")
    for where, problem in differences(lock.body["probes"], config.describe(), "probe"):
        report.add(where, f"the probe file is not what was registered: {problem}")
    for row, registered in zip(receipt["domains"], lock.body["domains"], strict=False):
        if row["windows"] != len(registered["windows"]):
            report.add(
                f"domains.{shown(row['name'])}.windows", f"{len(registered['windows'])} were registered"
            )
        if row["documents"] != counted(registered):
            report.add(f"domains.{shown(row['name'])}.documents", f"{counted(registered)} were registered")
    report.checked.append("probe lock and policy")


def _check_checkpoint(
    receipt: Mapping[str, Any], checkpoint: Path, like: Path | None, report: VerifyReport
) -> None:
    """Hash the weights again, read the configuration and the files beside them, and compare with the recorded facts."""
    side = "base" if receipt["kind"] == "baseline" else "tuned"
    recorded = receipt["checkpoints"][side]
    try:
        opened = open_stored(checkpoint, like)
        found = {"digest": digest_checkpoint(opened).sha256, "config_sha256": config_sha256(opened)}
        beside = list(mismatches(CheckpointFacts(recorded), opened))
    except (InputRefused, IntegrityError) as error:
        report.add(f"checkpoints.{side}", str(error))
        return
    for key, value in found.items():
        if value != recorded[key]:
            report.add(f"checkpoints.{side}.{key}", f"expected {recorded[key]}, the checkpoint has {value}")
    for key, value, other in adapter_mismatches(recorded, opened):
        report.add(f"checkpoints.{side}.{key}", f"expected {shown(value)}, the checkpoint has {shown(other)}")
    for where, problem in beside:
        report.add(f"checkpoints.{side}.{where}", problem)
    report.checked.append(f"weights, configuration and files of the {side} checkpoint")
