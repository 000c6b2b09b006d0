"""The words that every form of a report shares: names of gates and outcomes, gates as sentences, gates in groups."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from moe_atlas.channels import GATED
from moe_atlas.report import figures
from moe_atlas.report.yardstick import against_copy
from moe_atlas.text import interval, number, shown
from moe_atlas.verdict.qualifications import in_words
from moe_atlas.views.judged import EvidenceLine, NextStep
from moe_atlas.views.measured import Interval
from moe_atlas.views.receipt import ReceiptView
from moe_atlas.views.registered import AdapterFacts

PREDICATES = {
    "protected_atlas_rewrite": "protected-atlas rewrite",
    "base_domain_damage": "base-domain damage",
    "knowledge_expansive": "knowledge-expansive",
}
OUTCOMES = {
    "chart-preserving": "the task was reached and the atlas preserved",
    "chart-redefining": "the task was reached by rewriting the atlas, and no attempt shows that it had to be",
    "knowledge-expansive": "the task was reached by rewriting the atlas, and an attempt that kept it missed the task",
    "misclassified": "the task was reached by rewriting the atlas, and an attempt reached it without",
    "task-reached": "the task was reached; whether the atlas was preserved was not judged",
    "task-not-reached": "the task was missed; a preserved atlas earns nothing for that",
    "not-applicable": "no task was registered",
    "not-judged": "the channels of the atlas were measured and held against no budget",
    "nothing-tuned": "base and tuned hold the same values, so there is no change to classify",
}
"""What the classification means, for those outcomes whose name does not say it."""
GATES = {
    **{channel.budget: channel.label for channel in GATED},
    "refinement_margin": "refinement margin",
    "nll_increase": "NLL increase",
    "kl": "divergence from the base",
    "tail_guard": "share of damaged documents",
    "canary": "worst window",
    "non_finite_weights": "non-finite weights",
    "non_finite_output": "NaN or infinity",
    "weights": "weight rule",
    "identity": "expert identity",
    "unmeasured_experts": "experts that too few tokens use",
    "vocabulary_rows": "rows of the vocabulary",
    "unreplayed": "what no probe token passes",
    "protected_layers": "protected layers",
    "task_success": "task success",
    "attempt": "another attempt",
    "nothing_tuned": "nothing was tuned",
    "base_success": "task success of the base",
}
BROKEN = ("nothing_tuned", "non_finite_output", "non_finite_weights")
KNOWN = ("nll_increase", "tail_guard", "canary", "task_success", "base_success", "attempt", "kl")
STORED = ("identity", "weights", "vocabulary_rows", "unreplayed", "unmeasured_experts", "protected_layers")
ORDER = {gate: rank for rank, gates in enumerate((BROKEN, KNOWN, STORED)) for gate in gates}
"""Gates by what a colleague needs to know to understand them, drift and occupancy last."""
SYMBOLS = {"pass": "✓", "fail": "✗", "undetermined": "?", "not-applicable": "–", "not-gated": "·"}
PASSED = {True: "pass", False: "fail", None: "undetermined"}
VERDICTS = {"pass": "PASS", "fail": "FAIL", "inconclusive": "INCONCLUSIVE", None: "BASELINE"}
PLACES = {"layer": "layer", "domain": "domain", "class": "kind", "part": "part", "attempt": "attempt"}
"""Where a gate was held, in words, and the fact of a line of evidence that says which."""
NOT_RECORDED = "not recorded"


class Bounded(Protocol):
    """An estimate with its bounds, whatever it belongs to."""

    @property
    def estimate(self) -> float | None:
        """The estimate."""

    @property
    def low(self) -> float | None:
        """The lower bound."""

    @property
    def high(self) -> float | None:
        """The upper bound."""


def verdict(receipt: ReceiptView) -> str:
    """The verdict in words, with everything that qualifies it."""
    return in_words(VERDICTS[receipt.verdict], receipt.qualified)


@dataclass(frozen=True)
class GateGroup:
    """All lines of evidence of one gate with one result.

    Attributes:
        gate: the gate's key.
        result: what they all came to.
        lines: the evidence, the line that reaches furthest past its budget first.
    """

    gate: str
    result: str
    lines: tuple[EvidenceLine, ...]

    @property
    def sentence(self) -> str:
        """The worst line, and how many more there are, in how many other places."""
        worst, *rest = self.lines
        said = gate_sentence(worst)
        if not rest:
            return said
        noun, _ = located(worst)
        others = {located(line) for line in rest} - {located(worst)}
        if noun and len(others) == len(rest):
            return f"{said}; and {_counted(len(rest), noun)}"
        where = f", in {_counted(len(others), noun)}" if noun and others else ""
        return f"{said}; and {_counted(len(rest), 'finding')}{where}"


def _counted(count: int, noun: str) -> str:
    plural = {"class": "classes"}.get(noun, f"{noun}s")
    return f"{count} more {plural if count > 1 else noun}"


def grouped(lines: Iterable[EvidenceLine]) -> list[GateGroup]:
    """Evidence by gate and result; the order of the evidence, worst first, is kept."""
    found: dict[tuple[str, str], list[EvidenceLine]] = {}
    for line in lines:
        found.setdefault((line.result, line.gate), []).append(line)
    return [GateGroup(gate, result, tuple(group)) for (result, gate), group in found.items()]


def all_evidence(receipt: ReceiptView) -> list[EvidenceLine]:
    """The evidence of the three predicates, in order."""
    return [line for predicate in receipt.predicates.values() for line in predicate.evidence]


def deciding(receipt: ReceiptView) -> list[GateGroup]:
    """The gates that decided against a pass: the failed ones of a FAIL, the open ones of an INCONCLUSIVE.

    What a colleague understands comes first; among gates of one kind the worst.
    """
    wanted = {"fail": "fail", "inconclusive": "undetermined"}.get(str(receipt.verdict))
    found = [group for group in grouped(all_evidence(receipt)) if group.result == wanted]
    return sorted(found, key=lambda group: understood(group.gate))


def understood(gate: str) -> int:
    """A gate's rank among reasons: what a colleague understands at once comes first."""
    return ORDER.get(gate, len(ORDER))


def open_reasons(receipt: ReceiptView) -> list[tuple[str, str]]:
    """Predicates that did not pass for a reason that is no gate's: name and reason."""
    return [
        (PREDICATES[name], shown(predicate.reason, 300))
        for name, predicate in receipt.predicates.items()
        if predicate.passed is not True and predicate.reason
    ]


def gate_name(gate: str) -> str:
    """A gate's name in words."""
    return GATES.get(gate, gate.replace("_", " "))


def located(line: EvidenceLine) -> tuple[str, str]:
    """Where a gate was held, as a noun and which one of it; both empty for the whole checkpoint."""
    for noun, fact in PLACES.items():
        value: int | str | None = getattr(line, fact)
        if value is not None:
            return noun, shown(str(value))
    return "", ""


def place(line: EvidenceLine) -> str:
    """Where a gate was held: a layer and maybe an expert of it, a domain, a tensor class or an attempt."""
    found = " ".join(located(line)).strip()
    return found if line.expert is None else f"{found} expert {line.expert}"


def gate_sentence(line: EvidenceLine) -> str:
    """One gate in words: where, what, the interval, the budget, margin or target."""
    parts = [part for part in (place(line), gate_name(line.gate)) if part]
    if line.estimate is not None:
        parts.append(spelled(line))
    sentence = " ".join(parts)
    held = figures.limit(line)
    sentence += f", {held}" if held else ""
    sentence += against_copy(line)
    if line.reason:
        sentence += f" ({shown(line.reason, 160)})"
    return sentence


def drift(receipt: ReceiptView, line: EvidenceLine) -> str:
    """A drift in a few words: ``content drift 0.35 (layer 1), 2.7 × budget 0.13, 1.3 × a 4-bit copy``.

    Whatever else a receipt knows of a drift is said here, so that every sentence about a drift says it.
    """
    where = f" ({place(line)})" if place(line) else ""
    held = figures.limit(line)
    return f"{gate_name(line.gate)} {number(line.estimate)}{where}{f', {held}' if held else ''}{against_copy(line)}"


def next_step(step: NextStep) -> str:
    """A next step in words."""
    return shown(f"{step.pattern}: {step.first}", 400)


def names(receipt: ReceiptView) -> str:
    """The checkpoints that were compared, base first."""
    found = receipt.checkpoints
    paths = [found[side].stored_at for side in ("base", "tuned") if side in found]
    return " → ".join(NOT_RECORDED if path is None else shown(path) for path in paths)


def adapter(facts: AdapterFacts) -> str:
    """How an adapter was read."""
    ranks, alphas = (", ".join(f"{one:g}" for one in found) for found in (facts.ranks, facts.alphas))
    changed = [f"{facts.modules} modules of rank {ranks}, alpha {alphas}"] if facts.modules else []
    changed += [f"{facts.replaced} tensors replaced"] if facts.replaced else []
    kinds = [name for used, name in ((facts.rank_stabilised, "rsLoRA"), (facts.dora, "DoRA")) if used]
    stack = [f"experts' B read as {facts.packing} and A as {facts.side}"] if facts.packing else []
    merged = facts.reading == "merged"
    return ", ".join(
        [*changed, *kinds, *stack, "merged as PEFT merges" if merged else "kept as a sum in float32"]
    )


def sample(receipt: ReceiptView) -> str:
    """On how much the receipt rests."""
    windows = sum(domain.windows for domain in receipt.domains)
    documents = sum(domain.documents for domain in receipt.domains)
    return f"{windows} windows, {documents} documents"


def spelled(found: Bounded | None) -> str:
    """An interval in words; a dash where there is none."""
    if found is None:
        return interval(None)
    return interval({"estimate": found.estimate, "low": found.low, "high": found.high})


def estimate(found: Interval | None) -> float | None:
    """The estimate of an interval; None where there is none."""
    return None if found is None else found.estimate
