"""Where a derived number hangs on little: rarely moved documents, missing arrays, values on a limit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats

from moe_atlas.derivation.derive import derive
from tests.receipt import synthetic

TAIL = 0.025


def layer_of(receipt: dict[str, Any], number: int) -> dict[str, Any]:
    return next(layer for layer in receipt["layers"] if layer["layer"] == number)


def stringer(values: list[float], ceiling: float) -> float:
    """Stringer's bound from SciPy's beta quantiles, documents of smaller domains counting for more."""
    share = [stats.beta.ppf(1 - TAIL, j + 1, len(values) - j) for j in range(len(values))]
    touched = sorted((value / ceiling for value in values if value > 0), reverse=True)
    steps = sum((share[j] - share[j - 1]) * taint for j, taint in enumerate(touched, start=1))
    return ceiling * (share[0] + steps)


@pytest.mark.parametrize("per_document", [1, 2])
@pytest.mark.parametrize(
    ("key", "ceiling", "moved"),
    [
        ("boundary_drift", 1.0, 2),
        ("boundary_drift", 1.0, 37),
        ("coordinate_drift", 2.0, 3),
        ("transition_drift", np.log(2), 3),
    ],
)
def test_a_channel_that_few_documents_moved_is_bounded(
    key: str, ceiling: float, moved: int, per_document: int
) -> None:
    facts = synthetic.facts()
    windows = synthetic.windows(facts, per_document=per_document)
    values = np.zeros_like(windows[f"layers.2.pair.{key}"])
    values[: moved * per_document : per_document] = 0.01 * np.arange(1, moved + 1)
    windows[f"layers.2.pair.{key}"] = values
    shown = layer_of(derive(facts, windows), 2)["pair"][key]
    sizes = [entry["documents"] for entry in facts["probe"]["domains"][:2]]
    weights = np.concatenate([np.full(size, sum(sizes) / size / 2) for size in sizes])
    documents = weights * values.reshape(-1, per_document).mean(axis=1)
    expected = stringer(documents.tolist(), ceiling * weights.max())
    if moved < 5:  # some resample draws none of them: no variance to studentise with
        assert shown["high"] == pytest.approx(min(expected, ceiling), rel=1e-9)
        assert 0.0 <= shown["low"] < shown["estimate"]
    else:
        assert shown["estimate"] < shown["high"] < expected


def test_a_channel_that_most_documents_moved_has_no_such_bound() -> None:
    facts, windows = synthetic.audit()
    values = windows["layers.2.pair.boundary_drift"]
    values[...] = 0.01
    values[:3] = 0.0  # resamples without them have no variance
    shown = layer_of(derive(facts, windows), 2)["pair"]["boundary_drift"]
    assert shown["low"] is None or shown["high"] is None


@pytest.mark.parametrize(
    ("array", "margins"),
    [
        ("pair.smooth_boundary", ["smooth_refinement_margin"]),
        ("pair.smooth_content", ["smooth_refinement_margin"]),
        ("pair.smooth_boundary_published", ["smooth_refinement_margin_published"]),
        ("base.rho", ["smooth_refinement_margin", "smooth_handoff_margin"]),
        ("tuned.rho", ["smooth_refinement_margin", "smooth_handoff_margin"]),
        ("base.smooth_overlap", ["smooth_handoff_margin", "smooth_handoff_margin_published"]),
        ("tuned.smooth_overlap", ["smooth_handoff_margin", "smooth_handoff_margin_published"]),
        ("pair.boundary_drift", ["refinement_margin"]),
        ("pair.content_drift", ["refinement_margin", "refinement_margin_published"]),
        ("base.counts", ["refinement_margin", "handoff_margin"]),
        ("tuned.counts", ["refinement_margin", "handoff_margin"]),
        ("base.overlap", ["handoff_margin"]),
        ("tuned.overlap", ["handoff_margin", "handoff_margin_published"]),
    ],
)
@pytest.mark.parametrize("damage", [None, np.inf])
def test_a_margin_without_one_of_its_inputs_is_null(
    array: str, margins: list[str], damage: float | None
) -> None:
    facts, windows = synthetic.audit()
    whole = derive(facts, windows)["margins"]
    name = f"layers.4.{array}"
    if damage is None:
        del windows[name]
    elif name.endswith(".counts"):
        return  # integers are always finite
    else:
        windows[name] = windows[name].copy()
        windows[name].flat[0] = damage
    found = derive(facts, windows)["margins"]
    for key in margins:
        assert whole[key]["estimate"] is not None, key
        assert found[key]["estimate"] is None, key
        assert found[key]["reason"], key


@pytest.mark.parametrize("block", ["refinement", "handoff", "smooth"])
def test_a_margin_that_was_not_registered_is_null(block: str) -> None:
    facts, windows = synthetic.audit()
    del facts["probe"]["policy"]["rewrite"][block]
    margins = derive(facts, windows)["margins"]
    gone = {
        "refinement": ["refinement_margin", "smooth_refinement_margin"],
        "handoff": ["handoff_margin", "smooth_handoff_margin"],
        "smooth": ["smooth_refinement_margin", "smooth_handoff_margin"],
    }[block]
    for key, margin in margins.items():
        missing = key.removesuffix("_published") in gone
        assert (margin["estimate"] is None) == missing, key
        assert ("reason" in margin) == missing, key


def test_a_ratio_to_a_negligible_change_is_null() -> None:
    facts, windows = synthetic.audit()
    budget = "layers.2.pair.perturbation_budget"
    for factor, defined in ((0.99e-6, False), (1.01e-6, True)):
        windows[f"{budget}.actual"] = factor * windows[f"{budget}.base_norm"]
        ratio = layer_of(derive(facts, windows), 2)["pair"]["perturbation_budget"]["ratio"]
        assert (ratio["estimate"] is not None) == defined
        assert defined or "negligible" in ratio["reason"]


@pytest.mark.parametrize(("increase", "over"), [(0.4, 0), (0.5, 0), (0.6, 1)])
def test_a_canary_on_its_limit_is_not_over_it(increase: float, over: int) -> None:
    facts, windows = synthetic.audit()
    base = windows["output.nll_base"]
    windows["output.nll_base"] = np.ones_like(base)
    windows["output.nll_tuned"] = np.ones_like(base)
    windows["output.nll_tuned"][77] += increase  # the second canary window
    row = derive(facts, windows)["domains"][2]
    assert row["worst_window"] == {
        "nll_increase": pytest.approx(increase),
        "limit": 0.5,
        "undefined": 0,
        "over": over,
    }


@pytest.mark.parametrize(("increase", "count"), [(0.49, 0), (0.5, 0), (0.51, 1)])
def test_a_document_on_its_limit_is_not_damaged(increase: float, count: int) -> None:
    facts, windows = synthetic.audit()
    windows["output.nll_base"] = np.ones_like(windows["output.nll_base"])
    windows["output.nll_tuned"] = np.ones_like(windows["output.nll_base"])
    windows["output.nll_tuned"][40] += increase
    row = derive(facts, windows)["domains"][1]["damaged_documents"]
    assert (row["count"], row["documents"]) == (count, 40)
    assert row["share"] == count / 40
    assert row["share_high"] == pytest.approx(stats.beta.ppf(0.975, count + 1, 40 - count))


@pytest.mark.parametrize("missing", ["gain", "router", "experts", None])
def test_a_load_is_exactly_zero_only_where_all_of_its_inputs_are(missing: str | None) -> None:
    facts, windows = synthetic.audit()
    for layer in facts["layers"]:
        layer["exact"] = {key: key != missing for key in ("states", "gain", "router", "experts")}
        prefix = f"layers.{layer['layer']}"
        for key in ("boundary_drift", "content_drift"):
            windows[f"{prefix}.pair.{key}"][...] = 0.0
        windows[f"{prefix}.tuned.counts"] = windows[f"{prefix}.base.counts"].copy()
    margin = derive(facts, windows)["margins"]["refinement_margin"]
    assert margin["estimate"] == facts["probe"]["policy"]["rewrite"]["refinement"]["tau"]
    assert margin.get("exact", False) is (missing is None)
    assert (margin["low"] is None) is (missing is not None)
    assert margin.get("reason") == (None if missing is None else "no variance between documents")
