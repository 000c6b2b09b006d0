"""A plain sentence for each predicate, for a colleague who has never seen a receipt: damage, atlas, task."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from moe_atlas.report import figures, words
from moe_atlas.report.yardstick import against_copy
from moe_atlas.text import number, shown
from moe_atlas.views.judged import EvidenceLine, PredicateView
from moe_atlas.views.receipt import ReceiptView

DOMAINS, CLAUSES = 3, 2  # named before the rest is counted
ATLAS = "protected_atlas_rewrite"
MOVED = {
    "boundary": "the same states now go to other experts",
    "content": "the experts write other updates",
    "expert_content": "single experts write other updates",
    "transition": "the router weighs the experts otherwise",
    "coordinate": "other states reach the router",
    "overlap_drop": "experts that work together fit each other less",
    "dead_share_rise": "experts lost all their tokens",
    "entropy_drop": "the tokens crowd onto fewer experts",
    "load_cv_rise": "the experts share the load less evenly",
}
"""What a failed gate of the atlas means, in the order in which a colleague wants to know it."""
KEPT = {
    "boundary": "the same states still go to the same experts",
    "content": "the experts still write the same updates",
}
DAMAGED = {"kl": "the predictions on {} left the base's", "canary": "a window of {} got worse"}
"""What a failed gate of the damage means that is neither a mean loss nor a broken number."""
TASK = {
    "chart-preserving": "the task was reached, and the atlas was kept",
    "chart-redefining": "the task was reached, by rewriting the atlas",
    "knowledge-expansive": "the task was reached by rewriting the atlas; an attempt that kept the atlas missed it",
    "misclassified": "the task was reached by rewriting the atlas; another attempt reached it without",
    "task-not-reached": "the task was missed",
    "task-reached": "the task was reached",
    "not-applicable": "no task was registered",
    "nothing-tuned": "nothing was tuned: both checkpoints hold the same values",
}
COUNTS = (
    "no",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
)


class Sentence(NamedTuple):
    """What became of one predicate.

    Attributes:
        about: ``damage``, ``atlas`` or ``task``.
        result: ``pass``, ``fail``, ``undetermined``, or ``not-gated`` for what was measured and not judged.
        text: the sentence, which may hold names from files.
    """

    about: str
    result: str
    text: str


def sentences(receipt: ReceiptView) -> list[Sentence]:
    """Return the three sentences, damage first; none of a baseline, which tests nothing."""
    if receipt.is_baseline:
        return []
    found = receipt.predicates
    atlas = found[ATLAS]
    judged = words.PASSED[atlas.passed] if atlas.outcome != "not-judged" else "not-gated"
    return [
        _sentence("damage", found["base_domain_damage"], _damage(receipt)),
        Sentence("atlas", judged, _finished(_atlas(receipt))),
        _sentence("task", found["knowledge_expansive"], _task(receipt)),
    ]


def _sentence(about: str, predicate: PredicateView, text: str) -> Sentence:
    return Sentence(about, words.PASSED[predicate.passed], _finished(text))


def _finished(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}".rstrip(".") + "."


def _damage(receipt: ReceiptView) -> str:
    predicate = receipt.predicates["base_domain_damage"]
    losses = _worst(line for line in predicate.evidence if line.gate == "nll_increase" and line.estimate)
    failed = [line for line in predicate.evidence if line.result == "fail"]
    if failed:
        return _listed(
            [*_worse(receipt, [line for line in losses if line in failed]), *_other_damage(failed)]
        )
    if predicate.passed:
        worst = [f"; the worst: {_changed(receipt, line)}" for line in losses[:1]]
        return f"no base domain got worse beyond its margin{''.join(worst)}"
    return _open("a base domain was damaged", predicate)


def _worse(receipt: ReceiptView, lines: Sequence[EvidenceLine]) -> Iterator[str]:
    """The first domain in a clause of its own, the others by their numbers."""
    for line in lines[:1]:
        yield _changed(receipt, line)
    for line in lines[1:DOMAINS]:
        yield f"{shown(str(line.domain))} {number(line.estimate)} ({figures.limit(line)}{against_copy(line)})"
    yield from _more(len(lines) - DOMAINS, "domain")


def _other_damage(failed: Sequence[EvidenceLine]) -> Iterator[str]:
    """The first line of each other gate; a divergence says nothing new where a loss failed."""
    gates = {line.gate for line in failed}
    for group in words.grouped(failed):
        line = group.lines[0]
        if group.gate in DAMAGED and not (group.gate == "kl" and "nll_increase" in gates):
            yield f"{DAMAGED[group.gate].format(shown(str(line.domain)))} ({figures.limit(line)})"
        elif group.gate not in (*DAMAGED, "nll_increase"):
            yield words.gate_sentence(line)


def _listed(clauses: Sequence[str], most: int = DOMAINS) -> str:
    return "; ".join([*clauses[:most], *_more(len(clauses) - most, "finding")])


def _worst(lines: Iterable[EvidenceLine]) -> list[EvidenceLine]:
    """Lines of evidence, the one furthest past its limit first; those without a limit by their size."""
    return sorted(lines, key=lambda line: -(line.estimate or 0.0) / (line.budget or 1.0))


def _changed(receipt: ReceiptView, line: EvidenceLine) -> str:
    changed = f"{shown(str(line.domain))} {figures.loss(receipt, line.estimate or 0.0)}"
    held = f"{figures.limit(line)}{against_copy(line)}".removeprefix(", ")
    return f"{changed} ({held})" if held else changed


def _atlas(receipt: ReceiptView) -> str:
    predicate = receipt.predicates[ATLAS]
    failed = [group for group in words.grouped(predicate.evidence) if group.result == "fail"]
    if failed:
        order = [*MOVED]
        drifts = sorted((one for one in failed if one.gate in MOVED), key=lambda one: order.index(one.gate))
        stored = [words.gate_sentence(one.lines[0]) for one in failed if one.gate not in MOVED]
        return _listed([*stored, *(_moved(receipt, one.gate, one.lines) for one in drifts)], CLAUSES)
    if predicate.outcome == "not-judged":
        return "the atlas was measured, not judged"
    return _kept(receipt, predicate) if predicate.passed else _open("the atlas was kept", predicate)


def _moved(receipt: ReceiptView, gate: str, lines: Sequence[EvidenceLine]) -> str:
    """What moved, in which layers, and in which most."""
    layers = sorted({line.layer for line in lines if line.layer is not None})
    worst = _worst(lines)[0]
    most = f", most in layer {worst.layer}" if len(layers) > 1 else ""
    often = figures.times(worst.estimate, worst.budget)
    held = f" ({often} the budget{against_copy(worst)})" if often else ""
    return f"{MOVED[gate]} in {_layers(receipt, layers)}{most}{held}"


def _layers(receipt: ReceiptView, layers: Sequence[int]) -> str:
    """Which of the protected layers, in words: ``all six layers``, ``two of six protected layers``, ``layer 3``."""
    protected, routed = len(receipt.protected), len(receipt.layers)
    if len(layers) == 1:
        return f"layer {layers[0]}"
    if len(layers) == protected:
        every = "both" if protected == 2 else f"all {counted(protected)}"
        return f"{every} {'' if protected == routed else 'protected '}layers"
    return f"{counted(len(layers))} of {counted(protected)} protected layers"


def counted(count: int) -> str:
    """A count in words where it is small."""
    return COUNTS[count] if count < len(COUNTS) else str(count)


def _kept(receipt: ReceiptView, predicate: PredicateView) -> str:
    passed = [line for line in predicate.evidence if line.result == "pass"]
    gates = {line.gate for line in passed}
    kept = " and ".join(clause for gate, clause in KEPT.items() if gate in gates)
    nearest = [line for line in _worst(passed) if figures.times(line.estimate, line.budget)][:1]
    said = f"within the budgets, {kept}" if kept else "every part of the atlas with a budget kept it"
    return "; ".join([said, *(f"nearest to its budget: {words.drift(receipt, line)}" for line in nearest)])


def unjudged(receipt: ReceiptView) -> str:
    """The channels that moved and that no budget was registered for, each with its worst protected layer."""
    worst: dict[str, EvidenceLine] = {}
    for line in receipt.predicates[ATLAS].evidence:
        if line.result != "not-gated" or not line.estimate or line.layer is None:
            continue
        known = worst.get(line.gate)
        if line.estimate > max(0.0, (known.estimate if known else None) or 0.0):
            worst[line.gate] = line
    named = [words.drift(receipt, line) for line in worst.values()]
    return f"{figures.NO_BUDGET}: {', '.join(named)}" if named else ""


def _task(receipt: ReceiptView) -> str:
    predicate = receipt.predicates["knowledge_expansive"]
    found = next((line for line in predicate.evidence if line.gate == "task_success"), None)
    reached = found is not None and found.result == "pass"
    if predicate.outcome in TASK:
        said = TASK[predicate.outcome]
    elif reached:
        said = "the task was reached; whether it needed a rewrite is open"
    else:
        return _open("the task was reached", predicate)
    return f"{said} ({_success(found)})" if found is not None and found.estimate is not None else said


def _success(line: EvidenceLine) -> str:
    """The domain, its metric where the line names it, the estimate and the target."""
    metric = [(line.reason or "").replace("_", " ")] if line.result == "pass" else []
    return " ".join(
        [shown(str(line.domain)), *metric, f"{number(line.estimate)}, target {number(line.budget)}"]
    )


def _open(question: str, predicate: PredicateView) -> str:
    """That a question is open, and the first gate or the reason that leaves it open."""
    undecided = [line for line in predicate.evidence if line.result == "undetermined"]
    reasons = [words.gate_sentence(line) for line in undecided[:1]] or [shown(predicate.reason or "", 300)]
    return f"whether {question} is open: {reasons[0]}".removesuffix(": ")


def _more(count: int, noun: str) -> list[str]:
    return [] if count <= 0 else [f"{counted(count)} more {noun}{'s' if count > 1 else ''}"]
