"""Judge every pair under budgets calibrated on pairs that are never judged.

What an audit measures does not depend on budgets, so a pair is measured once: here its facts are put under the
registered, calibrated policy and everything that follows is derived again, as `atlas verify` would.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from moe_atlas.api import Receipt
from moe_atlas.auditing.facts import probe_facts
from moe_atlas.calibration.budgets import Calibration, calibrate
from moe_atlas.calibration.pairs import pair_of
from moe_atlas.calibration.policy_text import policy_file
from moe_atlas.checkpoint.index import open_checkpoint
from moe_atlas.loading.registry import resolve
from moe_atlas.probes.registration import ProbeSet, load_registered, register
from moe_atlas.receipt.write import write_receipt
from scripts.lab.audits import prepare, probe_text, receipt_of
from scripts.lab.families import Family
from scripts.lab.pairs import Pair, all_pairs

NO_RULES = "weights: {must_not_change: [], must_change: []}"


def judged_path(family: Family, name: str, root: Path) -> Path:
    """Where a judged receipt lies."""
    return root / "judged" / family.name / f"{name}.json"


def calibration_of(family: Family, root: Path) -> Calibration:
    """Budgets from the pairs that calibrate."""
    found = []
    for pair in all_pairs(family):
        if pair.calibrates:
            receipt = Receipt.load(receipt_of(family, pair.name, root))
            found.append(pair_of(receipt.body, receipt.windows(), pair.name))
    return calibrate(found)


def judge_family(family: Family, root: Path) -> Calibration:
    """Judge every pair that does not calibrate and is not judged yet."""
    calibration = calibration_of(family, root)
    spec = resolve(open_checkpoint(root / family.name / "base"))
    for pair in all_pairs(family):
        target = judged_path(family, pair.name, root)
        source = receipt_of(family, pair.name, root)
        if pair.calibrates or target.exists() or not source.exists():
            continue
        receipt = Receipt.load(source)
        probes = registered(family, pair, policy_file(calibration, [], "policy.yaml"), root)
        facts: dict[str, Any] = receipt.body | {"probe": probe_facts(probes, spec)}
        target.parent.mkdir(parents=True, exist_ok=True)
        write_receipt(facts, receipt.windows(), target)
    return calibration


def registered(family: Family, pair: Pair, text: str, root: Path, kind: str = "") -> ProbeSet:
    """The probe set under a policy of this text and the weight rules that such a run would register.

    Args:
        family: the family of the pair.
        pair: the pair.
        text: the policy file, without weight rules.
        root: the lab's folder.
        kind: what tells policies of different origin apart.
    """
    folder = prepare(root).parent
    named = [*pair.frozen, *(f"moved-{name}" for name in pair.moved), *pair.allows]
    label = "-".join([*([kind] if kind else []), family.name, *named])
    policy, probe = folder / f"policy-{label}.yaml", folder / f"probes-{label}.yaml"
    if not probe.exists():
        rules = f"weights: {{must_not_change: [{', '.join(pair.frozen)}], must_change: [{', '.join(pair.moved)}]}}"
        rules += f"\n  allow: [{', '.join(pair.allows)}]"
        assert NO_RULES in text
        policy.write_text(text.replace(NO_RULES, rules), encoding="utf-8")
        probe.write_text(probe_text().split("policy:\n")[0], encoding="utf-8")
        register(probe, policy_from=policy)
    return load_registered(probe, policy)
