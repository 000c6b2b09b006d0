"""Audits on a GPU: the CPU's numbers within a tolerance, exact where nothing differs, and the same ones every time.

`make test-cuda` runs them where there is one; what can be tried without is in `test_pretend_device.py` and
`test_device_transfer.py`.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch

from moe_atlas.api import AuditOptions, audit
from moe_atlas.auditing import run
from moe_atlas.auditing.cost.machine import full_precision
from moe_atlas.auditing.layer.batches import partition
from moe_atlas.auditing.layer.measurements import LayerMeasurements
from moe_atlas.checkpoint import reader
from scripts.oracle import tiny
from tests.auditing.device_pairs import BUILD, moved, probe
from tests.auditing.test_engine import assert_same
from tests.support import pairs

DEVICE = "cuda"
pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here"),
]
COUNTED = (".counts", ".boundary_drift", ".native_boundary_drift", ".flips.changed", ".count")
CLOSE = {"rtol": 1e-3, "atol": 1e-5}  # float32 in another order; values are of order 1, drifts of order 0.1
GATED = ("coordinate_drift", "coordinate_drift_z", "boundary_drift", "transition_drift", "content_drift")


@pytest.fixture(scope="module")
def probes(tmp_path_factory):
    return probe(tmp_path_factory.mktemp("cuda"))


@pytest.fixture
def both(monkeypatch, probes):
    """A pair's audit on the processor and on the card, and of each the routed set of every token, as it was read."""
    enter, sets = LayerMeasurements.add_routing, []

    def entering(self, side, routing, windows):
        sets.append((self.layer, side, windows.start, routing.topk_TK.sort(1).values.tolist()))
        enter(self, side, routing, windows)

    def audited(base, tuned, **options):
        monkeypatch.setattr(LayerMeasurements, "add_routing", entering)
        found = []
        for device in ("cpu", DEVICE):
            found.append((*pairs.audited(base, tuned, probes, device=device, **options), sets.copy()))
            sets.clear()
        return found

    return audited


def assert_close(here, there):
    """The same sets and counts, and float32's numbers."""
    assert here[2]
    assert here[2] == there[2]
    assert there[0]["method"]["device"] == DEVICE
    assert here[1].keys() == there[1].keys()
    for name, values in here[1].items():
        if name.startswith("windows.") or name.endswith(COUNTED):
            assert np.array_equal(values, there[1][name]), name
        else:
            assert np.allclose(values, there[1][name], equal_nan=True, **CLOSE), name
    for key in ("weights", "identity", "controls"):  # found on the processor
        assert here[0][key] == there[0][key]
    for mine, theirs in zip(here[0]["layers"], there[0]["layers"], strict=True):
        assert all(mine[side]["cells"] == theirs[side]["cells"] for side in here[0]["checkpoints"])


@pytest.mark.parametrize("name", BUILD)
def test_every_layout_and_option_is_what_the_cpu_computes(name, tmp_path, both):
    base, tuned, options = BUILD[name](tmp_path)
    options |= {"dtype": "float32", "router": "float32"}
    assert_close(*both(base, tuned, **options))


@pytest.mark.slow
@pytest.mark.parametrize("case", tiny.CASES)
def test_every_family_is_what_the_cpu_computes(case, tmp_path, both):
    base, tuned, _ = moved(case)(tmp_path)
    assert_close(*both(base, tuned, dtype="float32"))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("case", ["deepseek_v3", "gpt_oss", "llama4_text", "qwen3_next"])
def test_a_checkpoint_against_itself_is_exactly_zero(case, dtype, tmp_path, probes):
    base = tiny.save(case, tmp_path / "base", seed=3)
    for skips in (True, False):
        _, arrays = pairs.audited(base, base, probes, device=DEVICE, dtype=dtype, skips=skips)
        found = [
            values for name, values in arrays.items() if name.endswith(tuple(f".pair.{c}" for c in GATED))
        ]
        assert found
        assert all(not values.any() for values in found)
        assert not arrays["output.kl"].any()


def test_the_receipt_says_where_it_was_computed(tmp_path, probes):
    base = tiny.save("olmoe", tmp_path / "base", seed=3)
    made = audit(base, base, probes, receipt=tmp_path / "r.json", options=AuditOptions(device=DEVICE))
    assert made.body["method"]["device"] == DEVICE
    assert made.body["predicates"]["protected_atlas_rewrite"]["outcome"] == "preserved"
    assert made.body["verdict"] == "inconclusive"  # nothing was tuned


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_neither_a_second_run_nor_rounds_nor_reading_ahead_move_a_bit(dtype, tmp_path, probes, monkeypatch):
    base, tuned, _ = moved("deepseek_v3")(tmp_path)
    monkeypatch.setattr(run, "partition", partial(partition, limit=64))
    found = []
    for held, depth in ((10**9, 4), (10**9, 4), (1, 0)):
        monkeypatch.setattr(run.memory, "held_tokens", lambda limit, room, held=held: held)
        monkeypatch.setattr(run.memory, "read_ahead", lambda limit, room, depth=depth: depth)
        found.append(pairs.audited(base, tuned, probes, device=DEVICE, dtype=dtype))
    assert_same(found[0], found[1])
    assert_same(found[0], found[2])


def test_a_process_that_allows_tf32_gets_the_same_numbers(tmp_path, probes):
    base, tuned, _ = moved("qwen3_next")(tmp_path)
    plain = pairs.audited(base, tuned, probes, device=DEVICE, dtype="float32")
    torch.set_float32_matmul_precision("high")
    try:
        assert_same(plain, pairs.audited(base, tuned, probes, device=DEVICE, dtype="float32"))
    finally:
        torch.set_float32_matmul_precision("highest")


def test_float32_products_and_convolutions_are_those_of_float32():
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(512, 512, generator=generator).to(DEVICE) for _ in range(2))
    kernel = torch.randn(512, 1, 4, generator=generator).to(DEVICE)
    torch.set_float32_matmul_precision("high")
    try:
        with full_precision():
            product = a @ b
            folded = torch.nn.functional.conv1d(a[None], kernel, groups=512)
    finally:
        torch.set_float32_matmul_precision("highest")
    assert (product - a.double() @ b.double()).abs().max() < 2e-4  # TF32 is off by 0.05
    wanted = torch.nn.functional.conv1d(a[None].double(), kernel.double(), groups=512)
    assert (folded - wanted).abs().max() < 1e-5


def test_experts_are_read_into_page_locked_memory_and_leave_nothing_on_the_device(
    tmp_path, probes, monkeypatch
):
    locked, fresh = [], reader._fresh_bytes

    def taken(nbytes, *, page_locked):
        memory = fresh(nbytes, page_locked=page_locked)
        locked.append((page_locked, memory.is_pinned()))
        return memory

    base, tuned, _ = moved("olmoe")(tmp_path)
    pairs.audited(base, tuned, probes, device=DEVICE)
    before = torch.cuda.memory_allocated()
    monkeypatch.setattr(reader, "_fresh_bytes", taken)
    pairs.audited(base, tuned, probes, device=DEVICE)
    assert set(locked) == {(True, True), (False, False)}
    assert torch.cuda.memory_allocated() == before
