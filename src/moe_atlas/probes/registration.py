"""Register a probe set, and load it only if nothing changed since.

The registration fixes before the run what a gate measures and how it judges. A lock beside the probe file holds a
digest of every window, of the tokenizer and of the policy. Whoever widens a threshold must register again, and the new
lock names the lock that it replaced.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from moe_atlas.errors import InputRefused, ResourceExhausted, UsageError
from moe_atlas.probes.load import load_probes
from moe_atlas.probes.lock import Lock, content, differences, lock_path, read_lock, seal, without_history
from moe_atlas.probes.settings.schema import Domain, ProbeConfig
from moe_atlas.probes.windows import Sample, Window, build_windows
from moe_atlas.system.atomic_write import write_atomic
from moe_atlas.system.limits import MAX_LOCK_BYTES, require_resamples

_SHOWN_DIFFERENCES = 4


@dataclass(frozen=True)
class ProbeSet:
    """A probe file whose windows and policy match its lock.

    Attributes:
        config: the probe file, typed.
        windows: in registered order, base-role domains first.
        lock: the lock that `config` and `windows` match.
    """

    config: ProbeConfig
    windows: tuple[Window, ...]
    lock: Lock

    @property
    def base_windows(self) -> tuple[Window, ...]:
        """Return the windows of base-role domains; they come first and have the same length."""
        return tuple(window for window in self.windows if self.domain(window).role == "base")

    def domain(self, window: Window) -> Domain:
        """Return the domain of a window."""
        return self.config.domains[window.domain]


def register(
    path: Path,
    force: bool = False,
    now: datetime | None = None,
    policy_from: Path | None = None,
    earlier: Callable[[str], dict[str, Any] | None] | None = None,
) -> Lock:
    """Cut the windows of a probe file and write its lock beside it.

    If the lock already matches, it stays as it is. A lock that differs is replaced only with `force`; the new lock then
    records the digest, time and policy digest of the old lock.

    Args:
        path: the probe file.
        force: replace a differing lock.
        now: registration time, for tests; by default the current time.
        policy_from: a central policy file, which the lock then names with its digest.
        earlier: returns the latest known registration of a probe set of this name (``sha256``, ``registered_at``,
            ``policy_sha256``). Called if there is no lock; the new lock names the result as its predecessor.

    Raises:
        UsageError: E_PROBE_MISSING (no such file), E_PROBE_REGISTERED (a differing lock exists and `force` is
            not set).
        InputRefused: every refusal of `load_probes` and `build_windows`; E_PROBE_LOCK for a lock that is
            damaged; E_PROBE_SIZE for a registration that could never end in a receipt.
        ResourceExhausted: E_WRITE when the lock cannot be written.
    """
    config = load_probes(path, policy_from)
    sample = build_windows(config)
    _require_verifiable(config, sample)
    body = content(config, sample)
    target = lock_path(config.path)
    predecessor = None
    if target.exists():
        old, changed = _existing(target, body, force)
        if old is not None and not changed:
            return old
        if not force:
            hint = f"to replace it on the record: {_again(config)}"
            raise UsageError("E_PROBE_REGISTERED", str(target), _summary(changed), hint)
        predecessor = _predecessor(target, old)
    elif earlier is not None:
        predecessor = earlier(config.name)
    stamp = (now or datetime.now(UTC)).astimezone(UTC).isoformat(timespec="seconds")
    raw = seal(body | {"registered_at": stamp, "predecessor": predecessor})
    if len(raw) > MAX_LOCK_BYTES:
        problem = f"its lock would be {len(raw)} bytes, more than the {MAX_LOCK_BYTES} that are read"
        raise InputRefused("E_PROBE_SIZE", str(path), problem, "register fewer windows")
    try:
        write_atomic(target, raw)
    except OSError as error:
        raise ResourceExhausted("E_WRITE", str(target), f"cannot be written ({error.strerror})") from error
    return read_lock(target)


def _existing(target: Path, body: dict[str, Any], force: bool) -> tuple[Lock | None, list[str]]:
    """Return the existing lock and its differences; with `force`, a damaged lock is None instead of a refusal."""
    try:
        old = read_lock(target)
    except InputRefused:
        if not force:
            raise
        return None, []
    return old, _changes(old, body)


def _changes(lock: Lock, body: dict[str, Any]) -> list[str]:
    """Return how a body differs from a lock, in the probe file's own keys if the file itself changed."""
    registered = without_history(lock.body)
    return differences(registered["probes"], body["probes"]) or differences(registered, body)


def _predecessor(target: Path, old: Lock | None) -> dict[str, Any]:
    if old is None:
        return {"sha256": _digest_of(target), "registered_at": None, "policy_sha256": None}
    return {"sha256": old.digest, "registered_at": old.registered_at, "policy_sha256": old.policy_sha256}


def _digest_of(target: Path) -> str:
    with target.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _require_verifiable(config: ProbeConfig, sample: Sample) -> None:
    """Refuse a probe set that is too large for a verifier to resample.

    Raises:
        InputRefused: E_PROBE_SIZE.
    """
    documents = len({window.document for window in sample.windows})
    require_resamples(documents, config.policy.resamples, str(config.path))


def load_registered(path: Path, policy_from: Path | None = None) -> ProbeSet:
    """Read a probe file and its windows, and check both against the lock.

    With a central policy file, the lock must have been registered under a file of exactly these bytes.

    Raises:
        UsageError: E_PROBE_MISSING (no such file), E_PROBE_UNREGISTERED (no lock; names the command that
            registers).
        InputRefused: E_PROBE_LOCK if the lock is damaged, or with each difference if the probe set differs from it;
            every refusal of `load_probes` and `build_windows`.
    """
    config = load_probes(path, policy_from)
    target = lock_path(config.path)
    if not target.exists():
        hint = f"register it before the run: atlas register {path}"
        raise UsageError("E_PROBE_UNREGISTERED", str(path), "is not registered", hint)
    lock = read_lock(target)
    # The policy is compared before any source is read: a widened threshold is refused at once.
    _refuse_changes(config, differences(lock.body["probes"], config.describe()))
    sample = build_windows(config)
    _require_verifiable(config, sample)
    _refuse_changes(config, _changes(lock, content(config, sample)))
    return ProbeSet(config, sample.windows, lock)


def _refuse_changes(config: ProbeConfig, changed: list[str]) -> None:
    if changed:
        hint = f"restore it, or register anew on the record: {_again(config)}"
        raise InputRefused("E_PROBE_LOCK", str(config.path), _summary(changed), hint)


def _again(config: ProbeConfig) -> str:
    central = "" if config.central is None else " --policy-from FILE"
    return f"atlas register --force {config.path}{central}"


def _summary(changed: list[str]) -> str:
    more = len(changed) - _SHOWN_DIFFERENCES
    tail = f"; and {more} more" if more > 0 else ""
    return f"differs from its lock in {'; '.join(changed[:_SHOWN_DIFFERENCES])}{tail}"
