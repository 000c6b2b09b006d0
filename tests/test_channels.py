"""Every entry of the two tables reaches every place that has to know of it. The lists here are the tests' own."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moe_atlas.auditing.layer.noise_floor import MEASURED
from moe_atlas.calibration.pairs import pair_of
from moe_atlas.channels import BUDGETS, CHANNELS
from moe_atlas.derivation.derive import DERIVATION, derive
from moe_atlas.derivation.intervals.context import make_context
from moe_atlas.falsification.readings import QUANTITIES
from moe_atlas.ledger.records import PATHOLOGY
from moe_atlas.probes.load import read_probes
from moe_atlas.probes.settings.cannot_fail import cannot_fail
from moe_atlas.probes.template import TEMPLATE
from moe_atlas.receipt.schema import schema
from moe_atlas.receipt.window_file import decode_windows
from moe_atlas.report import terminal
from moe_atlas.report.html.heat import heat_map
from moe_atlas.report.words import GATES
from moe_atlas.statistics.resampled import Resampled
from moe_atlas.views.receipt import ReceiptView
from moe_atlas.window_arrays import LAYER_ARRAYS, OUTPUTS, WINDOWS, WindowArray
from tests.receipt import synthetic

GOLDENS = Path(__file__).parent / "goldens"
DRIFTS = {
    "coordinate": "coordinate_drift_z",
    "boundary": "boundary_drift",
    "transition": "transition_drift",
    "content": "content_drift",
}
GATED = DRIFTS | {
    key: key for key in ("expert_content", "overlap_drop", "dead_share_rise", "entropy_drop", "load_cv_rise")
}
OPEN = (
    *("coordinate_drift", "native_boundary_drift", "content_quantisation", "smooth_boundary"),
    *("smooth_boundary_published", "smooth_content", "smooth_content_published", "smooth_content_coverage"),
)


@pytest.fixture(scope="module")
def receipt() -> dict[str, Any]:
    facts, windows = synthetic.audit()
    facts["probe"]["policy"]["resamples"] = 120
    facts["checkpoints"]["base"]["path"] = facts["checkpoints"]["tuned"]["path"] = "model"
    evidence = {"windows": "receipt.windows.safetensors", "sha256": "ab" * 32, "receipt_sha256": "cd" * 32}
    return derive(facts, windows) | {"evidence": evidence}


def properties(name: str) -> dict[str, Any]:
    found: dict[str, Any] = schema()["$defs"][name]
    return found


def test_the_table_holds_these_channels() -> None:
    assert {channel.budget: channel.key for channel in CHANNELS if channel.budget} == GATED
    assert {channel.key for channel in CHANNELS if not channel.budget} == set(OPEN)
    assert len({channel.key for channel in CHANNELS}) == len(CHANNELS) == len(GATED) + len(OPEN)
    assert {channel.budget for channel in CHANNELS if channel.must_be_written} == set(DRIFTS)


def test_the_schema_describes_every_channel() -> None:
    pair, rewrite = properties("pair"), properties("policy")["properties"]["rewrite"]
    for channel in CHANNELS:
        assert channel.key in pair["properties"]
        assert (channel.key in pair["required"]) is (channel.kind != "format")
        if channel.kind in ("drift", "surrogate"):
            assert channel.key in properties("drift")["properties"]
    assert set(rewrite["properties"]) == {*GATED, "refinement", "handoff", "smooth"}
    assert set(rewrite["required"]) == set(DRIFTS)
    floor = schema()["properties"]["noise_floor"]["properties"]["layers"]["items"]["properties"]
    assert set(floor) == {"layer", "delta", "group_delta", *MEASURED}


@pytest.mark.parametrize("budget", GATED)
def test_a_policy_takes_and_judges_every_budget(budget: str) -> None:
    line = re.compile(rf"^    {budget}: *[a-z0-9.]+", re.MULTILINE)
    assert len(line.findall(TEMPLATE)) == 1  # the template names it
    config = read_probes(line.sub(f"    {budget}: 0.07", TEMPLATE).encode(), Path("probes.yaml"))
    assert config.policy.rewrite.budgets()[budget] == 0.07
    probe = {"policy": synthetic.policy(), "domains": [], "protected_layers": "mid-band"}
    probe["policy"]["rewrite"][budget] = 10 * BUDGETS[budget].ceiling()
    assert any(f"policy.rewrite.{budget}" in said for said in cannot_fail(probe))


@pytest.mark.parametrize("budget", GATED)
def test_every_gated_channel_is_bounded_judged_and_calibrated(budget: str, receipt: dict[str, Any]) -> None:
    key = GATED[budget]
    protected = [layer["pair"][key] for layer in receipt["layers"] if layer["protected"]]
    assert all(shown["simultaneous_low"] is not None for shown in protected)
    evidence = receipt["predicates"]["protected_atlas_rewrite"]["evidence"]
    assert sum(line["gate"] == budget for line in evidence) == len(protected)
    preserved = next(claim for claim in receipt["claims"] if claim["claim"] == "preserved")
    assert f"layers.*.pair.{key}" in preserved["rests_on"]
    windows = synthetic.windows(receipt)
    assert pair_of(receipt, windows, "receipt.json").bounds[budget] is not None


@pytest.mark.parametrize(("budget", "key"), DRIFTS.items())
def test_every_drift_channel_has_a_floor_a_claim_and_a_statement(
    budget: str, key: str, receipt: dict[str, Any]
) -> None:
    assert key in MEASURED
    assert key in QUANTITIES
    moved = [claim for claim in receipt["claims"] if claim["claim"].endswith("_moved")]
    assert [f"layers.*.pair.{key}"] in [claim["rests_on"] for claim in moved]
    assert key in synthetic.PAIR


@pytest.mark.parametrize("budget", GATED)
def test_every_gate_has_words_in_every_report(budget: str, receipt: dict[str, Any]) -> None:
    assert GATES[budget] == BUDGETS[budget].label != ""
    found = heat_map(ReceiptView(receipt))
    assert len(found["headings"]) == len(found["budgets"]) == len(GATED)
    assert BUDGETS[budget].heading in found["headings"]
    if budget in DRIFTS:
        assert budget in [channel.budget for channel in terminal.COLUMNS]


@pytest.mark.parametrize(
    ("key", "ceiling"), [("overlap_drop", 2.0), ("dead_share_rise", 1.0), ("content_drift", 1.0)]
)
def test_an_interval_ends_where_its_quantity_does(key: str, ceiling: float) -> None:
    context = make_context(*synthetic.audit())
    wide = Resampled(0.9 * ceiling, 1.0, np.linspace(-3.0, 3.0, 400), 76, 76, effective=76.0)
    assert context.interval(wide, key)["high"] == context.passing(wide, key)["pass_high"] == ceiling
    assert context.interval(wide)["high"] > ceiling


def test_the_ledger_knows_every_change_of_occupancy() -> None:
    assert set(PATHOLOGY) == {"dead_share_rise", "entropy_drop", "load_cv_rise"}
    assert set(PATHOLOGY) == {channel.key for channel in CHANNELS if channel.kind == "occupancy"}


# --- window arrays ---------------------------------------------------------------------------------------------


def stored(kind: str) -> dict[str, np.ndarray]:
    path = GOLDENS / f"derivation-{DERIVATION}-{kind}.windows.safetensors"
    return decode_windows(path.read_bytes(), path.name)


def names(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Arrays by the names of the table, one layer standing for all."""
    return {re.sub(r"^layers\.\d+\.", "", name): values for name, values in arrays.items()}


@pytest.mark.parametrize("kind", ["audit", "baseline"])
def test_kept_window_data_have_the_form_of_the_table(kind: str) -> None:
    windows = stored(kind)
    table: dict[str, WindowArray] = {
        array.name: array for array in (*WINDOWS, *OUTPUTS.values())
    } | LAYER_ARRAYS
    base = len(next(values for name, values in windows.items() if name.endswith(".base.overlap")))
    for name, values in names(windows).items():
        array = table[name]
        assert array.stored
        assert values.dtype == array.dtype, name
        assert values.ndim == (2 if array.by_expert else 1), name
        assert len(values) == (len(windows["windows.domain"]) if array.every_window else base), name


def test_an_audit_keeps_every_array_of_the_table() -> None:
    found = set(names(stored("audit")))
    rare = {"pair.content_quantisation"}  # only where the stored formats differ
    expected = {array.name for array in (*WINDOWS, *OUTPUTS.values())} | {
        name for name, array in LAYER_ARRAYS.items() if array.stored and array.place != "same_index"
    }
    assert found == expected - rare
