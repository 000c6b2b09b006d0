"""What an audit asks of the machine: full precision whatever the process has set, and a device that starts."""

from __future__ import annotations

import warnings

import pytest
import torch

from moe_atlas.auditing.cost import machine
from moe_atlas.errors import UsageError
from moe_atlas.options import Place
from scripts.oracle import tiny
from tests.auditing.test_engine import assert_same
from tests.support import pairs


@pytest.fixture
def coarse():
    """A process that lets float32 products be rounded, as many trainings do."""
    torch.set_float32_matmul_precision("medium")
    yield
    torch.set_float32_matmul_precision("highest")


def settings():
    return {f"{switches!r}.{name}": getattr(switches, name) for switches, name, _ in machine._precision()}


def test_precision_is_full_inside_and_as_it_was_outside(coarse):
    outside = settings()
    with warnings.catch_warnings(), machine.full_precision():
        warnings.simplefilter("error")
        assert set(settings().values()) == {False, "ieee"}
        assert not torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction
    assert settings() == outside
    assert len(outside) == 5


def test_an_audit_in_a_process_that_rounds_products_is_the_same(tmp_path):
    base = tiny.save("qwen3_next", tmp_path / "base", seed=3)
    tuned = pairs.variant(base, tmp_path / "tuned", pairs.jitter(0.2, lambda name: "A_log" not in name))
    probes = pairs.probe(tmp_path / "probe", documents=4)
    plain = pairs.audited(base, tuned, probes)
    torch.set_float32_matmul_precision("medium")
    try:
        assert_same(plain, pairs.audited(base, tuned, probes))
    finally:
        torch.set_float32_matmul_precision("highest")


def refused(monkeypatch, *, devices, place=None, error=None):
    """What is said of a machine with so many CUDA devices, which do not start."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: devices > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: devices)

    def start():
        raise error

    monkeypatch.setattr(torch.cuda, "current_device", start)
    with pytest.raises(UsageError) as caught:
        machine.pick_device("cuda", place)
    assert caught.value.code == "E_DEVICE"
    line = str(caught.value)
    assert "\n" not in line
    return line


def test_a_device_that_is_not_there_or_does_not_start_is_refused_in_one_line(monkeypatch):
    assert "no CUDA device is available here; use --device cpu" in refused(monkeypatch, devices=0)
    error = RuntimeError("CUDA error: the driver is too old\nCompile with TORCH_USE_CUDA_DSA")
    line = refused(monkeypatch, devices=1, error=error)
    assert "CUDA does not start: CUDA error: the driver is too old; use --device cpu" in line
    assert "1 CUDA devices for more processes" in refused(monkeypatch, devices=1, place=Place(1, 2, 1))


def test_every_process_has_its_own_device(monkeypatch):
    started = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch, "zeros", lambda *shape, device: started.append(device) or torch.ones(1))
    assert machine.pick_device("cuda", Place(0, 2, 0)) == torch.device("cuda", 0)
    assert machine.pick_device("cuda") == torch.device("cuda", 1)  # the process's own, alone
    assert started == [torch.device("cuda", 0), torch.device("cuda", 1)]
    assert machine.pick_device("cpu", Place(1, 2, 1)) == torch.device("cpu")
