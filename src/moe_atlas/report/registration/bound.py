"""What a registration says to people and to pipelines: what was bound, what it replaces, what it leaves open."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from moe_atlas.channels import REGISTERED
from moe_atlas.ledger.predecessors import Predecessors
from moe_atlas.probes.lock import Lock, counted, left_out_sentence, overlap_sentences
from moe_atlas.probes.settings.cannot_fail import cannot_fail, loose_tail_guard
from moe_atlas.probes.settings.policy import DAMAGE_STAGE
from moe_atlas.text import shown
from moe_atlas.verdict.gates.gate import PASS_FLOOR
from moe_atlas.verdict.qualifications import in_words


def facts(lock: Lock) -> dict[str, object]:
    """The registration as JSON values."""
    return {
        "lock": str(lock.path),
        "lock_sha256": lock.digest,
        "policy_sha256": lock.policy_sha256,
        "policy_from": lock.policy_from,
        "stage": lock.body["stage"],
        "registered_at": lock.registered_at,
        "predecessor": lock.predecessor,
        "domains": domain_facts(lock),
        "warnings": _warnings(lock),
    }


def domain_facts(lock: Lock) -> list[dict[str, object]]:
    """What every domain holds, as JSON values."""
    return [
        {
            "name": domain["name"],
            "role": domain["role"],
            "windows": len(domain["windows"]),
            "documents": counted(domain),
            "near_copies": domain["near_copies"],
            "elsewhere": domain["elsewhere"],
            "left_out": domain.get("left_out"),
        }
        for domain in lock.body["domains"]
    ]


def domain_lines(lock: Lock) -> list[str]:
    """What every domain holds, in a line each."""
    return [
        f"  {shown(d['name'])} ({d['role']}): {len(d['windows'])} windows of {counted(d)} documents"
        for d in lock.body["domains"]
    ]


def checks(lock: Lock) -> list[str]:
    """What a person should know of the documents before the run: copies, documents left out, too few documents."""
    copies = [text for row in lock.overlaps() for _, text in overlap_sentences(row)]
    return [*copies, *_warnings(lock)]


def sentence(lock: Lock, earlier: Predecessors, power: Sequence[str] = ()) -> str:
    """The registration in lines, with what a person should know before the run; `power` says what it can decide."""
    lines = [f"registered {shown(str(lock.path))} at {lock.registered_at}, stage {lock.body['stage']}"]
    lines += domain_lines(lock)
    lines.append(f"  lock sha256 {lock.digest}")
    if lock.policy_from:
        lines.append(f"  policy of   {shown(lock.policy_from['name'])}, sha256 {lock.policy_from['sha256']}")
    template = lock.body.get("chat_template")
    if template:
        lines.append(f"  chat template {shown(template['file'])}, sha256 {template['sha256']}")
    notes = [f"  note: {text}" for row in lock.overlaps() for _, text in overlap_sentences(row)]
    warnings = [f"  warning: {line}" for line in _warnings(lock)]
    policy = lock.body["probes"]["policy"]
    return "\n".join([*lines, *_predecessor(lock, earlier), *power, *notes, *_open(policy), *warnings])


def _warnings(lock: Lock) -> list[str]:
    """What a person should know before the run: what was left out, what cannot pass, what cannot fail."""
    left_out = [left_out_sentence(row) for row in lock.left_out()]
    return [*left_out, *_few(lock.body["domains"]), *_lax(lock.body["probes"])]


def _few(domains: list[dict[str, Any]]) -> list[str]:
    """Base domains on which no audit can pass."""
    return [
        f"domain {shown(domain['name'])} has {counted(domain)} documents; nothing can pass on fewer than "
        f"{PASS_FLOOR}, register 100 or more"
        for domain in domains
        if domain["role"] == "base" and counted(domain) < PASS_FLOOR
    ]


def _predecessor(lock: Lock, earlier: Predecessors) -> list[str]:
    """Which registration it follows, and how that is known; that none is known is said when it was looked for."""
    lines = [
        f"  note: {path} does not verify, so it names no earlier registration" for path in earlier.unread
    ]
    found = lock.predecessor
    if found is None:
        name = shown(str(lock.body["name"]))
        none = f"  no earlier registration of {name} is known to the runs here or to receipts beside the probe file"
        return [*([none] if earlier.searched else []), *lines]
    known = f", named by {earlier.where}" if earlier.where else ""
    lines.append(f"  replaces    {found['sha256']} of {found['registered_at']}{known}")
    if found["policy_sha256"] != lock.policy_sha256:
        lines.append(f"  note: its policy was another, sha256 {found['policy_sha256']}")
    return lines


def _lax(probe: dict[str, Any]) -> list[str]:
    """What passes under this registration whatever happens."""
    loose = loose_tail_guard(probe["policy"]["damage"])
    found = [f"this could not fail: {line}" for line in cannot_fail(probe)]
    return found + ([] if loose is None else [loose])


def _open(policy: dict[str, Any]) -> list[str]:
    """What this registration leaves open; such an audit measures, but cannot pass."""
    keys = (*(channel.budget for channel in REGISTERED), "refinement")
    budgets = [policy["rewrite"][key] for key in keys]
    lines = []
    if policy["stage"] == DAMAGE_STAGE:
        lines.append(f"  note: {in_words('a PASS of this registration reads: PASS', [DAMAGE_STAGE])}")
    elif not any(budgets):
        lines.append("  note: no rewrite budget is set, so the atlas can never count as preserved")
    if policy["damage"]["nll"] is None:
        lines.append("  note: no damage margin is set, so a base domain can never count as undamaged")
    return lines
