"""The lab's pairs under provisional budgets, which the base alone sets: the section of docs/lab.md.

Example: python -m scripts.lab.provisional
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from numpy.typing import NDArray

from moe_atlas.api import AuditOptions, Receipt
from moe_atlas.auditing.facts import probe_facts
from moe_atlas.base_alone.base import open_base, yardstick_alone
from moe_atlas.calibration.budgets import Calibration
from moe_atlas.calibration.from_base import FACTOR, Base, Draft, draft
from moe_atlas.calibration.policy_text import policy_file
from moe_atlas.calibration.provisional_text import provisional_file
from moe_atlas.channels import BUDGETS
from moe_atlas.checkpoint.index import open_checkpoint
from moe_atlas.derivation.derive import derive
from moe_atlas.derivation.intervals.context import make_context
from moe_atlas.derivation.intervals.domains import derive_domains
from moe_atlas.loading.registry import resolve
from moe_atlas.verdict.predicates import derive_predicates
from moe_atlas.views.receipt import ReceiptView
from scripts.coverage.page import replace_section
from scripts.lab.audits import prepare, receipt_of
from scripts.lab.families import FAMILIES, Family
from scripts.lab.page import WORDS
from scripts.lab.pairs import Pair, all_pairs
from scripts.lab.verdicts import calibration_of, registered

ROOT, DOCS = Path("lab"), Path("docs")
COPIES = 2.0  # the margin as a multiple of what the 4-bit copy costs the worst domain at most
Windows = Mapping[str, NDArray[Any]]
Rule = Callable[["Ruled", dict[str, Any]], None]


@dataclass(frozen=True)
class Ruled:
    """A family's base with its ruler.

    Attributes:
        base: the base and what its 4-bit copy does.
        draft: the provisional budgets.
        cost: what the copy costs the worst base domain at most, nats per byte.
    """

    base: Base
    draft: Draft
    cost: float


@dataclass(frozen=True)
class Judged:
    """One pair under calibrated and under provisional budgets.

    Attributes:
        family: its family.
        pair: the pair.
        windows: its window data.
        calibrated: the receipt under calibrated budgets.
        provisional: the same receipt with the predicates of the provisional policy.
    """

    family: str
    pair: Pair
    windows: Windows
    calibrated: dict[str, Any]
    provisional: dict[str, Any]

    @property
    def forgetting(self) -> float:
        """The mean increase of the NLL over the base domains, nats per byte."""
        return fmean(
            row["nll_increase"]["estimate"] for row in self.calibrated["domains"] if row["role"] == "base"
        )


def ruled(family: Family, root: Path) -> Ruled:
    """Measure a family's base, and set budgets from it."""
    options = AuditOptions(dtype="float32", threads=1)
    opened = open_base(root / family.name / "base", prepare(root), options)
    base = Base(**yardstick_alone(opened, options))
    found = [row.interval("nll_increase") for row in base.base_domains]
    cost = max(one.high for one in found if one and one.high is not None)
    return Ruled(base, draft(base, float(f"{COPIES * cost:.2g}")), cost)


def judge(family: Family, ruler: Ruled, calibration: Calibration, root: Path) -> list[Judged]:
    """Judge every pair that does not calibrate, with the gate's own functions."""
    spec = resolve(open_checkpoint(root / family.name / "base"))
    texts = {
        "": policy_file(calibration, [], "policy.yaml"),
        "provisional": provisional_file(ruler.base, ruler.draft, "policy.yaml"),
    }
    found = []
    for pair in all_pairs(family):
        if not pair.calibrates:
            receipt = Receipt.load(receipt_of(family, pair.name, root))
            windows = receipt.windows()
            probes = {
                kind: probe_facts(registered(family, pair, text, root, kind), spec)
                for kind, text in texts.items()
            }
            calibrated = derive(receipt.body | {"probe": probes[""]}, windows)
            provisional = judged_again(calibrated, windows, probes["provisional"]["policy"])
            found.append(Judged(family.name, pair, windows, calibrated, provisional))
    return found


def judged_again(body: dict[str, Any], windows: Windows, policy: Mapping[str, Any]) -> dict[str, Any]:
    """Return a receipt with the predicates of another policy without a refinement margin.

    No interval depends on a budget, except the share of documents above `document_nll`.
    """
    again = body | {"probe": body["probe"] | {"policy": dict(policy)}}
    layers = [layer["layer"] for layer in body["layers"]]
    again |= {"domains": derive_domains(make_context(again, windows), layers)}
    return again | derive_predicates(ReceiptView(again))


def verdict_under(one: Judged, ruler: Ruled, rule: Rule) -> str:
    """Return the verdict under a rule's budgets."""
    policy = one.provisional["probe"]["policy"]
    policy = policy | {"rewrite": dict(policy["rewrite"]), "damage": dict(policy["damage"])}
    rule(ruler, policy)
    return str(judged_again(one.calibrated, one.windows, policy)["verdict"])


def times(factor: float, margin: float) -> Rule:
    """A rule with another factor and another margin, in what the copy costs."""

    def rule(ruler: Ruled, policy: dict[str, Any]) -> None:
        other = draft(ruler.base, float(f"{margin * ruler.cost:.2g}"), factor)
        policy["rewrite"] |= {key: found.value for key, found in other.budgets.items()}
        policy["damage"] |= {"nll": other.margin, "document_nll": other.document_nll}

    return rule


def also(*keys: str) -> Rule:
    """The rule that gates these budgets at the factor, too."""

    def rule(ruler: Ruled, policy: dict[str, Any]) -> None:
        for key in keys:
            found = [row.interval(BUDGETS[key].key) for row in ruler.base.protected]
            ends = [end for one in found if one for end in (one.low, one.high)]
            policy["rewrite"][key] = FACTOR * max(abs(end) for end in ends if end is not None)

    return rule


def ungated(_: Ruled, policy: dict[str, Any]) -> None:
    """No drift budget at all: damage, identity and weights alone, and a budget that everything keeps."""
    policy["rewrite"] |= dict.fromkeys(BUDGETS) | {"coordinate": 2.0}


RULES: Mapping[str, Rule] = {
    "1 ×": times(1.0, COPIES),
    "1.5 ×": times(1.5, COPIES),
    f"**{FACTOR:g} × (what `calibrate --from-base` writes)**": times(FACTOR, COPIES),
    "4 ×": times(4.0, COPIES),
    f"{FACTOR:g} ×, margin once the copy's cost": times(FACTOR, 1.0),
    f"{FACTOR:g} ×, margin three times the copy's cost": times(FACTOR, 3.0),
    f"{FACTOR:g} ×, transition gated, too": also("transition"),
    f"{FACTOR:g} ×, overlap, entropy and load CV gated, too": also(
        "overlap_drop", "entropy_drop", "load_cv_rise"
    ),
    "no drift budget: damage, identity and weights alone": ungated,
}


def counts(verdicts: Sequence[tuple[Judged, str]]) -> str:
    """Return two cells: passes, open verdicts and fails of the broken pairs, and of the sound pairs."""
    cells = []
    for expect in ("fail", "pass"):
        found = Counter(verdict for one, verdict in verdicts if one.pair.expect == expect)
        cells.append(" / ".join(str(found[key]) for key in ("pass", "inconclusive", "fail")))
    return " | ".join(cells)


def rules_table(judged: Sequence[Judged], rulers: Mapping[str, Ruled]) -> str:
    """Return what other rules would have said of the same pairs."""
    lines = ["| budgets | broken: pass / open / fail | sound: pass / open / fail |", "|---|---|---|"]
    for name, rule in RULES.items():
        found = [(one, verdict_under(one, rulers[one.family], rule)) for one in judged]
        lines.append(f"| {name} | {counts(found)} |")
    calibrated = [(one, str(one.calibrated["verdict"])) for one in judged]
    lines.append(f"| `calibrate`, six healthy tunes | {counts(calibrated)} |")
    return "\n".join(lines)


def budgets_table(rulers: Mapping[str, Ruled], calibrations: Mapping[str, Calibration]) -> str:
    """Return the budgets from the base alone beside the calibrated ones."""
    lines = ["| budget | " + " | ".join(rulers) + " |", "|---|" + "---|" * len(rulers)]
    for key in (*BUDGETS, "nll"):
        cells = []
        for name, ruler in rulers.items():
            own = ruler.draft.margin if key == "nll" else ruler.draft.budgets[key].value
            other = calibrations[name].budgets[key].value
            cells.append(
                f"{_number(own)} ({_number(other)}{'' if not own or not other else f'; {own / other:.2g} ×'})"
            )
        lines.append(f"| {key} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def pairs_table(judged: Sequence[Judged]) -> str:
    """Return both verdicts of every pair."""
    lines = ["| family | pair | expected | from the base | calibrated | forgetting | gates that failed |"]
    lines.append("|---|---|---|---|---|---|---|")
    for one in judged:
        failed = dict.fromkeys(
            line["gate"]
            for predicate in one.provisional["predicates"].values()
            for line in predicate["evidence"]
            if line["result"] == "fail"
        )
        cells = [one.family, one.pair.name, one.pair.expect, WORDS[one.provisional["verdict"]]]
        cells += [WORDS[one.calibrated["verdict"]], f"{one.forgetting:+.3f}"]
        lines.append(f"| {' | '.join([*cells, ' '.join(failed) or '–'])} |")
    return "\n".join(lines)


def section(
    judged: Sequence[Judged], rulers: Mapping[str, Ruled], calibrations: Mapping[str, Calibration]
) -> str:
    """Return the generated part of the page."""

    def named(chosen: Callable[[Judged], bool]) -> str:
        return (
            ", ".join(f"{one.family.split('_')[0]} {one.pair.name}" for one in judged if chosen(one))
            or "none"
        )

    def passes(one: Judged) -> bool:
        return bool(one.provisional["verdict"] == "pass")

    costs = ", ".join(f"{name} {ruler.cost:.3g}" for name, ruler in rulers.items())
    lets = named(lambda one: passes(one) and one.calibrated["verdict"] != "pass")
    return "\n\n".join(
        [
            "Command: `python -m scripts.lab.provisional` (after `make lab`). The margin of these tables is "
            f"{COPIES:g} × what the 4-bit copy costs the worst base domain at most (nats per byte: {costs}); "
            "in practice it is the user's own number.",
            "\n".join(
                [
                    f"* False passes among the broken: {named(lambda o: passes(o) and o.pair.expect == 'fail')}.",
                    "* False fails among the sound: "
                    f"{named(lambda o: o.provisional['verdict'] == 'fail' and o.pair.expect == 'pass')}.",
                    f"* Passes that calibrated budgets refuse: {lets}.",
                    "* Refused, and passed by calibrated budgets: "
                    f"{named(lambda o: not passes(o) and o.calibrated['verdict'] == 'pass')}.",
                ]
            ),
            "Budgets (calibrated; how many times as wide):",
            budgets_table(rulers, calibrations),
            "What other rules would have said of the same pairs (margin twice the copy's cost unless stated):",
            rules_table(judged, rulers),
            "Every pair:",
            pairs_table(judged),
        ]
    )


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:g}"


def main() -> None:
    """Judge and write the section."""
    rulers = {name: ruled(family, ROOT) for name, family in FAMILIES.items()}
    calibrations = {name: calibration_of(family, ROOT) for name, family in FAMILIES.items()}
    judged = [
        one
        for name, family in FAMILIES.items()
        for one in judge(family, rulers[name], calibrations[name], ROOT)
    ]
    replace_section(DOCS / "lab.md", "provisional", section(judged, rulers, calibrations))


if __name__ == "__main__":
    main()
