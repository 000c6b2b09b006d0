"""Every derived number of a receipt against the plain-loop statistics."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest

from moe_atlas.derivation.derive import derive
from moe_atlas.derivation.intervals.context import make_context
from moe_atlas.errors import UsageError
from tests.receipt import synthetic
from tests.statistics import plain

CONFIDENCE = 0.9
GATED = ("coordinate_drift_z", "boundary_drift", "transition_drift", "content_drift", "overlap_drop")
GATED += ("dead_share_rise", "entropy_drop", "load_cv_rise")
Functional = Callable[[Sequence[float]], float]
Numbers = tuple[float, float, float]


class Oracle:
    """The same receipt computed window by window, without the product's statistics."""

    def __init__(self, facts: dict[str, Any], windows: dict[str, np.ndarray]) -> None:
        self.facts, self.windows = facts, windows
        design = make_context(facts, windows).design
        self.weights: list[list[float]] = design.weights_BC.tolist()
        self.domains = [list(range(part.start, part.stop)) for part in design.slices]
        roles = [facts["probe"]["domains"][d]["role"] for d in windows["windows.domain"]]
        self.base = np.array([role == "base" for role in roles])
        documents = windows["windows.document"][self.base]
        self.rows = [np.flatnonzero(documents == number) for number in sorted(set(documents.tolist()))]

    def sums(self, values: np.ndarray) -> list[float]:
        return [float(np.nansum(values[rows])) for rows in self.rows]

    def mean(self, values: np.ndarray) -> Functional:
        return plain.domain_mean(self.sums(values), self.sums(np.isfinite(values)), self.domains)

    def ratio_mean(self, name: str) -> Functional:
        total, count = self.windows[f"{name}.sum"], self.windows[f"{name}.count"]
        return plain.domain_mean(self.sums(total), self.sums(count), self.domains)

    def counts(self, name: str) -> list[list[float]]:
        counts = self.windows[f"{name}.counts"]
        return [[float(value) for value in counts[rows].sum(axis=0)] for rows in self.rows]

    def t(self, functional: Functional) -> Numbers:
        return plain.bootstrap_t(functional, self.weights, self.domains, CONFIDENCE)

    def basic(self, functional: Functional) -> Numbers:
        return plain.basic(functional, self.weights, len(self.rows), CONFIDENCE)

    def wider(self, functional: Functional) -> Numbers:
        return plain.wider_tail(functional, self.weights, len(self.rows), CONFIDENCE)

    def studentised(self, functional: Functional) -> tuple[float, float, list[float]]:
        ones = [1.0] * len(self.rows)
        estimate = functional(ones)
        out = []
        for weights in self.weights:
            spread = plain.standard_error(functional, weights, self.domains)
            out.append((functional(weights) - estimate) / spread)
        return estimate, plain.standard_error(functional, ones, self.domains), out

    def spread(self, functional: Functional) -> tuple[float, float, list[float]]:
        estimate = functional([1.0] * len(self.rows))
        shifts = [functional(weights) - estimate for weights in self.weights]
        error = math.sqrt(math.fsum(shift**2 for shift in shifts) / len(shifts))
        return estimate, error, [abs(shift) / error for shift in shifts]

    def simultaneous(self, functionals: list[Functional], switching: Sequence[bool] = ()) -> list[float]:
        kinds = switching or [False] * len(functionals)
        found = [
            self.spread(functional) if switches else self.studentised(functional)
            for functional, switches in zip(functionals, kinds, strict=True)
        ]
        largest = [max(t[b] for _, _, t in found) for b in range(len(self.weights))]
        step = plain.order_statistics(largest, CONFIDENCE)[1]
        return [estimate - step * error for estimate, error, _ in found]


@pytest.fixture(scope="module")
def case() -> tuple[dict[str, Any], Oracle]:
    facts = synthetic.facts(layers=(1, 2, 4), experts=5)
    facts["probe"]["policy"] |= {"confidence": CONFIDENCE, "resamples": 39}
    for domain, documents in zip(facts["probe"]["domains"], (8, 9, 2, 7), strict=True):
        domain["documents"] = documents
    windows = synthetic.windows(facts, seed=3, per_document=2, tokens=600)
    rng = np.random.default_rng(1)
    for name in ("layers.2.pair.content_drift", "layers.2.base.overlap", "layers.2.tuned.overlap"):
        windows[name][rng.integers(0, 34, 4)] = np.nan
    return derive(facts, windows), Oracle(facts, windows)


def agree(shown: dict[str, Any], expected: Numbers, rel: float = 2e-5) -> None:
    assert [shown["estimate"], shown["low"], shown["high"]] == pytest.approx(expected, rel=rel, abs=1e-9)


def layer_of(receipt: dict[str, Any], number: int) -> dict[str, Any]:
    return next(layer for layer in receipt["layers"] if layer["layer"] == number)


@pytest.mark.parametrize("key", synthetic.PAIR)
def test_channels(case: tuple[dict[str, Any], Oracle], key: str) -> None:
    receipt, oracle = case
    values = oracle.windows[f"layers.2.pair.{key}"]
    agree(layer_of(receipt, 2)["pair"][key], oracle.t(oracle.mean(values)))


def test_overlap_drop_is_paired(case: tuple[dict[str, Any], Oracle]) -> None:
    receipt, oracle = case
    difference = oracle.windows["layers.2.base.overlap"] - oracle.windows["layers.2.tuned.overlap"]
    shown = layer_of(receipt, 2)["pair"]["overlap_drop"]
    agree(shown, oracle.t(oracle.mean(difference)))
    assert shown["windows"] == int(np.isfinite(difference).sum())


@pytest.mark.parametrize("key", synthetic.HEALTH)
@pytest.mark.parametrize("side", ["base", "tuned"])
def test_health_means(case: tuple[dict[str, Any], Oracle], side: str, key: str) -> None:
    receipt, oracle = case
    agree(layer_of(receipt, 4)[side][key], oracle.t(oracle.mean(oracle.windows[f"layers.4.{side}.{key}"])))


@pytest.mark.parametrize("side", ["base", "tuned"])
def test_occupancy(case: tuple[dict[str, Any], Oracle], side: str) -> None:
    receipt, oracle = case
    counts = oracle.counts(f"layers.4.{side}")
    shown = layer_of(receipt, 4)[side]
    entropy = plain.entropy(counts)
    agree(shown["load_entropy"], oracle.t(entropy))
    agree(shown["effective_experts"], oracle.t(lambda w: math.exp(entropy(w))))
    agree(shown["load_cv"], oracle.t(plain.load_cv(counts)))
    agree(shown["max_violation"], oracle.wider(plain.max_violation(counts)))
    agree(shown["min_share"], oracle.wider(plain.min_share(counts, 2)))
    tokens = sum(map(sum, counts)) / 2
    assert shown["expert_share"] == pytest.approx(
        [sum(column) / tokens for column in zip(*counts, strict=True)]
    )
    assert sum(shown["expert_share"]) == pytest.approx(2.0)
    assert shown["dead_by_chance"] == pytest.approx(5 * (1 - 2 / 5) ** tokens)


def test_occupancy_differences(case: tuple[dict[str, Any], Oracle]) -> None:
    receipt, oracle = case
    base, tuned = oracle.counts("layers.4.base"), oracle.counts("layers.4.tuned")
    pair = layer_of(receipt, 4)["pair"]
    h0, h1, cv0, cv1 = plain.entropy(base), plain.entropy(tuned), plain.load_cv(base), plain.load_cv(tuned)
    agree(pair["entropy_drop"], oracle.t(lambda w: h0(w) - h1(w)), rel=1e-4)
    agree(pair["load_cv_rise"], oracle.t(lambda w: cv1(w) - cv0(w)), rel=1e-4)
    agree(pair["dead_share_rise"], (0.0, 0.0, 0.0))


def test_dead_experts_are_reflected() -> None:
    facts, windows = synthetic.audit()
    rng = np.random.default_rng(0)
    sparse = (rng.random((76, 8)) < np.linspace(0.0, 0.04, 8)) * 64
    sparse[:, 7] = 64
    windows["layers.2.tuned.counts"] = sparse.astype(np.int32)
    shown, oracle = derive(facts, windows), Oracle(facts, windows)
    facts["probe"]["policy"]["confidence"] = CONFIDENCE
    shown = derive(facts, windows)
    counts, before = oracle.counts("layers.2.tuned"), oracle.counts("layers.2.base")

    def dead(rows: list[list[float]]) -> Functional:
        return lambda weights: float(sum(load == 0 for load in plain.pooled(rows, weights)))

    layer = layer_of(shown, 2)
    estimate, low, high = oracle.basic(dead(counts))
    assert estimate > 0
    agree(layer["tuned"]["dead_experts"], (estimate, max(low, 0.0), max(high, 0.0)))
    agree(layer["tuned"]["active_experts"], oracle.basic(lambda w: 8 - dead(counts)(w)))
    rise = oracle.basic(lambda w: (dead(counts)(w) - dead(before)(w)) / 8)
    agree(layer["pair"]["dead_share_rise"], rise)


def test_ratios(case: tuple[dict[str, Any], Oracle]) -> None:
    receipt, oracle = case
    layer, windows = layer_of(receipt, 2), oracle.windows
    jump, field = (
        oracle.mean(windows["layers.2.tuned.jump"]),
        oracle.mean(windows["layers.2.tuned.field_norm"]),
    )
    agree(layer["tuned"]["jump_relative"], oracle.t(lambda w: jump(w) / field(w)))
    low, high = (oracle.ratio_mean(f"layers.2.tuned.overlap_{end}") for end in ("low", "high"))
    agree(layer["tuned"]["overlap_boundary_contrast"], oracle.t(lambda w: low(w) - high(w)), rel=1e-4)
    agree(layer["tuned"]["jump_near_boundary"], oracle.t(oracle.ratio_mean("layers.2.tuned.jump_low")))
    budget = "layers.2.pair.perturbation_budget"
    bound, actual = oracle.mean(windows[f"{budget}.bound"]), oracle.mean(windows[f"{budget}.actual"])
    shown = layer["pair"]["perturbation_budget"]
    agree(shown["ratio"], oracle.t(lambda w: bound(w) / actual(w)))
    for key in synthetic.BUDGET:
        agree(shown[key], oracle.t(oracle.mean(windows[f"{budget}.{key}"])))


def test_flips_are_counts(case: tuple[dict[str, Any], Oracle]) -> None:
    receipt, oracle = case
    for key in ("changed", "inside", "outside"):
        total = int(oracle.windows[f"layers.2.pair.flips.{key}"].sum())
        assert layer_of(receipt, 2)["pair"]["flips"][key] == total


def test_controls(case: tuple[dict[str, Any], Oracle]) -> None:
    receipt, oracle = case
    for key in ("raw_norm_drift", "raw_state_drift"):
        agree(
            layer_of(receipt, 2)["control"][key],
            oracle.t(oracle.mean(oracle.windows[f"layers.2.control.{key}"])),
        )


def test_simultaneous_bounds_span_the_protected_layers(case: tuple[dict[str, Any], Oracle]) -> None:
    receipt, oracle = case
    for key in ("content_drift", "boundary_drift"):
        functionals = [oracle.mean(oracle.windows[f"layers.{n}.pair.{key}"]) for n in (2, 4)]
        found = [layer_of(receipt, n)["pair"][key]["simultaneous_low"] for n in (2, 4)]
        assert found == pytest.approx(oracle.simultaneous(functionals), rel=1e-5)
    for key in GATED:
        assert "simultaneous_low" not in layer_of(receipt, 1)["pair"][key]


def loads(oracle: Oracle, number: int) -> tuple[Functional, Functional]:
    windows = oracle.windows
    boundary = oracle.mean(windows[f"layers.{number}.pair.boundary_drift"])
    content = oracle.mean(windows[f"layers.{number}.pair.content_drift"])
    share0 = plain.min_share(oracle.counts(f"layers.{number}.base"), 2)
    share1 = plain.min_share(oracle.counts(f"layers.{number}.tuned"), 2)

    def drift(w: Sequence[float]) -> float:
        return boundary(w) + content(w)

    return drift, lambda w: drift(w) + 0.5 * (1 - share1(w) / share0(w))


def deficits(oracle: Oracle, number: int) -> tuple[Functional, Functional]:
    windows = oracle.windows
    before = oracle.mean(windows[f"layers.{number}.base.overlap"])
    after = oracle.mean(windows[f"layers.{number}.tuned.overlap"])
    share0 = plain.min_share(oracle.counts(f"layers.{number}.base"), 2)
    share1 = plain.min_share(oracle.counts(f"layers.{number}.tuned"), 2)
    return (
        lambda w: before(w) - after(w),
        lambda w: before(w) - after(w) + 0.5 * (1 - share1(w) / share0(w)),
    )


@pytest.mark.parametrize(
    ("name", "branches", "tau"), [("refinement_margin", loads, 0.9), ("handoff_margin", deficits, 0.0)]
)
@pytest.mark.parametrize("suffix", ["", "_published"])
def test_margins(
    case: tuple[dict[str, Any], Oracle], name: str, branches: Any, tau: float, suffix: str
) -> None:
    receipt, oracle = case
    both = [branches(oracle, number) for number in (2, 4)]
    functionals = [branch for pair in both for branch in (pair if not suffix else pair[1:])]
    switching = [False, True] * 2 if not suffix else [True] * 2  # the second branch has a ratio of minima
    bounds = [oracle.wider(f) if s else oracle.t(f) for f, s in zip(functionals, switching, strict=True)]
    ones = [1.0] * len(oracle.rows)
    shown = receipt["margins"][f"{name}{suffix}"]
    assert shown["estimate"] == pytest.approx(tau - max(f(ones) for f in functionals))
    assert shown["low"] == pytest.approx(tau - max(bound[2] for bound in bounds), rel=1e-4)
    assert shown["high"] == pytest.approx(tau - max(oracle.simultaneous(functionals, switching)), rel=1e-4)


def test_the_clip_is_eq_31_and_32_with_max(case: tuple[dict[str, Any], Oracle]) -> None:
    receipt, oracle = case
    ones = [1.0] * len(oracle.rows)
    refinement, handoff = [], []
    for n in (2, 4):
        drift = loads(oracle, n)[0](ones)
        ratio = 1 - (loads(oracle, n)[1](ones) - drift) / 0.5
        refinement.append(drift + 0.5 * max(0.0, 1 - ratio))
        handoff.append(-deficits(oracle, n)[0](ones) + 0.5 * min(0.0, ratio - 1))
    assert receipt["margins"]["refinement_margin"]["estimate"] == pytest.approx(0.9 - max(refinement))
    assert receipt["margins"]["handoff_margin"]["estimate"] == pytest.approx(min(handoff))


def smin(values: list[float], beta: float, published: bool) -> float:
    total = math.fsum(math.exp(-beta * (value - min(values))) for value in values)
    return min(values) - math.log(total / (1 if published else len(values))) / beta


@pytest.mark.parametrize("published", [False, True])
def test_smooth_margins(case: tuple[dict[str, Any], Oracle], published: bool) -> None:
    receipt, oracle = case
    suffix = "_published" if published else ""

    def tail(number: int, side: str) -> Functional:
        rho = oracle.windows[f"layers.{number}.{side}.rho"]
        rows = [[float(v) for v in rho[index].sum(axis=0)] for index in oracle.rows]

        def functional(w: Sequence[float]) -> float:
            total = math.fsum(weight * len(index) for weight, index in zip(w, oracle.rows, strict=True))
            return smin([load / total for load in plain.pooled(rows, w)], 30000.0, published)

        return functional

    def refinement(w: Sequence[float]) -> float:
        layer_loads = []
        for n in (2, 4):
            boundary = oracle.mean(oracle.windows[f"layers.{n}.pair.smooth_boundary{suffix}"])(w)
            content = oracle.mean(oracle.windows[f"layers.{n}.pair.smooth_content{suffix}"])(w)
            layer_loads.append(boundary + content + 0.5 * (1 - tail(n, "tuned")(w) / tail(n, "base")(w)))
        return 0.9 + smin([-load for load in layer_loads], 50.0, published)

    def handoff(w: Sequence[float]) -> float:
        scores = []
        for n in (2, 4):
            before, after = (
                oracle.mean(oracle.windows[f"layers.{n}.{s}.smooth_overlap"])(w) for s in ("base", "tuned")
            )
            scores.append(after - before + 0.5 * (tail(n, "tuned")(w) / tail(n, "base")(w) - 1))
        return smin(scores, 50.0, published)

    agree(receipt["margins"][f"smooth_refinement_margin{suffix}"], oracle.basic(refinement), rel=1e-9)
    agree(receipt["margins"][f"smooth_handoff_margin{suffix}"], oracle.basic(handoff), rel=1e-9)
    agree(layer_of(receipt, 2)["tuned"][f"smooth_tail{suffix}"], oracle.basic(tail(2, "tuned")), rel=1e-9)
    rho = oracle.windows["layers.2.tuned.rho"]
    assert layer_of(receipt, 2)["tuned"]["smooth_share"] == pytest.approx(rho.mean(axis=0).tolist())


@pytest.mark.parametrize(("scope", "numbers"), [("protected", (2, 4)), ("routed", (1, 2, 4))])
def test_aggregates(case: tuple[dict[str, Any], Oracle], scope: str, numbers: tuple[int, ...]) -> None:
    receipt, oracle = case
    shown = receipt["aggregates"][scope]["tuned"]
    entropies = [plain.entropy(oracle.counts(f"layers.{n}.tuned")) for n in numbers]
    cvs = [plain.load_cv(oracle.counts(f"layers.{n}.tuned")) for n in numbers]
    agree(shown["min_entropy"], oracle.basic(lambda w: min(f(w) for f in entropies)))
    agree(shown["mean_load_cv"], oracle.basic(lambda w: sum(f(w) for f in cvs) / len(cvs)))
    agree(shown["dead_experts"]["mean"], (0.0, 0.0, 0.0))
    agree(shown["dead_experts"]["max"], (0.0, 0.0, 0.0))
    agree(shown["experts_active_mean"], (5.0, 5.0, 5.0))


def test_domains(case: tuple[dict[str, Any], Oracle]) -> None:
    receipt, oracle = case
    windows = oracle.windows
    for number, row in enumerate(receipt["domains"]):
        chosen = windows["windows.domain"] == number
        documents = windows["windows.document"][chosen]
        index = [np.flatnonzero(documents == value) for value in sorted(set(documents.tolist()))]
        design = make_context(oracle.facts, windows).domain_design(chosen)
        difference = (windows["output.nll_tuned"] - windows["output.nll_base"])[chosen]
        for key, values in (
            ("nll_increase", difference),
            ("nll_base", windows["output.nll_base"][chosen]),
            ("kl", windows["output.kl"][chosen]),
            ("top1_agreement", windows["output.top1_agreement"][chosen]),
        ):
            total = [float(values[rows].sum()) for rows in index]
            count = [float(len(rows)) for rows in index]
            domains = [list(range(len(index)))]
            functional = plain.domain_mean(total, count, domains)
            estimate, low, high = plain.bootstrap_t(
                functional, design.weights_BC.tolist(), domains, CONFIDENCE
            )
            assert row[key]["estimate"] == pytest.approx(estimate)
            if len(index) > 2 and math.isfinite(low) and math.isfinite(high):
                agree(row[key], (estimate, low, min(high, 1.0) if key == "top1_agreement" else high))
        assert (row["documents"], row["windows"]) == (len(index), int(chosen.sum()))


def test_the_domain_of_a_layer_and_of_its_row_are_resampled_alike(
    case: tuple[dict[str, Any], Oracle],
) -> None:
    _, oracle = case
    context = make_context(oracle.facts, oracle.windows)
    alone = context.domain_design(oracle.windows["windows.domain"] == 1)
    assert np.array_equal(alone.weights_BC, context.design.weights_BC[:, context.design.slices[1]])


# --- what does not exist, what is exact ------------------------------------------------------------------------


def identical() -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    facts, windows = synthetic.audit()
    facts["identity"]["identical_checkpoints"] = True
    for layer in facts["layers"]:
        layer["exact"] = dict.fromkeys(("states", "gain", "router", "experts"), True)
    for name in list(windows):
        if ".pair." in name or ".control." in name or name == "output.kl":
            windows[name] = np.zeros_like(windows[name])
        if ".tuned." in name:
            windows[name] = windows[name.replace(".tuned.", ".base.")]
        if name.startswith("output.") and name.endswith("_tuned"):
            windows[name] = windows[name.replace("_tuned", "_base")]
    facts["probe"]["domains"] = facts["probe"]["domains"][:3]
    keep = windows["windows.domain"] < 3
    for name in list(windows):
        if len(windows[name]) == len(keep):  # of every domain
            windows[name] = windows[name][keep]
    facts["probe"]["policy"] |= {"task": "none", "allow": ["identical"]}
    return facts, windows


def test_identical_checkpoints_pass_only_by_name() -> None:
    facts, windows = identical()
    facts["probe"]["policy"]["allow"] = []
    receipt = derive(facts, windows)
    assert receipt["verdict"] == "inconclusive"
    assert [step["pattern"] for step in receipt["next_steps"]] == ["nothing was tuned"]
    for allowed in ([], ["identical"]):
        facts["probe"]["policy"]["allow"] = allowed
        assert "nothing-tuned" in {warning["code"] for warning in derive(facts, windows)["warnings"]}


def test_identical_checkpoints_pass_as_exactly_zero_where_that_is_allowed() -> None:
    receipt = derive(*identical())
    assert receipt["verdict"] == "pass"
    for layer in receipt["layers"]:
        for key in GATED:
            shown = layer["pair"][key]
            assert (shown["estimate"], shown["low"], shown["high"], shown["exact"]) == (0.0, 0.0, 0.0, True)
    assert receipt["margins"]["refinement_margin"]["low"] == 0.9
    assert receipt["margins"]["refinement_margin"]["exact"] is True
    assert receipt["domains"][0]["nll_increase"]["exact"] is True


def test_identical_checkpoints_pass_on_any_number_of_documents() -> None:
    facts, windows = identical()
    keep = (np.arange(79) % 36 < 2) | (np.arange(79) >= 76)
    for name in list(windows):
        windows[name] = windows[name][keep if len(windows[name]) == 79 else keep[:76]]
    assert derive(facts, windows)["verdict"] == "pass"


@pytest.mark.parametrize(
    "name",
    [
        "layers.2.pair.content_drift",
        "layers.2.pair.coordinate_drift_z",
        "layers.4.tuned.overlap",
        "output.nll_tuned",
    ],
)
def test_a_claim_of_identity_that_the_data_refute_is_not_believed(name: str) -> None:
    facts, windows = identical()
    windows[name] = windows[name].copy()
    windows[name][5] += -1e-12 if "overlap" in name else 1e-12
    assert derive(facts, windows)["verdict"] != "pass"


def test_without_identical_bytes_zeros_never_pass() -> None:
    facts, windows = identical()
    facts["identity"]["identical_checkpoints"] = False
    for layer in facts["layers"]:
        layer["exact"] = dict.fromkeys(layer["exact"], False)
    receipt = derive(facts, windows)
    assert receipt["verdict"] == "inconclusive"
    pair = layer_of(receipt, 2)["pair"]
    for key in GATED:
        assert pair[key]["estimate"] == 0.0, key
        assert pair[key]["reason"] == "no variance between documents", key
    assert receipt["margins"]["refinement_margin"]["low"] is None


def test_frozen_router_and_experts_leave_anchored_channels_exact() -> None:
    facts, windows = synthetic.audit()
    for layer in facts["layers"]:
        layer["exact"] = {"states": False, "gain": True, "router": True, "experts": True}
        for key in (
            "boundary_drift",
            "transition_drift",
            "content_drift",
            "smooth_boundary",
            "expert_content.sum",
        ):
            windows[f"layers.{layer['layer']}.pair.{key}"][:] = 0.0
    receipt = derive(facts, windows)
    pair = layer_of(receipt, 2)["pair"]
    exact = ("boundary_drift", "transition_drift", "content_drift", "expert_content")
    assert all(pair[key].get("exact") for key in exact)
    assert not pair["coordinate_drift_z"].get("exact")
    assert receipt["predicates"]["protected_atlas_rewrite"]["outcome"] == "preserved"
    assert receipt["margins"]["refinement_margin"]["low"] > 0


@pytest.mark.parametrize(
    ("missing", "key"),
    [
        ("router", "boundary_drift"),
        ("experts", "content_drift"),
        ("gain", "content_drift"),
        ("states", "coordinate_drift_z"),
    ],
)
def test_each_exact_channel_needs_its_own_inputs(missing: str, key: str) -> None:
    facts, windows = synthetic.audit()
    facts["layers"][1]["exact"] = dict.fromkeys(("states", "gain", "router", "experts"), True) | {
        missing: False
    }
    windows[f"layers.2.pair.{key}"][:] = 0.0
    assert "exact" not in layer_of(derive(facts, windows), 2)["pair"][key]


def test_one_expert_per_token_has_no_overlap_and_is_not_blocked_by_it() -> None:
    facts = synthetic.facts(top_k=1)
    windows = synthetic.windows(facts)
    for name in [name for name in windows if "overlap" in name]:
        del windows[name]
    receipt = derive(facts, windows)
    shown = layer_of(receipt, 2)["pair"]["overlap_drop"]
    assert shown["not_applicable"] is True
    assert receipt["verdict"] == "pass"
    assert receipt["margins"]["handoff_margin"]["not_applicable"] is True


def test_declared_by_the_architecture_is_not_applicable_but_missing_is_undetermined() -> None:
    facts, windows = synthetic.audit()
    for number in (2, 4):
        del windows[f"layers.{number}.pair.coordinate_drift_z"]
    assert derive(facts, windows)["verdict"] == "inconclusive"
    for layer in facts["layers"]:
        layer["undefined"] = {"coordinate_drift_z": "the router reads the raw residual"}
    receipt = derive(facts, windows)
    assert receipt["verdict"] == "pass"
    lines = receipt["predicates"]["protected_atlas_rewrite"]["evidence"]
    named = [line for line in lines if line["result"] == "not-applicable"]
    assert [line["reason"] for line in named] == ["the router reads the raw residual"] * 2


@pytest.mark.parametrize("key", ["boundary_drift", "content_drift", "transition_drift", "coordinate_drift_z"])
@pytest.mark.parametrize("damage", [np.inf, -np.inf, np.nan, None])
def test_missing_and_non_finite_windows_never_pass(key: str, damage: float | None) -> None:
    facts, windows = synthetic.audit()
    name = f"layers.2.pair.{key}"
    if damage is None:
        del windows[name]
    else:
        windows[name][...] = damage
    receipt = derive(facts, windows)
    computed = damage is not None and np.isinf(damage)
    assert receipt["verdict"] == ("fail" if computed else "inconclusive")
    assert layer_of(receipt, 2)["pair"][key]["reason"]


def not_finite(receipt: dict[str, Any]) -> list[tuple[int, int | None, int]]:
    keys = ("non_finite_windows", "non_finite_layer", "non_finite_base")
    return [tuple(row[key] for key in keys) for row in receipt["domains"]]


CLEAN = (0, None, 0)


@pytest.mark.parametrize("key", ["output.nll_tuned", "output.kl", "output.non_finite_tuned"])
def test_an_output_that_is_not_finite_is_damage(key: str) -> None:
    facts, windows = synthetic.audit()
    windows[key][3] = 2 if "non_finite" in key else np.inf
    receipt = derive(facts, windows)
    assert receipt["predicates"]["base_domain_damage"]["outcome"] == "damaged"
    assert not_finite(receipt) == [(1, None, 0), CLEAN, CLEAN, CLEAN]
    json.dumps(receipt, allow_nan=False)


WINDOWS = {"prose": 3, "code": 40, "canary": 77, "sft": 100}


@pytest.mark.parametrize("place", list(enumerate(WINDOWS)))
@pytest.mark.parametrize("layer", [1, 4])  # 1 is not protected
def test_one_token_that_is_not_finite_is_damage_in_every_domain_and_layer(
    place: tuple[int, str], layer: int
) -> None:
    facts, windows = synthetic.audit()
    number, domain = place
    windows[f"layers.{layer}.tuned.non_finite"][WINDOWS[domain]] = 1
    windows["layers.4.tuned.non_finite"][WINDOWS[domain]] = 9  # it stays so
    receipt = derive(facts, windows)
    assert receipt["verdict"] == "fail"
    assert not_finite(receipt) == [(1, layer, 0) if n == number else CLEAN for n in range(4)]
    lines = receipt["predicates"]["base_domain_damage"]["evidence"]
    failed = [(line["gate"], line["domain"], line["reason"]) for line in lines if line["result"] == "fail"]
    count = facts["probe"]["domains"][number]["documents"]
    reason = f"NaN or infinity in 1 of {count} windows, from layer {layer} on, where the base has none"
    assert failed == [("non_finite_output", domain, reason)]


@pytest.mark.parametrize("key", ["tuned.jump", "pair.perturbation_budget.actual", "tuned.overlap_low.sum"])
def test_an_infinite_quantity_is_a_finding_though_no_token_was_counted(key: str) -> None:
    facts, windows = synthetic.audit()
    windows[f"layers.1.{key}"][[5, 50]] = np.inf
    receipt = derive(facts, windows)
    assert receipt["verdict"] == "fail"
    assert not_finite(receipt) == [(1, 1, 0), (1, 1, 0), CLEAN, CLEAN]


@pytest.mark.parametrize(
    "key", ["layers.1.base.non_finite", "layers.2.base.jump", "output.nll_base", "output.non_finite_base"]
)
def test_where_the_base_is_not_finite_nothing_is_damage(key: str) -> None:
    facts, windows = synthetic.audit()
    windows[key][3] = 7 if "non_finite" in key else np.inf
    windows["layers.4.tuned.non_finite"][3] = 7
    windows["output.kl"][3] = np.inf
    receipt = derive(facts, windows)
    assert receipt["verdict"] == "inconclusive"
    assert not_finite(receipt) == [(0, None, 1), CLEAN, CLEAN, CLEAN]
    windows["layers.4.tuned.non_finite"][4] = 1
    receipt = derive(facts, windows)
    assert receipt["verdict"] == "fail"
    assert not_finite(receipt)[0] == (1, 4, 1)


@pytest.mark.parametrize(
    "name", ["layers.1.tuned.non_finite", "layers.4.base.non_finite", "output.non_finite_tuned"]
)
def test_tokens_that_were_not_counted_never_pass(name: str) -> None:
    facts, windows = synthetic.audit()
    assert derive(facts, windows)["verdict"] == "pass"
    del windows[name]
    receipt = derive(facts, windows)
    assert receipt["verdict"] == "inconclusive"
    assert not_finite(receipt) == [(None, None, None)] * 4
    windows["layers.2.tuned.non_finite"][3] = 1
    receipt = derive(facts, windows)
    assert receipt["verdict"] == "fail"


def test_a_baseline_says_where_it_is_not_finite() -> None:
    facts, windows = synthetic.baseline()
    windows["layers.2.base.non_finite"][77] = 1
    rows = derive(facts, windows)["domains"]
    assert [row["non_finite_base"] for row in rows] == [0, 0, 1, 0]
    assert all("non_finite_windows" not in row for row in rows)


def test_a_pass_on_the_divergence_rests_on_the_bound_of_a_mean() -> None:
    facts, windows = synthetic.audit()
    facts["probe"]["policy"]["damage"]["kl"] = 0.05
    receipt = derive(facts, windows)
    for row in receipt["domains"][:2]:
        assert row["kl"]["high"] <= row["kl"]["pass_high"] < 0.05
        assert row["kl"]["effective_documents"] == pytest.approx(row["documents"])
    assert "pass_high" not in receipt["domains"][2]["kl"]
    lines = receipt["predicates"]["base_domain_damage"]["evidence"]
    assert [line["result"] for line in lines if line["gate"] == "kl"] == ["pass", "pass"]
    limit = (receipt["domains"][0]["kl"]["high"] + receipt["domains"][0]["kl"]["pass_high"]) / 2
    facts["probe"]["policy"]["damage"]["kl"] = limit
    lines = derive(facts, windows)["predicates"]["base_domain_damage"]["evidence"]
    assert [line["result"] for line in lines if line["gate"] == "kl" and line["domain"] == "prose"] == [
        "undetermined"
    ]


@pytest.mark.parametrize(("damage", "warns"), [({"kl": None}, True), ({"kl": 0.1}, False), ({}, False)])
def test_a_divergence_that_nobody_gates_is_warned_about(damage: dict[str, Any], warns: bool) -> None:
    facts, windows = synthetic.audit()
    facts["probe"]["policy"]["damage"] |= damage
    found = [warning for warning in derive(facts, windows)["warnings"] if warning["code"] == "kl-not-gated"]
    assert bool(found) is warns


@pytest.mark.parametrize(
    "key", ["output.nll_tuned", "output.nll_base", "layers.2.tuned.counts", "layers.4.base.overlap"]
)
def test_missing_arrays_never_pass(key: str) -> None:
    facts, windows = synthetic.audit()
    del windows[key]
    assert derive(facts, windows)["verdict"] == "inconclusive"


def test_damage_in_a_few_documents_is_caught_by_the_tail_guard() -> None:
    facts, windows = synthetic.audit()
    windows["output.nll_tuned"][:2] += 0.52  # two of 36 documents: the mean moves by 0.03 only
    receipt = derive(facts, windows)
    guard = receipt["domains"][0]["damaged_documents"]
    assert guard["count"] == 2
    assert guard["share_high"] == pytest.approx(0.18664, abs=1e-4)  # SciPy: beta.ppf(0.975, 3, 34)
    assert receipt["predicates"]["base_domain_damage"]["outcome"] == "undetermined"


def test_a_canary_over_its_limit_is_damage() -> None:
    facts, windows = synthetic.audit()
    windows["output.nll_tuned"][77] += 0.7
    receipt = derive(facts, windows)
    assert receipt["domains"][2]["worst_window"]["over"] == 1
    assert receipt["verdict"] == "fail"


@pytest.mark.parametrize("wrong", [0, 1, 3, 20, 40])
def test_a_share_of_exact_matches_is_bounded_by_clopper_pearson(wrong: int) -> None:
    """Against SciPy; with 1 or 3 wrong of 40 the bootstrap alone has no lower bound."""
    facts, windows = synthetic.audit()
    facts["probe"]["domains"][3]["success"] = {"metric": "exact_match", "at_least": 0.7}
    windows["output.exact_match_tuned"][79:] = 1.0
    windows["output.exact_match_tuned"][79 : 79 + wrong] = 0.0
    receipt = derive(facts, windows)
    value = receipt["domains"][3]["success"]["value"]
    expected = binomtest(40 - wrong, 40).proportion_ci(0.95, method="exact")
    assert value["estimate"] == pytest.approx(1 - wrong / 40)
    assert [value["low"], value["high"]] == pytest.approx([expected.low, expected.high], abs=1e-9)
    assert "reason" not in value
    result = receipt["predicates"]["knowledge_expansive"]["evidence"][0]["result"]
    assert result == {0: "pass", 1: "pass", 3: "pass", 20: "fail", 40: "fail"}[wrong]


def test_windows_that_share_a_document_are_not_counted_as_trials() -> None:
    facts = synthetic.facts()
    facts["probe"]["domains"][3]["success"] = {"metric": "exact_match", "at_least": 0.7}
    windows = {name: np.repeat(values, 2, axis=0) for name, values in synthetic.windows(facts).items()}
    row = derive(facts, windows)["domains"][3]
    assert row["windows"] == 2 * row["documents"]
    assert row["success"]["value"] == row["exact_match_tuned"]


def test_relative_success_is_paired() -> None:
    facts, windows = synthetic.audit()
    facts["probe"]["domains"][3]["success"] = {"metric": "nll", "at_most": -0.1, "relative_to_base": True}
    row = derive(facts, windows)["domains"][3]
    assert row["success"]["value"] == row["nll_increase"]


def test_two_windows_of_a_document_do_not_count_twice() -> None:
    facts = synthetic.facts()
    once = synthetic.windows(facts)
    twice = {name: np.repeat(values, 2, axis=0) for name, values in once.items()}
    first, second = derive(facts, once), derive(facts, twice)
    for key in ("content_drift", "entropy_drop", "overlap_drop"):
        one, two = layer_of(first, 2)["pair"][key], layer_of(second, 2)["pair"][key]
        assert (two["low"], two["high"]) == pytest.approx((one["low"], one["high"]))


def test_derive_reads_no_derived_key() -> None:
    facts, windows = synthetic.audit()
    receipt = derive(facts, windows)
    assert derive(receipt, windows) == receipt
    spoiled = copy.deepcopy(receipt)
    spoiled["verdict"], spoiled["predicates"], spoiled["margins"] = "fail", {}, None
    for layer in spoiled["layers"]:
        layer["pair"] = {"content_drift": {"estimate": 9.0}}
    assert derive(spoiled, windows) == receipt


def test_derive_leaves_its_input_alone() -> None:
    facts, windows = synthetic.audit()
    before = copy.deepcopy(facts)
    derive(facts, windows)
    assert facts == before


def test_a_baseline_has_no_pair() -> None:
    receipt = derive(*synthetic.baseline())
    assert receipt["verdict"] is None
    assert all(layer["pair"] is None and layer["tuned"] is None for layer in receipt["layers"])
    assert receipt["margins"]["refinement_margin"]["estimate"] is None
    assert "reference" in receipt["margins"]["handoff_margin"]["reason"]
    assert receipt["aggregates"]["routed"]["tuned"] is None
    assert receipt["domains"][0]["nll_increase"] is None
    assert receipt["layers"][0]["base"]["load_entropy"]["low"] is not None


def test_a_reference_fixes_the_levels_of_the_handoff_margin() -> None:
    facts, windows = synthetic.audit()
    rows = [
        {
            "layer": n,
            "overlap": 0.2,
            "min_share": 0.1,
            "smooth_overlap": 0.2,
            "smooth_tail": 0.1,
            "smooth_tail_published": 0.1,
        }
        for n in (1, 2, 4)
    ]
    facts["reference"] = {"receipt_sha256": synthetic.SHA, "layers": rows}
    receipt = derive(facts, windows)
    scores = []
    for n in (2, 4):
        tuned = layer_of(receipt, n)["tuned"]
        overlap, share = tuned["overlap"]["estimate"], tuned["min_share"]["estimate"]
        scores.append(overlap - 0.2 + 0.5 * min(0.0, share / 0.1 - 1))
    assert receipt["margins"]["handoff_margin"]["estimate"] == pytest.approx(min(scores))
    assert receipt["margins"]["smooth_handoff_margin"]["estimate"] is not None


def test_no_base_window_is_an_error() -> None:
    facts, windows = synthetic.audit()
    for domain in facts["probe"]["domains"]:
        domain["role"] = "canary"
    with pytest.raises(UsageError, match="E_NO_WINDOWS"):
        derive(facts, windows)


@pytest.mark.parametrize(
    ("kind", "warns"), [("routed_expert", True), ("selection_bias", False), ("norm", False)]
)
def test_weights_that_are_zero_throughout_are_named(kind: str, warns: bool) -> None:
    facts, windows = synthetic.audit()
    facts["weights"]["classes"][kind]["all_zero_tensors"] = {"base": 0, "tuned": 3}
    found = [one for one in derive(facts, windows)["warnings"] if one["code"] == "all-zero-tensors"]
    assert [one["message"] for one in found] == (
        [f"tensors of the tuned checkpoint that are zero throughout: 3 {kind}; compare the files' sha256"]
        * warns
    )


def test_warnings() -> None:
    facts, windows = synthetic.audit()
    facts["probe"]["policy"]["rewrite"]["smooth"]["occupancy"] = 100.0
    facts["probe"]["policy"]["set_for"] = {"family": "other", "top_k": 2, "experts": "all"}
    facts["noise_floor"] = {"layers": [{"layer": n, "transition_drift": 0.01} for n in (1, 2, 4)]}
    codes = [warning["code"] for warning in derive(facts, windows)["warnings"]]
    assert codes == [
        "smooth-occupancy",
        "noise-floor",
        "loose-tail-guard",
        "budgets-set-for",
        "budgets-set-for",
    ]


def test_documents_that_were_left_out_are_named() -> None:
    facts, windows = synthetic.audit()
    facts["probe"]["left_out"] = [{"domain": "prose", "left_out": 12, "taken": 120}]
    found = [w for w in derive(facts, windows)["warnings"] if w["code"] == "documents-left-out"]
    assert len(found) == 1
    assert "'prose': 12 of 132 documents drawn are shorter" in found[0]["message"]


@pytest.mark.parametrize(("document_nll", "warns"), [(0.4, False), (0.41, True), (None, False)])
def test_a_tail_guard_that_cannot_see_the_margin_is_named(document_nll: float | None, warns: bool) -> None:
    facts, windows = synthetic.audit()
    facts["probe"]["policy"]["damage"] = {"nll": 0.04, "document_nll": document_nll, "document_share": 0.1}
    codes = [warning["code"] for warning in derive(facts, windows)["warnings"]]
    assert ("loose-tail-guard" in codes) is warns
