from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_atlas.errors import Exit
from moe_atlas.lifecycle.episodes import GateRecord
from moe_atlas.lifecycle.escalation import Reading, escalate, exit_code
from moe_atlas.lifecycle.perplexity import decline_per_100_steps, decline_trend

OCCUPANCY = ("dead_share", "entropy", "load_cv")


def bad(overlap: float | None = 0.0, pathology: tuple[str, ...] = OCCUPANCY, **more: object) -> GateRecord:
    return GateRecord(
        kind="audit",
        verdict="fail",
        overlap=overlap,
        overlap_worse=True,
        pathology=pathology,
        occupancy_healthy=not pathology,
        policy="p",
        **more,  # type: ignore[arg-type]
    )


def good(overlap: float | None = 0.08, **more: object) -> GateRecord:
    return GateRecord(
        kind="audit",
        verdict="pass",
        overlap=overlap,
        overlap_worse=False,
        occupancy_healthy=True,
        policy=str(more.pop("policy", "p")),
        **more,  # type: ignore[arg-type]
    )


BASELINE = GateRecord(kind="baseline", overlap=0.083, policy="p")
OPEN = GateRecord(kind="audit", verdict="inconclusive", policy="p")


def states(*gates: GateRecord) -> list[tuple[str | None, str]]:
    return [(reading.colour, reading.state) for reading in escalate(gates)]


# Table 3 of the paper: step, loss, State2 C2, State1 margin, dead experts, mean CV (in per cent), min entropy.
DISTILL_640 = [
    (500, 4.73, -0.027, 0.009, 285, 190, 2.32),
    (1000, 4.53, -0.020, 0.011, 285, 190, 2.32),
    (1500, 4.48, -0.042, 0.013, 300, 194, 2.25),
    (2000, 4.48, -0.063, 0.014, 300, 205, 2.25),
]


def distill_640() -> list[GateRecord]:
    baseline = GateRecord(
        kind="baseline",
        step=0,
        overlap=0.083,
        dead_experts=42,
        load_cv=1.40,
        min_entropy=3.0,
        nll=5.25,
        policy="p",
    )
    gates = [
        bad(
            c2,
            step=step,
            nll=loss,
            set_margin=margin,
            dead_experts=dead,
            load_cv=cv / 100,
            min_entropy=entropy,
        )
        for step, loss, c2, margin, dead, cv, entropy in DISTILL_640
    ]
    return [baseline, *gates]


def test_distill_640_gate_by_gate() -> None:
    """Tables 6 and 13: revoke at 500, stay on alert at 1000, prepare at 1500, intervene at 2000."""
    readings = escalate(distill_640())
    assert [(r.gate.step, r.colour, r.state) for r in readings] == [
        (0, None, "waiting"),
        (500, "YELLOW", "first-bad"),
        (1000, "YELLOW", "alert"),
        (1500, "YELLOW", "prepare"),
        (2000, "RED", "intervene"),
    ]
    assert [r.rebound for r in readings] == [False, False, True, False, False]
    assert [r.margin_trap for r in readings] == [False, False, True, True, True]
    assert [exit_code(readings[: n + 1]) for n in range(5)] == [3, 3, 3, 3, 1]
    for reading in readings[1:]:
        assert "without geometric recovery" in reading.meaning
        assert reading.pattern == "co-active overlap failure plus a narrowed visited region"
        assert "router prior" in reading.intervention
    assert "revoke" in readings[1].action
    assert "no all-clear" in readings[2].action
    assert "prepare" in readings[3].action
    assert "intervene" in readings[4].action


def test_distill_640_perplexity_slows_down() -> None:
    readings = escalate(distill_640())
    rates = [reading.decline for reading in readings]
    assert rates[0] is None
    expected = [math.exp((a - b) / 5) - 1 for a, b in itertools.pairwise([5.25, 4.73, 4.53, 4.48, 4.48])]
    assert rates[1:] == pytest.approx(expected)
    assert [r.decline_trend for r in readings] == [None, None, "gradual", "gradual", "gradual"]


def test_sft_640_a_healthy_resume_is_no_preservation() -> None:
    """Tables 5 and 13: with only a new baseline there is nothing to do but wait."""
    resume = GateRecord(
        kind="resume", step=36500, overlap=0.0057, dead_experts=0, min_entropy=6.14, policy="p"
    )
    readings = escalate([resume])
    assert (readings[0].colour, readings[0].state) == (None, "waiting")
    assert "missing receipt" in readings[0].pattern
    assert exit_code(readings) == Exit.INCONCLUSIVE
    readings = escalate([resume, good(0.0086)])
    assert (readings[1].colour, readings[1].state) == ("GREEN", "clear")
    assert exit_code(readings) == Exit.PASS


@pytest.mark.parametrize(
    ("gates", "expected"),
    [
        ([good()], [("GREEN", "clear")]),
        ([OPEN], [("YELLOW", "undetermined")]),
        ([good(), OPEN, good()], [("GREEN", "clear"), ("YELLOW", "undetermined"), ("GREEN", "clear")]),
        ([bad()], [("YELLOW", "first-bad")]),
        # no rebound at all: two later worse gates are enough
        (
            [bad(0.0), bad(-0.1), bad(-0.2)],
            [("YELLOW", "first-bad"), ("YELLOW", "prepare"), ("RED", "intervene")],
        ),
        # an inconclusive gate neither clears nor escalates
        ([bad(), OPEN, OPEN, OPEN, OPEN], [("YELLOW", "first-bad"), *[("YELLOW", "alert")] * 4]),
        # one pass is a plausible repair, two are a recovery
        ([bad(), good(), good()], [("YELLOW", "first-bad"), ("GREEN", "recovering"), ("GREEN", "clear")]),
        # an interrupted recovery starts again
        (
            [bad(0), good(), OPEN, good(), good()],
            [
                ("YELLOW", "first-bad"),
                ("GREEN", "recovering"),
                ("YELLOW", "alert"),
                ("GREEN", "recovering"),
                ("GREEN", "clear"),
            ],
        ),
        # and the count of worse gates goes on
        (
            [bad(0), bad(-1), good(), bad(-2)],
            [("YELLOW", "first-bad"), ("YELLOW", "prepare"), ("GREEN", "recovering"), ("RED", "intervene")],
        ),
        # after a recovery the next bad gate is a first one again
        (
            [bad(0), bad(-1), good(), good(), bad(-2)],
            [
                ("YELLOW", "first-bad"),
                ("YELLOW", "prepare"),
                ("GREEN", "recovering"),
                ("GREEN", "clear"),
                ("YELLOW", "first-bad"),
            ],
        ),
        # RED stays while the gate is bad or open, whatever overlap does
        (
            [bad(0), bad(-1), bad(-2), bad(5), OPEN, good()],
            [
                ("YELLOW", "first-bad"),
                ("YELLOW", "prepare"),
                ("RED", "intervene"),
                ("RED", "intervene"),
                ("RED", "intervene"),
                ("GREEN", "recovering"),
            ],
        ),
        # another occupancy pathology is not the same one
        (
            [bad(0, ("load_cv",)), bad(-1, ("entropy",)), bad(-2, ("entropy",))],
            [("YELLOW", "first-bad"), ("YELLOW", "alert"), ("YELLOW", "alert")],
        ),
        # the fourth bad gate of an episode ends the waiting whatever the pattern
        (
            [bad(0, ()), bad(-1, ()), bad(-2, ()), bad(-3, ())],
            [("YELLOW", "first-bad"), ("YELLOW", "alert"), ("YELLOW", "alert"), ("RED", "intervene")],
        ),
        (
            [bad(None), bad(None), bad(None), bad(None)],
            [("YELLOW", "first-bad"), ("YELLOW", "alert"), ("YELLOW", "alert"), ("RED", "intervene")],
        ),
        # equal overlap is not worse
        ([bad(0), bad(0), bad(0)], [("YELLOW", "first-bad"), ("YELLOW", "alert"), ("YELLOW", "alert")]),
    ],
)
def test_the_rule(gates: list[GateRecord], expected: list[tuple[str | None, str]]) -> None:
    assert states(*gates) == expected


def test_a_new_baseline_does_not_talk_past_a_bad_gate() -> None:
    dirty = replace(BASELINE, kind="resume", clean=False)
    unknown = replace(BASELINE, kind="resume", clean=None)
    clean = replace(BASELINE, kind="resume", clean=True)
    foreign = replace(clean, policy="wider")
    for baseline in (dirty, unknown, foreign):
        assert states(bad(0), bad(-1), baseline, bad(-2))[-1] == ("RED", "intervene")
        assert states(bad(0), baseline, good())[-1] == ("GREEN", "recovering")
    assert states(bad(0), bad(-1), clean, bad(-2))[-1] == ("YELLOW", "first-bad")
    assert states(bad(0), clean, good())[-1] == ("GREEN", "clear")


def test_a_pass_under_another_policy_ends_no_episode() -> None:
    other = good(policy="wider")
    assert states(bad(0), other, other, other)[-1] == ("YELLOW", "alert")
    assert states(bad(0), bad(-1), bad(-2), other)[-1] == ("RED", "intervene")
    assert states(bad(0), other, good(), good())[-1] == ("GREEN", "clear")
    assert states(other)[-1] == ("GREEN", "clear")


def fresh(number: int, **more: object) -> GateRecord:
    """A pass of a checkpoint of its own, against one base, under one registration."""
    return replace(good(weights=f"w{number}", base="b", registration="r", step=100 * number), **more)  # type: ignore[arg-type]


FAILED = bad(0.0, weights="w0", base="b", registration="r", step=0)


@pytest.mark.parametrize(
    ("passes", "state", "why"),
    [
        ([fresh(1), fresh(2)], ("GREEN", "clear"), None),
        ([fresh(1), fresh(1)], ("YELLOW", "alert"), "it counts once"),
        ([fresh(1), fresh(1, step=900)], ("YELLOW", "alert"), "it counts once"),
        ([fresh(1), fresh(1), fresh(2)], ("GREEN", "clear"), None),
        # the checkpoint that failed says nothing new when it passes
        ([fresh(1), fresh(2, weights="w0")], ("YELLOW", "alert"), "it counts once"),
        ([fresh(1, identical=True), fresh(2, identical=True)], ("YELLOW", "alert"), "nothing was compared"),
        ([fresh(1), fresh(2, identical=True)], ("YELLOW", "alert"), "nothing was compared"),
        ([fresh(1, policy="wider"), fresh(2, policy="wider")], ("YELLOW", "alert"), "another policy"),
        ([fresh(1, base="other"), fresh(2, base="other")], ("YELLOW", "alert"), "another base"),
        ([fresh(1, registration="x"), fresh(2, registration="x")], ("YELLOW", "alert"), "other registered windows"),
        ([fresh(1), fresh(2, base="other")], ("YELLOW", "alert"), "another base"),
        ([fresh(1, step=-200), fresh(2, step=-100)], ("YELLOW", "alert"), "older than the last bad gate"),
        # what an entry of an earlier version does not say is not held against it
        ([fresh(1, base=None, registration=None, weights=None)] * 2, ("GREEN", "clear"), None),
    ],
)  # fmt: skip
def test_what_a_pass_must_be_to_count(
    passes: list[GateRecord], state: tuple[str, str], why: str | None
) -> None:
    last = escalate([FAILED, *passes])[-1]
    assert (last.colour, last.state) == state
    assert (exit_code([last]) == Exit.PASS) == (state[1] == "clear")
    if why is None:
        assert last.not_counted is None
    else:
        assert why in (last.not_counted or "")
        assert last.pattern == last.not_counted
        assert "audit a" in last.intervention


def test_an_identical_pair_never_clears_a_run() -> None:
    nothing = fresh(1, identical=True)
    assert states(nothing) == [("YELLOW", "undetermined")]
    assert states(fresh(1), nothing)[-1] == ("YELLOW", "undetermined")
    assert states(BASELINE, nothing, fresh(2))[-1] == ("GREEN", "clear")
    assert states(bad(0), bad(-1), bad(-2), nothing)[-1] == ("RED", "intervene")
    # it is no gate to be worse than, either
    higher = replace(nothing, overlap=0.9)
    assert states(bad(0), higher, bad(0.1), higher, bad(0.2))[-1] == ("YELLOW", "alert")


def test_a_recovery_answers_for_every_policy_that_failed() -> None:
    """A failure under a policy that forgives all else does not open a way round the one that matters."""
    weak = replace(FAILED, policy="weak")
    assert states(weak, FAILED, fresh(1, policy="weak"), fresh(2, policy="weak"))[-1] == (
        "GREEN",
        "recovering",
    )
    assert states(weak, FAILED, fresh(1), fresh(2))[-1] == ("GREEN", "recovering")
    both = [fresh(n, policy=policy) for n in (1, 2) for policy in ("weak", "p")]
    assert states(weak, FAILED, *both)[-1] == ("GREEN", "clear")


def test_a_clean_baseline_waits_for_one_pass_that_counts() -> None:
    clean = replace(BASELINE, clean=True, registration="r")
    for nothing in (fresh(1, identical=True), fresh(1, policy="wider"), fresh(1, weights="w0")):
        assert states(FAILED, clean, nothing)[-1] == ("YELLOW", "undetermined")
    assert states(FAILED, clean, fresh(1))[-1] == ("GREEN", "clear")
    assert states(FAILED, replace(clean, registration="x"), fresh(1))[-1] == ("GREEN", "recovering")
    # a rollback that is on record may pass earlier steps again
    assert states(FAILED, clean, fresh(-1))[-1] == ("GREEN", "clear")
    assert states(FAILED, replace(clean, clean=None), fresh(-1), fresh(-2))[-1] == ("GREEN", "clear")
    # a new bad gate is a first one, and answers to what failed before as well
    again = replace(FAILED, policy="weak", weights="w9")
    assert states(FAILED, clean, again)[-1] == ("YELLOW", "first-bad")
    assert states(FAILED, clean, again, fresh(1, policy="weak"), fresh(2, policy="weak"))[-1] == (
        "GREEN",
        "recovering",
    )


def missed(number: int, **more: object) -> GateRecord:
    """Atlas and damage pass, the task is not reached: the receipt fails."""
    record = fresh(number, verdict="fail", structure="pass", failed=("task_success",))
    return replace(record, **more)  # type: ignore[arg-type]


def test_a_missed_task_is_no_bad_gate() -> None:
    early = [missed(n) for n in range(1, 7)]
    assert states(*early) == [("GREEN", "task-open")] * 6
    readings = escalate(early)
    assert exit_code(readings) == Exit.INCONCLUSIVE
    assert "claim no success" in readings[-1].action
    assert "the task, not the atlas" in readings[-1].pattern
    assert states(*early, fresh(7))[-1] == ("GREEN", "clear")
    open_task = fresh(1, verdict="inconclusive", structure="pass")
    assert states(open_task) == [("GREEN", "task-open")]


def test_a_missed_task_hides_neither_drift_nor_recovery() -> None:
    drifting = [replace(bad(-n), structure="fail", failed=("task_success", "overlap_drop")) for n in range(3)]
    assert states(*drifting)[-1] == ("RED", "intervene")
    unclear = missed(1, structure="inconclusive")
    assert states(unclear) == [("YELLOW", "undetermined")]
    assert states(FAILED, unclear, missed(2), unclear)[-1] == ("YELLOW", "alert")
    assert states(FAILED, missed(1), missed(2))[1:] == [("GREEN", "recovering"), ("GREEN", "task-open")]
    assert states(FAILED, missed(1), fresh(2))[-1] == ("GREEN", "clear")
    # a receipt that reaches its task while the atlas fails would be a bad gate all the same
    assert states(replace(FAILED, verdict="pass", structure="fail")) == [("YELLOW", "first-bad")]


GATES = st.sampled_from(
    [
        good(),
        good(policy="wider"),
        *(fresh(n, step=None) for n in range(3)),
        fresh(3, identical=True),
        missed(4, step=None),
        OPEN,
        BASELINE,
        replace(BASELINE, clean=True),
        *(
            bad(overlap, pathology)
            for overlap in (None, -1.0, 0.0, 1.0)
            for pathology in ((), ("entropy",), OCCUPANCY)
        ),
    ]
)


@given(st.lists(GATES, max_size=12))
def test_only_a_green_gate_without_an_open_episode_exits_0(gates: list[GateRecord]) -> None:
    readings = escalate(gates)
    code = exit_code(readings)
    if code == Exit.PASS:
        assert gates[-1].verdict == "pass"
        failures = [n for n, gate in enumerate(gates) if gate.standing == "fail"]
        after = gates[failures[-1] + 1 :] if failures else gates
        counted = [
            gate for gate in after if gate.standing == "pass" and gate.policy == "p" and not gate.identical
        ]
        known = {gate.weights for gate in counted if gate.weights}
        different = len(known) + sum(gate.weights is None for gate in counted)
        assert not failures or different >= 2 or (different and any(gate.clean for gate in gates))
        assert not gates[-1].identical
    if code == Exit.FAIL:
        assert [gate.standing for gate in gates].count("fail") >= 3
    assert code in (Exit.PASS, Exit.FAIL, Exit.INCONCLUSIVE)
    for reading in readings:
        assert (reading.colour == "GREEN") <= (reading.gate.standing == "pass")
        assert (reading.colour is None) == (reading.gate.kind != "audit")
        assert all((reading.action, reading.meaning, reading.pattern, reading.intervention))


@given(st.lists(GATES, max_size=10), GATES)
def test_readings_depend_on_the_past_only(gates: list[GateRecord], more: GateRecord) -> None:
    assert escalate([*gates, more])[: len(gates)] == escalate(gates)


def test_an_empty_history_passes_nothing() -> None:
    assert exit_code([]) == Exit.INCONCLUSIVE


def only(gate: GateRecord) -> Reading:
    return escalate([gate])[0]


@pytest.mark.parametrize(
    ("overlap_worse", "pathology", "healthy", "improving", "meaning"),
    [
        (False, (), True, True, "jointly consistent with safe continuation"),
        (False, (), True, False, "the objective does not improve"),
        (False, OCCUPANCY, False, True, "usage narrows while overlap holds"),
        (True, (), True, True, "moves without an occupancy collapse"),
        (True, OCCUPANCY, False, True, "without geometric recovery"),
        (True, OCCUPANCY, False, False, "intervene or reset"),
        (True, OCCUPANCY, False, None, "the loss is not known"),
        (None, OCCUPANCY, False, True, "no joint reading"),
        (True, (), None, True, "no joint reading"),
        (False, (), True, None, "no joint reading"),
    ],
)
def test_table_11(
    overlap_worse: bool | None,
    pathology: tuple[str, ...],
    healthy: bool | None,
    improving: bool | None,
    meaning: str,
) -> None:
    gate = GateRecord(
        kind="audit",
        verdict="fail",
        overlap_worse=overlap_worse,
        pathology=pathology,
        occupancy_healthy=healthy,
        objective_improved=improving,
    )
    assert meaning in only(gate).meaning


@pytest.mark.parametrize(
    ("gate", "pattern", "move"),
    [
        (bad(), "co-active overlap failure", "regularise endpoints"),
        (bad(pathology=()), "atlas drift without occupancy collapse", "protected layers first"),
        (replace(bad(), overlap_worse=False), "a narrowed visited region", "load balancing"),
        (
            replace(bad(pathology=()), overlap_worse=False, margin_worse=True),
            "boundary-local routing",
            "gain drift",
        ),
        (replace(bad(), failed=("identity", "content")), "the expert layout", "save, shard and load path"),
        (replace(bad(), failed=("non_finite_weights",)), "the saved weights", "save or convert"),
        (replace(bad(), failed=("non_finite_output",)), "the saved weights", "look for an overflow"),
        (replace(bad(pathology=()), overlap_worse=False, failed=("nll",)), "gates nll", "evidence"),
        (replace(bad(pathology=()), overlap_worse=None), "gates the predicates", "evidence"),
        (OPEN, "the evidence, not yet the model", "more documents"),
        (good(), "none", "none"),
        (BASELINE, "a missing receipt", "first comparison"),
    ],
)
def test_table_14(gate: GateRecord, pattern: str, move: str) -> None:
    reading = only(gate)
    assert pattern in reading.pattern
    assert move in reading.intervention


def test_table_14_repair_needs_overlap_and_occupancy() -> None:
    first = bad(-0.05, dead_experts=300.0, min_entropy=2.25)
    repaired = bad(-0.02, dead_experts=200.0, min_entropy=2.5)
    overlap_only = bad(-0.02, dead_experts=300.0, min_entropy=2.25)
    mixed = bad(-0.02, dead_experts=200.0, min_entropy=2.0)
    assert "genuine repair" in escalate([first, repaired])[1].pattern
    for gate in (overlap_only, mixed):
        assert "overlap failure" in escalate([first, gate])[1].pattern
    assert "genuine repair" in escalate([first, good()])[1].pattern


def test_the_margin_trap_needs_both() -> None:
    before = bad(0, set_margin=0.01)
    assert escalate([before, bad(0, set_margin=0.02)])[1].margin_trap
    assert not escalate([before, bad(0, set_margin=0.01)])[1].margin_trap
    assert not escalate([before, bad(0, (), set_margin=0.02)])[1].margin_trap
    assert not escalate([bad(0), bad(0, set_margin=0.02)])[1].margin_trap
    # against a baseline as well
    assert escalate([replace(BASELINE, set_margin=0.01), bad(0, set_margin=0.02)])[1].margin_trap


def ppl_rate(before: float, after: float, steps: int) -> float:
    found = decline_per_100_steps(math.log(before), math.log(after), 0, steps)
    assert found is not None
    return found


def test_rates_of_the_published_overfit_run() -> None:
    """The dropout run: 991K to 208K over 250 steps was called 86 % per 100 steps, 208K to 43K over 200, 120 %."""
    first, second = ppl_rate(991e3, 208e3, 250), ppl_rate(208e3, 43e3, 200)
    assert round(first, 2) == pytest.approx(0.87, abs=0.011)
    assert round(second, 2) == pytest.approx(1.20, abs=0.011)
    flat = ppl_rate(991e3, 991e3, 50)
    assert flat == 0
    assert decline_trend([flat, first]) == "constant-or-accelerating"
    assert decline_trend([first, second]) == "constant-or-accelerating"


def test_rates_of_the_memorising_run() -> None:
    """330, 67, 22 and 12 at steps 1000, 3000, 5000 and 5630: slows down first, then does not."""
    rates = [ppl_rate(330, 67, 2000), ppl_rate(67, 22, 2000), ppl_rate(22, 12, 630)]
    assert decline_trend(rates[:1]) is None
    assert decline_trend(rates[:2]) == "gradual"
    assert decline_trend(rates) == "constant-or-accelerating"


@pytest.mark.parametrize(
    ("rates", "trend"),
    [
        ([0.5, 0.45], "constant-or-accelerating"),
        ([0.5, 0.44], "gradual"),
        ([0.005, 0.009], "gradual"),
        ([0.005, 0.01], "constant-or-accelerating"),
        ([0.5, -0.2], "gradual"),
        ([-0.2, -0.1], "gradual"),
        ([0.9, 0.1, 0.3], "constant-or-accelerating"),
        ([], None),
    ],
)
def test_decline_trend(rates: list[float], trend: str | None) -> None:
    assert decline_trend(rates) == trend


@pytest.mark.parametrize(
    "arguments",
    [(None, 1.0, 0, 10), (1.0, None, 0, 10), (1.0, 1.0, None, 10), (1.0, 1.0, 0, None), (2.0, 1.0, 10, 10)],
)
def test_no_rate_without_its_parts(
    arguments: tuple[float | None, float | None, int | None, int | None],
) -> None:
    assert decline_per_100_steps(*arguments) is None


def test_a_missing_figure_breaks_the_series_of_rates() -> None:
    gates = [
        replace(good(), step=step, nll=nll)
        for step, nll in [(0, 5.0), (100, 4.0), (200, None), (300, 2.0), (400, 1.0)]
    ]
    assert [r.decline_trend for r in escalate(gates)] == [None] * 5
    assert [r.decline is None for r in escalate(gates)] == [True, False, True, True, False]
    assert math.isclose(escalate(gates)[4].decline or 0, math.e - 1)


def test_improvement_is_read_from_the_receipt_else_from_the_first_figure() -> None:
    stable = replace(good(), objective_improved=None)
    readings = escalate([replace(stable, nll=4.0), replace(stable, nll=3.0), replace(stable, nll=5.0)])
    assert "no joint reading" in readings[0].meaning
    assert "safe continuation" in readings[1].meaning
    assert "does not improve" in readings[2].meaning
    readings = escalate([replace(stable, nll=4.0), replace(stable, nll=3.0, objective_improved=False)])
    assert "does not improve" in readings[1].meaning
