"""The Python interface: cheap to import, arrays and tables of the right shape, at home in a notebook."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from moe_atlas import Receipt
from moe_atlas.errors import UsageError
from moe_atlas.results import TABLES
from tests.report import receipts


@pytest.fixture(scope="module")
def receipt(tmp_path_factory):
    return Receipt.load(receipts.on_disk(tmp_path_factory.mktemp("api"), scale=40.0))


def test_importing_the_interface_loads_nothing_heavy():
    heavy = "{'torch', 'matplotlib', 'pandas'}"
    code = f"import sys; from moe_atlas import audit, baseline, Receipt; print({heavy} & set(sys.modules))"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        == "set()\n"
    )


def test_a_layer_array_is_estimate_low_high_of_every_layer(receipt):
    values = receipt.layer_array("pair.boundary_drift")
    assert values.shape == (len(receipt.layers), 3)
    assert values.dtype == np.float64
    assert np.all(values[:, 1] <= values[:, 0])
    assert values[1, 2] == receipt.body["layers"][1]["pair"]["boundary_drift"]["high"]
    points = receipt.layer_array("base.set_margin_p10")
    assert np.isnan(points[:, 1:]).all()
    assert np.isfinite(points[:, 0]).all()


def test_a_key_or_table_that_is_not_there_is_named(receipt):
    with pytest.raises(UsageError, match="E_KEY pair.no_such"):
        receipt.layer_array("pair.no_such")
    with pytest.raises(UsageError, match="E_TABLE"):
        receipt.rows("nothing")


def test_window_arrays_are_numpy(receipt):
    windows = receipt.windows()
    assert windows["output.nll_tuned"].shape == windows["windows.domain"].shape
    assert {array.dtype for array in windows.values()} == {np.dtype(np.float64), np.dtype(np.int32)}


@pytest.mark.parametrize("table", TABLES)
def test_tables_are_flat_and_become_frames(receipt, table):
    rows = receipt.rows(table)
    assert rows
    assert not [value for row in rows for value in row.values() if isinstance(value, dict | list)]
    assert len(receipt.frame(table)) == len(rows)


def test_frames_without_pandas_say_what_to_do(receipt, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(UsageError, match="E_PANDAS.*or use rows"):
        receipt.frame("domains")


def test_a_report_is_written_beside_the_receipt_never_over_it(receipt, tmp_path):
    assert receipt.report(tmp_path / "r.html").read_text().startswith("<!doctype html>")
    with pytest.raises(UsageError, match="E_FORMAT"):
        receipt.report(receipt.path, force=True)


def test_a_notebook_shows_verdict_and_reasons(receipt):
    shown = receipt._repr_html_()
    assert "✗ FAIL" in shown
    assert "coordinate drift" in shown
    assert "<script" not in Receipt(receipt.path, receipts.hostile())._repr_html_()
