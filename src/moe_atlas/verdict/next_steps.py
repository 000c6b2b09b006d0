"""What to try first, from the gates that failed, or that stayed open; `advice` holds the words."""

from __future__ import annotations

from collections.abc import Iterator

from moe_atlas import channels
from moe_atlas.probes.settings.policy import EXPANSIVE_STAGE
from moe_atlas.statistics.power import CHANCE, rounded_up
from moe_atlas.verdict import advice
from moe_atlas.verdict.advice import Advice
from moe_atlas.verdict.claims import CONTRADICTED, status_of
from moe_atlas.verdict.documents_needed import Needed, most_wanting
from moe_atlas.verdict.gates.gate import FAIL, UNDETERMINED
from moe_atlas.verdict.gates.unreplayed_parts import GATE as UNREPLAYED
from moe_atlas.verdict.rewrite import HARD
from moe_atlas.verdict.task import IDENTICAL, NOTHING_TUNED
from moe_atlas.views.receipt import ReceiptView

OVERLAP = "overlap_drop"
OCCUPANCY = frozenset(channel.budget for channel in channels.OCCUPANCY)
DRIFT = frozenset(
    {"refinement_margin", *(channel.budget for channel in (*channels.DRIFTS, *channels.GUARDS))}
)


def derive_next_steps(receipt: ReceiptView) -> list[dict[str, str]]:
    """Return ``{pattern, object, first}`` lines, the most pressing first; empty on a PASS."""
    if receipt.is_baseline:
        return [advice.BASELINE.step()]
    if receipt.is_look:
        return [advice.LOOK.step()]
    failed = _failed(receipt, "protected_atlas_rewrite")
    damage = _failed(receipt, "base_domain_damage")
    found = [
        *advice.broken(failed | damage),
        *_unreplayed(receipt),
        *_geometry(receipt, failed),
        *_damage(damage),
        *_task(receipt),
        *_sample(receipt),
    ]
    return [one.step() for one in found]


def _failed(receipt: ReceiptView, predicate: str) -> set[str]:
    """The gates for which a predicate failed; what a declared rewrite may move is none of them."""
    gates = {line.gate for line in receipt.predicates[predicate].evidence if line.result == FAIL}
    excused = predicate == "protected_atlas_rewrite" and receipt.probe.policy.stage == EXPANSIVE_STAGE
    return gates & set(HARD) if excused else gates


def _unreplayed(receipt: ReceiptView) -> Iterator[Advice]:
    lines = receipt.predicates["protected_atlas_rewrite"].evidence
    kept = [line for line in lines if line.gate == UNREPLAYED and line.result in (FAIL, UNDETERMINED)]
    parts = [line.part for line in kept if line.part]
    if parts:
        first = (
            "restore these tensors from the base or from the training checkpoint; where they are not served, register "
            f"a policy with allow: [{', '.join(parts)}]"
        )
        yield Advice("a part that no probe token passes differs", "the export or merge step", first)


def _geometry(receipt: ReceiptView, failed: set[str]) -> Iterator[Advice]:
    """Rows 1, 2 and 4 of Table 14, and the drift channels, which stand for themselves."""
    softer = "boundary" in failed and status_of(receipt.claims, "boundaries_sharper") == CONTRADICTED
    joint = advice.geometric(overlap=OVERLAP in failed, occupancy=bool(failed & OCCUPANCY), margins=softer)
    if joint is not None:
        yield joint
    if failed & DRIFT and OVERLAP not in failed:
        yield advice.MOVED


def _damage(failed: set[str]) -> Iterator[Advice]:
    if not failed - {"non_finite_output"}:
        return
    if failed == {"kl"}:
        first = (
            "compare the temperature of both heads: predictions moved further than the loss says, so that gains in one "
            "place may pay for damage in another"
        )
        yield Advice("a base domain is predicted differently", "the next-token distributions", first)
        return
    yield Advice(
        "a base domain is damaged",
        "capability outside the task",
        "replay base-domain data or shorten the run, and audit an earlier checkpoint of it",
    )


def _task(receipt: ReceiptView) -> Iterator[Advice]:
    found = receipt.predicates["knowledge_expansive"]
    outcome = found.outcome
    if found.passed:
        return
    if outcome == NOTHING_TUNED:
        first = (
            "give the checkpoint that was tuned; for a conversion, a resharding or a smoke test register a policy "
            f"with allow: [{IDENTICAL}]"
        )
        yield Advice("nothing was tuned", "the pair that was given", first)
    if outcome == "task-not-reached":
        first = "reach the target before judging preservation: an untouched atlas earns no credit by itself"
        yield Advice("the task target was missed", "the objective", first)
    if outcome == "chart-redefining" and receipt.probe.policy.stage == EXPANSIVE_STAGE:
        first = (
            "audit chart-preserving attempts on the same base and registration, and give them with --attempt"
        )
        yield Advice("the task was reached by rewriting", "the choice of stage", first)
    if outcome == "misclassified":
        first = "promote the chart-preserving attempt instead"
        yield Advice("the rewrite was avoidable", "the policy", first)


def _sample(receipt: ReceiptView) -> Iterator[Advice]:
    """An inconclusive verdict usually wants more documents, not another threshold."""
    if receipt.verdict != "inconclusive":
        return
    lines = [line for predicate in receipt.predicates.values() for line in predicate.evidence]
    open_gates = sorted({line.gate for line in lines if line.result == UNDETERMINED})
    wanting = [gate for gate in open_gates if gate not in ("nothing_tuned", UNREPLAYED)]
    if not wanting:
        return
    if "kl" in wanting and "kl" not in receipt.probe.policy.damage:
        first = (
            "compare the temperature of both heads; if the tune is as it should be, let atlas calibrate set damage.kl "
            "from healthy ones, and register it"
        )
        yield Advice("predictions moved further than the loss says", "the next-token distributions", first)
        return
    first = advice.EVIDENCE.first
    if set(wanting) <= {"unmeasured_experts", "vocabulary_rows"}:
        first = (
            "register documents that hold the tokens or reach the experts that are named, or allow it by name"
        )
    if (needed := most_wanting(receipt)) is not None:
        first = f"{_documents(needed)}; {first}"
    yield advice.EVIDENCE._replace(pattern=f"undetermined: {', '.join(wanting)}", first=first)


def _documents(needed: Needed) -> str:
    """Return how many documents would decide the gate that wants the most, or that no number would."""
    what = f"{needed.gate} of {needed.where}"
    if needed.needed is None:
        return f"{what} lies so near its limit that more documents will not decide it"
    return (
        f"about {rounded_up(needed.needed)} documents would decide {what} ({needed.documents} now; {CHANCE:.0%} chance "
        f"of a {needed.outcome}, if the estimate is the truth)"
    )
